"""A device in a child process: a driver that crashes or hangs costs a DeviceLost, not the caller.

    device = ChildDevice("opencl")
    device = ChildDevice("vulkan", deadline=120.0)     no single call may take longer

Writes, frees and runs are sent without waiting for an answer, so a batch costs no round trip; loading, allocating and reading
wait. An error of something that was not waited for is raised by the next `read` or `synchronize`, with its stage. When the child
dies, the call that notices raises DeviceLost with the signal's name and the end of the child's stderr, and so
does every call after it. The other side is `tapml.devices.server`, the format `tapml.devices.frames`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tapml.devices.batches import Batches, launches
from tapml.devices.frames import PIECE, FrameReader, FrameWriter, PeerGone, TooLate, widen
from tapml.devices.handles import Handles, check_binding, check_range, cut_reads
from tapml.devices.interface import DeviceInfo, Launch, Part
from tapml.devices.replies import error_of
from tapml.devices.sandbox import Sandbox
from tapml.errors import DeviceLost, UnavailableError
from tapml.kernels import Kernel
from tapml.private import TOKEN_VARIABLE
from tapml.runtime.buffers import padded

# How many reads are asked for before the first reply is taken: their requests fit into a pipe that nobody empties.
AHEAD = 4
OPEN_SECONDS = 120.0
CLOSE_SECONDS = 5.0
# A reply is a handle, numbers and an error's text; kernels of strangers can write on the pipe too.
REPLY_LIMIT = 16 * 2**20
PACKAGE_PARENT = str(Path(__file__).parents[2])


class ChildDevice:
    """Implements `tapml.devices.interface.Device`. `deadline` is in seconds for one call that waits; None waits for as long as
    the child lives. With a `sandbox` the child is confined, and the sandbox ends with it. Raises UnavailableError or TargetError
    as the platform's own device does, and UnavailableError when the driver crashes or hangs while it is opened (for
    `open_seconds`)."""

    def __init__(
        self, platform: str, device: str | None = None, deadline: float | None = None, open_seconds: float = OPEN_SECONDS,
        sandbox: Sandbox | None = None,
    ) -> None:
        self._platform = platform
        self._sandbox = sandbox
        self._deadline = deadline
        self._lost = ""
        self._closed = False
        self._buffers: Handles[int] = Handles("buffer")
        self._kernels: Handles[Kernel] = Handles("kernel")
        self._batches = Batches(self._send, self._check_launches, most=sys.maxsize)
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (lives as long as the child)
        words = ["tapml.devices.server", platform, *(["--device", device] if device is not None else [])]
        path = os.pathsep.join(p for p in (PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")) if p)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *words] if sandbox is None else sandbox.command(*words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_inherited() | {"PYTHONPATH": path} if sandbox is None else sandbox.environment(path),
                start_new_session=sandbox is not None,
                pass_fds=() if sandbox is None else sandbox.descriptors,
            )
        except OSError as error:
            if sandbox is not None:
                sandbox.end()
            raise UnavailableError(
                f"{platform} is not available: no process can be started for it ({error.strerror})."
            ) from error
        if sandbox is not None:
            sandbox.started()
        assert self._process.stdin is not None and self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            widen(pipe.fileno())
        self._writer = FrameWriter(self._process.stdin.fileno())
        self._reader = FrameReader(self._process.stdout.fileno(), REPLY_LIMIT, self._process.pid)
        try:
            reply, _ = self._reply(time.monotonic() + open_seconds)
        except DeviceLost as error:
            raise UnavailableError(f"{platform} is not available: it failed while being opened. {error}") from error
        except BaseException:
            self._end()
            raise
        try:
            info = reply[1]
            self._info = DeviceInfo.from_json(info)
        except (TypeError, KeyError, IndexError) as error:
            self._end()
            raise UnavailableError(f"{platform} is not available: its process did not identify itself.") from error

    @property
    def info(self) -> DeviceInfo:
        return self._info

    @property
    def pid(self) -> int:
        """The child's process."""
        return self._process.pid

    def allocate(self, nbytes: int) -> int:
        self._check()
        size = padded(nbytes)
        buffer = self._buffers.add(size)
        try:
            self._ask(["allocate", buffer, nbytes])
        except BaseException:
            self._buffers.pop(buffer)
            raise
        return buffer

    def free(self, buffer: int) -> None:
        self._check()
        self._buffers.pop(buffer)
        self._batches.forget_those_with("buffer", buffer)
        self._send(["free", buffer])

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self._check()
        view = memoryview(data).cast("B")
        check_range(self._buffers[buffer], offset, view.nbytes)
        for start in range(0, view.nbytes, PIECE):
            self._send(["write", buffer, offset + start], view[start : start + PIECE])

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        return self.read_many([(buffer, nbytes, offset)])[0]

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        self._check()
        reads = cut_reads(parts, self._buffers, PIECE)
        data = iter(self._ask_all([["read", buffer, at, size] for read in reads for buffer, size, at in read]))
        return [b"".join([next(data) for _ in read]) for read in reads]

    def load(self, kernel: Kernel) -> int:
        self._check()
        handle = self._kernels.add(kernel)
        try:
            self._ask(["load", handle, kernel.to_json()])
        except BaseException:
            self._kernels.pop(handle)
            raise
        return handle

    def unload(self, kernel: int) -> None:
        self._check()
        self._kernels.pop(kernel)
        self._batches.forget_those_with("kernel", kernel)
        self._send(["unload", kernel])

    def run(self, batch: Sequence[Launch]) -> None:
        self._check()
        if not batch:
            return
        number = self._batches.number(batch)
        self._send(["launch", launches(batch)] if number is None else ["run", number])

    def _check_launches(self, batch: Sequence[Launch]) -> None:
        for launch in batch:
            kernel = self._kernels[launch.kernel]
            check_binding(kernel.entry, kernel.access, launch.buffers)
            for buffer in launch.buffers:
                self._buffers[buffer]

    def synchronize(self) -> None:
        self._check()
        self._ask(["synchronize"])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if not self._lost:
                until = time.monotonic() + CLOSE_SECONDS
                self._writer.send(["close"], until=until)
                self._reader.receive(until)
                self._process.wait(CLOSE_SECONDS)
        except (PeerGone, TooLate, subprocess.TimeoutExpired):
            self._lost = "closed"  # it is ended below all the same
        finally:
            self._end()
            self._errors.close()

    def _check(self) -> None:
        if self._lost:
            raise DeviceLost(self._lost)
        if self._closed:
            raise ValueError("the device is closed")

    def _until(self) -> float | None:
        return None if self._deadline is None else time.monotonic() + self._deadline

    def _send(self, message: list[Any], payload: memoryview | bytes = b"") -> None:
        try:
            self._writer.send(message, payload, self._until())
        except PeerGone as error:
            self._lose(error)
        except TooLate:
            self._late()
        except BaseException:
            self._interrupted()
            raise

    def _ask(self, message: list[Any]) -> tuple[list[Any], bytearray]:
        self._send(message)
        return self._reply(self._until())

    def _ask_all(self, messages: Sequence[list[Any]]) -> list[bytes]:
        """The payloads of the replies in order, asked for ahead, so that the child is never idle. All are awaited before the
        first error is raised, so that what is asked next gets its own reply."""
        data: list[bytes] = []
        failed: Exception | None = None
        for index in range(len(messages) + AHEAD):
            if index < len(messages):
                self._send(messages[index])
            if index >= AHEAD:
                try:
                    payload = self._reply(self._until())[1]
                    if len(payload) != messages[index - AHEAD][3]:
                        self._give_up(f"The {self._platform} device's process answered a read with another number of bytes.")
                    data.append(bytes(payload))
                except DeviceLost:
                    raise
                except Exception as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        return data

    def _reply(self, until: float | None) -> tuple[list[Any], bytearray]:
        try:
            reply, payload = self._reader.receive(until)
        except PeerGone as error:
            self._lose(error)
        except TooLate:
            self._late()
        except BaseException:  # Ctrl-C between question and answer: what comes next could not be matched any more
            self._interrupted()
            raise
        if reply[0] == "ok":
            return reply, payload
        if reply[0] != "error" or len(reply) != 4 or not all(isinstance(part, str) for part in reply):
            self._give_up(f"The {self._platform} device's process sent something that is not an answer.")
        _, kind, stage, text = reply
        if kind == "lost":
            self._lost = text
            self._end()
        raise error_of(kind, stage, text)

    def _lose(self, error: PeerGone) -> NoReturn:
        """The pipe broke: says what became of the child."""
        try:
            code = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            fate = f"broke its connection ({error})"
        else:
            fate = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._give_up(f"The {self._platform} device's process {fate}.")

    def _late(self) -> NoReturn:
        limit = "the time limit for opening it" if self._deadline is None else f"the deadline of {self._deadline:g} s"
        self._give_up(f"The {self._platform} device did not answer within {limit} and was killed.")

    def _give_up(self, text: str) -> NoReturn:
        self._end()
        tail = self._tail()
        self._lost = f"{text} Its last output: {tail}" if tail else text
        raise DeviceLost(self._lost)

    def _interrupted(self) -> None:
        self._lost = f"The {self._platform} device was given up in the middle of a call."
        self._end()

    def _tail(self, lines: int = 5, limit: int = 1000) -> str:
        """The end of what the child wrote on stderr."""
        if self._errors.closed:
            return ""
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, end - 4 * limit))
        text = self._errors.read().decode(errors="replace").strip()
        return "\n".join(text.splitlines()[-lines:])[-limit:]

    def _end(self) -> None:
        """No child, nothing that it started, no pipes. May be called twice."""
        if self._sandbox is not None:
            self._sandbox.kill(self._process.pid)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._sandbox is not None:
            self._sandbox.end()
            self._sandbox = None
        self._reader.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                os.set_blocking(pipe.fileno(), False)
                try:
                    pipe.close()
                except OSError:
                    continue  # nothing is buffered, and the child is gone


def _inherited() -> dict[str, str]:
    """The environment, but for what opens a hub: kernels may be of others."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}

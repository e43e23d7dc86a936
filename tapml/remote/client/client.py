"""A device across a connection, driven as any other: the client's side of docs/wire.md.

    device = RemoteDevice(RemoteName.parse("phone@http://…"), parse("webgpu"), deadline=120.0)
    device.traffic, device.round_trips, device.uploaded        what it cost

Nothing waits but `read`, `read_many`, `synchronize`, opening, and an `allocate` of 4 MiB or more. All other requests are
collected and leave with the next one that waits, or when there are many of them; one that fails is told there, with its own
class. So a decode step is one packet there and one back.

What is sent once only is the matter of `content.py`, batches that are run again of `tapml.devices.batches`, broken connections of
`link.py`, whether an answer can be one of `answers.py`. The device's own errors come back as they were raised there. A device
that answers what cannot be an answer is dropped: ConnectionLost with its name, `final`, then and for every call after it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tapml.devices.batches import LAUNCHES_TOGETHER, Batches, launches
from tapml.devices.handles import Handles, check_binding, check_range, cut_reads
from tapml.devices.interface import DeviceInfo, Launch, Part
from tapml.devices.replies import error_of
from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory, UnavailableError, UsageError
from tapml.kernels import Kernel
from tapml.remote.address import RemoteName
from tapml.remote.client.answers import MOST_LINE, Malformed, dropped, opened, told, value_of
from tapml.remote.client.content import Content
from tapml.remote.client.link import Answer, Link, Traffic
from tapml.remote.wire import PIECE
from tapml.runtime.buffers import padded
from tapml.targets.parse import TargetChoice

PATIENCE = 60.0
OPEN_SECONDS = 150.0
# The device ends what takes longer than the deadline; this much later it has failed to do so.
GRACE_SECONDS = 30.0
# Kernels that are loaded in one packet at most, of which nothing is heard before all of it is done.
LOADS_TOGETHER = 8

# What is collected before it leaves by itself.
COLLECTED_BYTES = 2**18
COLLECTED_REQUESTS = 1024

WAITING_ALLOCATE = 4 * 2**20

# Characters of a label: the hub shows no more.
MOST_LABEL = 200

# How often a session is tried to be opened with a device that begins anew meanwhile.
OPENINGS = 3


class RemoteDevice:
    """Implements `tapml.devices.interface.Device`. `name` means one device, or any. `deadline` is in seconds for one request on
    the device. Raises UnavailableError and TargetError as the platform's own device does, and UnavailableError when the hub or
    the device is not there; a device that is busy is waited for. `label` says what for, in one line.

    `address` is this very device, also where any was asked for. `uploaded` counts bytes of content that were sent, `round_trips`
    the times that an answer was waited for."""

    def __init__(self, name: RemoteName, target: TargetChoice, deadline: float | None = None, label: str = "") -> None:
        if len(name.names) != 1 or name.names[0] == "all":
            raise UsageError(
                f"{name.redacted} means several devices, which only tapml test and tapml migrate can share. Name one, or any."
            )
        self.round_trips = 0
        self._asked = name
        self._target = target
        self._deadline = deadline
        self._label = (label or _own_label()).encode(errors="replace").decode()[:MOST_LABEL]
        self._patience = patience()
        self._ended: UnavailableError | None = None
        self._closed = False
        self._told = 0.0
        self._begin()
        for count in range(1, OPENINGS + 1):
            try:
                self._open()
                break
            except ConnectionLost as error:
                if error.final or count == OPENINGS:
                    raise
                self._begin()

    def _begin(self) -> None:
        """Nothing is there yet."""
        self._link = Link(self._asked.hub, self._asked.names[0], self._target.name, self._label, self._patience)
        self._buffers: Handles[int] = Handles("buffer")
        self._kernels: Handles[Kernel] = Handles("kernel")
        self._collected: list[list[Any]] = []
        self._collected_bytes = 0
        self._next_id = 1
        self._loads = 0
        self._untold: DeviceError | None = None
        self._content = Content(self._post)
        self._batches = Batches(self._post, self._check_launches)

    def _open(self) -> None:
        try:
            self._link.open()
            wish = {"target": self._target.name, "device": self._target.device, "deadline": self._deadline}
            (answer,) = self._ask([["open", self._id(), wish]], max(OPEN_SECONDS, self._deadline or 0.0))
            session = opened(answer)
        except Malformed as error:
            raise self._drop(error) from None
        except BaseException:
            self._link.close()
            raise
        self._info = session.info
        self._content.opened(session.stored, session.room)
        self._largest = self._info.limits.largest_buffer

    @property
    def info(self) -> DeviceInfo:
        return self._info

    @property
    def address(self) -> str:
        """What `--device` is to be for this very device, with the hub's token."""
        return str(self._asked.one(self._link.name))

    @property
    def name(self) -> str:
        """What the hub calls it."""
        return self._link.name

    @property
    def uploaded(self) -> int:
        return self._content.uploaded

    @property
    def traffic(self) -> Traffic:
        return self._link.traffic

    def doing(self, text: str) -> None:
        """What it is used for now, for people who look at the hub; they are told once a second at most."""
        now = time.monotonic()
        if not self._closed and now - self._told >= 1.0:
            self._told = now
            self._link.doing(text)

    def allocate(self, nbytes: int) -> int:
        self._check()
        size = padded(nbytes)
        if self._largest is not None and size > self._largest:
            raise DeviceError("launch", f"a buffer of {size} bytes is more than {self._info.name} can bind ({self._largest})")
        buffer = self._buffers.add(size)
        if size < WAITING_ALLOCATE:
            self._post(["allocate", buffer, nbytes])
            return buffer
        before, own = ["synchronize", self._id()], ["synchronize", self._id()]
        for request in (before, ["allocate", buffer, nbytes], own):
            self._post(request)
        earlier, failed = (self._error(a) if a[0] == "error" else None for a in self._answers([before, own]))
        if isinstance(earlier, DeviceError):
            self._untold = self._untold or earlier  # allocating is not to be blamed for it
        elif earlier is not None:
            raise earlier
        if failed is not None:
            if isinstance(failed, DeviceError):
                self.free(buffer)
            raise failed
        return buffer

    def free(self, buffer: int) -> None:
        self._check()
        self._buffers.pop(buffer)
        self._batches.forget_those_with("buffer", buffer)
        self._post(["free", buffer])

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self._check()
        view = memoryview(data).cast("B")
        check_range(self._buffers[buffer], offset, view.nbytes)
        self._content.write(buffer, view, offset, keep)

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        return self.read_many([(buffer, nbytes, offset)])[0]

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        self._check()
        reads = cut_reads(parts, self._buffers, PIECE)
        wanted = [["read", self._id(), buffer, at, size] for read in reads for buffer, size, at in read]
        data = iter(self._ask_and_tell(wanted))
        return [b"".join([next(data) for _ in read]) for read in reads]

    def load(self, kernel: Kernel) -> int:
        self._check()
        digest = self._content.kernel(kernel)
        if digest is None:
            raise OutOfMemory(
                f"{self.name} has no room in its store for kernel {kernel.entry}. Start its agent with a larger --store."
            )
        handle = self._kernels.add(kernel)
        self._post(["load", handle, digest])
        self._loads += 1
        if self._loads % LOADS_TOGETHER == 0:
            self._flush()
        return handle

    def unload(self, kernel: int) -> None:
        self._check()
        self._kernels.pop(kernel)
        self._batches.forget_those_with("kernel", kernel)
        self._post(["unload", kernel])

    def run(self, batch: Sequence[Launch]) -> None:
        self._check()
        if not batch:
            return
        number = self._batches.number(batch)
        if number is not None:
            self._post(["run", number])
            return
        for start in range(0, len(batch), LAUNCHES_TOGETHER):
            self._post(["launch", launches(batch[start : start + LAUNCHES_TOGETHER])])

    def synchronize(self) -> None:
        self._check()
        self._ask_and_tell([["synchronize", self._id()]])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._collected.clear()
        self._link.close([["close", self._id()]])

    def _check_launches(self, batch: Sequence[Launch]) -> None:
        for launch in batch:
            kernel = self._kernels[launch.kernel]
            check_binding(kernel.entry, kernel.access, launch.buffers)
            for buffer in launch.buffers:
                self._buffers[buffer]

    # Requests

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        if self._closed:
            raise ValueError("the device is closed")
        self._link.check()

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _post(self, request: list[Any], nbytes: int = 0) -> None:
        """Collects a request, and sends what was collected when it is enough."""
        size = nbytes + 64 + (16 * sum(len(launch[1]) + 1 for launch in request[-1]) if request[0] in ("launch", "define") else 0)
        if self._collected and self._collected_bytes + size > COLLECTED_BYTES:
            self._flush()
        self._collected.append(request)
        self._collected_bytes += size
        if self._collected_bytes >= COLLECTED_BYTES or len(self._collected) >= COLLECTED_REQUESTS:
            self._flush()

    def _flush(self) -> None:
        if not self._collected:
            return
        items, self._collected, self._collected_bytes = self._collected, [], 0
        try:
            self._link.send(items, self._limit())
        except (UnavailableError, ValueError):
            raise
        except BaseException:
            self._interrupted()
            raise

    def _ask(self, requests: Sequence[list[Any]], seconds: float | None = None) -> list[Any]:
        """Sends requests that are answered, with what was collected, and waits for the answers; their values. All of them are
        awaited before the first error is raised."""
        for request in requests:
            self._post(request)
        answers = self._answers(requests, seconds)
        for answer in answers:
            if answer[0] == "error":
                raise self._error(answer)
        return [answer[2] for answer in answers]

    def _answers(self, requests: Sequence[list[Any]], seconds: float | None = None) -> list[Answer]:
        """Sends what was collected, and waits for the answers to these requests, each of which can be one."""
        self._flush()
        self.round_trips += 1
        try:
            answers = self._link.wait([request[1] for request in requests], self._limit(seconds))
            for request, answer in zip(requests, answers, strict=True):
                value_of(request, answer)
        except Malformed as error:
            raise self._drop(error) from None
        except UnavailableError:
            raise
        except BaseException:  # Ctrl-C: the device need not go on
            self._interrupted()
            raise
        self._loads = 0
        return answers

    def _ask_and_tell(self, requests: Sequence[list[Any]]) -> list[Any]:
        """As `_ask`, and the place where an error of something that was not waited for is raised: it is older than what these
        requests may fail with."""
        untold, self._untold = self._untold, None
        try:
            values = self._ask(requests)
        except DeviceError as error:
            if untold is None:
                raise
            raise untold from error
        if untold is not None:
            raise untold
        return values

    def _limit(self, seconds: float | None = None) -> float | None:
        """For how long there may be no sign of progress: each kernel of a packet may take as long as any other request."""
        limit = self._deadline if seconds is None else seconds
        return None if limit is None else limit * (1 + min(self._loads, LOADS_TOGETHER)) + GRACE_SECONDS

    def _error(self, answer: Answer) -> Exception:
        _, _, kind, stage, text = answer
        text = told(text)
        if kind in ("lost", "cancelled"):
            self._ended = DeviceLost(text or f"Device {self.name} is gone, and gave no reason.")
            self._link.close()
            return self._ended
        if kind in ("value", "other"):  # a mistake of the device's program, or ours: no reason to end in a traceback here
            last = told(text.strip().rpartition("\n")[2], MOST_LINE) or "it gave no reason"
            return DeviceError("launch", f"Device {self.name} failed at a request: {last}\n{text}".strip())
        return error_of(kind, stage or "launch", text or "the device gave no reason")

    def _drop(self, error: Malformed) -> ConnectionLost:
        """The device does not keep to the format, so nothing that it says is worth anything."""
        self._ended = dropped(self.name, str(error))
        self._link.close()
        return self._ended

    def _interrupted(self) -> None:
        self._ended = DeviceLost(f"Device {self.name} was given up in the middle of a call.")
        self._link.give_up(self._next_id - 1)


def patience() -> float:
    """How many seconds a device or a connection may be away before it is given up."""
    text = os.environ.get("TAPML_PATIENCE", "")
    try:
        seconds = float(text) if text else PATIENCE
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e9:
        raise UsageError(f"TAPML_PATIENCE is {text!r}, not a number of seconds above 0. Give one such as 60, or unset it.")
    return seconds


def _own_label() -> str:
    """What this process was started as, in one line without anything secret."""
    program = Path(sys.argv[0] if sys.argv else "").name or "python"
    words = ["tapml" if program in ("tapml", "__main__.py") else program, *sys.argv[1:3]]
    return " ".join(word for word in words if "@" not in word and "token" not in word)

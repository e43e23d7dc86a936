"""The child's side of `tapml.devices.child`: opens a platform's device and carries out what the parent asks.

    python -m tapml.devices.server PLATFORM [--device WHICH]

Frames come in on stdin and leave on what was stdout; stdout itself is turned to stderr, so that a driver that
prints does not break the protocol. Requests are lists, the name first. Handles are the parent's own.

    no reply:  ["write", buffer, offset] + bytes  ["free", buffer]  ["unload", kernel]  ["launch", [[kernel, [buffer, …]], …]]
               ["define", batch, [[kernel, [buffer, …]], …]]  ["run", batch]  ["forget", batch]
    a reply:   ["allocate", buffer, nbytes]  ["load", kernel, {…}]  ["read", buffer, offset, nbytes]  ["synchronize"]  ["close"]

A reply is ["ok", …] + bytes or ["error", kind, stage, message]. When a request without a reply fails, the error is kept for the
next "read" or "synchronize", and runs until then are not carried out, since their inputs would be wrong; a lost device is told by
the next reply of any kind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from typing import Any

from tapml.devices.frames import FrameReader, FrameWriter, PeerGone
from tapml.devices.interface import Device, Launch
from tapml.devices.open import open_here
from tapml.devices.replies import told
from tapml.errors import DeviceLost
from tapml.kernels import Kernel


class Server:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[int, int] = {}
        self._kernels: dict[int, int] = {}
        self._batches: dict[int, tuple[Launch, ...]] = {}
        self._failed: Exception | None = None

    def answer(self, message: list[Any], payload: bytearray) -> tuple[list[Any], bytes] | None:
        """Carries out one request; None when it has no reply."""
        name, *arguments = message
        if name in ("write", "free", "unload", "launch", "define", "run", "forget"):
            try:
                self._post(name, arguments, payload)
            except Exception as error:
                self._failed = self._failed or error
            return None
        try:
            if self._failed is not None and (name in ("read", "synchronize") or isinstance(self._failed, DeviceLost)):
                kept, self._failed = self._failed, None
                raise kept
            return self._reply(name, arguments)
        except Exception as error:
            return describe(error), b""

    def _post(self, name: str, arguments: list[Any], payload: bytearray) -> None:
        if name == "write":
            buffer, offset = arguments
            self._device.write(self._buffers[buffer], memoryview(payload), offset)
        elif name == "free":
            self._device.free(self._buffers.pop(arguments[0]))
        elif name == "unload":
            self._device.unload(self._kernels.pop(arguments[0]))
        elif name == "define":
            self._batches[arguments[0]] = self._batch(arguments[1])
        elif name == "forget":
            del self._batches[arguments[0]]
        elif self._failed is None:
            self._device.run(self._batch(arguments[0]) if name == "launch" else self._batches[arguments[0]])

    def _batch(self, launches: list[Any]) -> tuple[Launch, ...]:
        return tuple(Launch(self._kernels[k], tuple(self._buffers[b] for b in buffers)) for k, buffers in launches)

    def _reply(self, name: str, arguments: list[Any]) -> tuple[list[Any], bytes]:
        if name == "allocate":
            buffer, nbytes = arguments
            self._buffers[buffer] = self._device.allocate(nbytes)
        elif name == "load":
            kernel, data = arguments
            self._kernels[kernel] = self._device.load(Kernel.from_json(data))
        elif name == "read":
            buffer, offset, nbytes = arguments
            return ["ok"], self._device.read(self._buffers[buffer], nbytes, offset)
        elif name == "synchronize":
            self._device.synchronize()
        elif name == "close":
            self._device.close()
        else:
            raise ValueError(f"no request {name!r}")
        return ["ok"], b""


def describe(error: Exception) -> list[Any]:
    """An error as a reply."""
    return ["error", *told(error)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tapml.devices.server", description=__doc__.partition("\n")[0])
    parser.add_argument("platform")
    parser.add_argument("--device")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if "XDG_RUNTIME_DIR" not in os.environ:  # Mesa complains on stderr without it
        os.environ["XDG_RUNTIME_DIR"] = tempfile.gettempdir()
    writer = FrameWriter(os.dup(1))
    os.dup2(2, 1)
    reader = FrameReader(os.dup(0))
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        device = open_here(args.platform, args.device)
    except Exception as error:
        writer.send(describe(error))
        return 0
    server = Server(device)
    writer.send(["ok", device.info.to_json()])
    try:
        while True:
            message, payload = reader.receive()
            answer = server.answer(message, payload)
            if answer is not None:
                writer.send(*answer)
            if message[0] == "close":
                return 0
    except PeerGone:
        return 0  # the parent has gone or closed the pipe: nobody is left to tell


def _leave_with(parent: int) -> None:
    """Ends this process when the parent is no more, even in the middle of a kernel that never ends."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

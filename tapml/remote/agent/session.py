"""One session on a device: its requests carried out over any `Device`, in order, without any network.

    session = Session(open_device, store, memory=500 * 2**20)
    answer = session.carry_out(item)       an item of a packet as `wire.decode` gave it; ["ok", …], ["error", …] or None
    session.drop(item)                     the same for one that was cancelled: what depends on it fails, and nothing runs
    session.end()                          frees everything; the store keeps what it has

The requests and their rules are in docs/wire.md. `carry_out` never raises. What is checked here is what a request refers to:
handles, ranges, room, the text of a kernel; that it has the right shape was checked when it was unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.devices.directives import reaches_out
from tapml.devices.handles import check_binding, check_range
from tapml.devices.interface import Device, Launch
from tapml.errors import DeviceError
from tapml.remote.agent.descriptions import described, parse_kernel
from tapml.remote.agent.failures import CANCELLED, Failed, Failure, failure_of
from tapml.remote.agent.store import Shelf, Store
from tapml.remote.wire import ANSWERED, LARGEST
from tapml.runtime.buffers import padded

# A target, which of the platform's devices, and the seconds that one call may take.
OpenDevice = Callable[[str, str | None, float | None], Device]

MOST_HANDLES = 2**20
MOST_BINDINGS = 2**22
MOST_KERNEL_BYTES = 16 * 2**20
MOST_SECONDS = 10.0**6


@dataclass(frozen=True)
class _Buffer:
    """`handle` is the device's own."""

    handle: int
    nbytes: int


@dataclass(frozen=True)
class _Kernel:
    handle: int
    entry: str
    access: tuple[str, ...]


@dataclass(frozen=True)
class _Batch:
    launches: tuple[Launch, ...]
    bindings: int


class Session:
    """`memory` is how many bytes of buffers there may be at once; None leaves it to the device. `launches` counts those carried
    out. For one thread, but for `ended_because`, in which another thread says why it is about to end the device."""

    def __init__(self, open_device: OpenDevice, store: Store, memory: int | None = None) -> None:
        self.device: Device | None = None
        self.launches = 0
        self.ended_because = ""
        self._open_device = open_device
        self._store = store
        self._shelf: Shelf | None = None
        self._memory = memory
        self._allocated = 0
        self._bindings = 0
        self._buffers: dict[int, _Buffer | Failure] = {}
        self._kernels: dict[int, _Kernel | Failure] = {}
        self._batches: dict[int, _Batch | Failure] = {}
        self._not_kept: dict[bytes, Failure] = {}
        self._kept: Failure | None = None
        self._lost: Failure | None = None
        self._ended = False
        self._requests: dict[str, Callable[..., Any]] = {
            "open": self._open, "allocate": self._allocate, "free": self._free, "write": self._write, "keep": self._keep,
            "put": self._put, "load": self._load, "unload": self._unload, "launch": self._launch, "define": self._define,
            "run": self._run, "forget": self._forget, "read": self._read, "synchronize": self._synchronize, "close": self._close,
        }

    def carry_out(self, item: Sequence[Any]) -> list[Any] | None:
        """One request; its answer if it has one."""
        name, *arguments = item
        number = arguments[0] if name in ANSWERED else None
        try:
            if self._lost is not None:
                if name == "close":
                    self.end()
                raise Failed(self._lost)
            value = self._requests[name](*arguments)
        except Exception as error:
            failure = self._failure(error)
            if number is not None:
                return failure.answer(number)
            self._kept = self._kept or failure
            return None
        return None if number is None else ["ok", number, value]

    def drop(self, item: Sequence[Any]) -> list[Any] | None:
        """A cancelled request: it is not carried out, and a handle that it would have made is left as failed. What only gives
        something back is carried out all the same."""
        name, *arguments = item
        if name in ANSWERED:
            return CANCELLED.answer(arguments[0])
        if name in ("free", "unload", "forget"):
            return self.carry_out(item)
        tables: dict[str, dict[Any, Any]] = {
            "allocate": self._buffers, "load": self._kernels, "define": self._batches, "keep": self._not_kept
        }
        failed = tables.get(name)
        if failed is not None and len(failed) < MOST_HANDLES and not self._ended:
            failed.setdefault(arguments[0], CANCELLED)
        return None

    def end(self) -> None:
        """Frees everything. May be called twice; requests that come after fail."""
        self._ended = True
        for table in (self._buffers, self._kernels, self._batches):
            table.clear()
        self._allocated = self._bindings = 0
        device, self.device = self.device, None
        try:
            if device is not None:
                device.close()
        finally:
            if self._shelf is not None:
                self._shelf.end()

    def _open(self, number: int, wish: dict[str, Any]) -> dict[str, Any]:
        if self.device is not None or self._ended:
            raise ValueError("the session is open already" if self.device is not None else "the session was closed")
        deadline = wish["deadline"]
        if deadline is not None and not deadline > 0:
            raise ValueError(f"a deadline of {deadline} s leaves no time for anything")
        limit = None if deadline is None else min(float(deadline), MOST_SECONDS)
        self.device = self._open_device(wish["target"], wish["device"], limit)
        self._shelf = self._store.begin()
        return {
            "info": described(self.device.info, self._memory), "room": self._shelf.room, "stored": list(self._shelf.listed)
        }

    def _allocate(self, buffer: int, nbytes: int) -> None:
        device = self._opened()
        _check_new(self._buffers, buffer, "buffer")
        try:
            size = padded(nbytes)
            if self._memory is not None and self._allocated + size > self._memory:
                raise Failed(Failure(
                    "memory", f"A buffer of {size} bytes is more than the session may have: {self._allocated} of {self._memory} "
                    "bytes are in use. Start the agent with a larger --memory.",
                ))
            known = device.info.limits.max_buffer_bytes
            largest = LARGEST if known is None else known
            if size > largest:
                raise Failed(Failure("memory", f"A buffer of {size} bytes is more than the device allows ({largest})."))
            handle = device.allocate(nbytes)
        except Exception as error:
            self._buffers[buffer] = self._failure(error)
            raise
        self._buffers[buffer] = _Buffer(handle, size)
        self._allocated += size

    def _free(self, buffer: int) -> None:
        found = _pop(self._buffers, buffer, "buffer")
        if isinstance(found, _Buffer):
            self._allocated -= found.nbytes
            self._opened().free(found.handle)

    def _write(self, buffer: int, offset: int, data: bytes) -> None:
        found = self._buffer(buffer)
        check_range(found.nbytes, offset, len(data))
        self._opened().write(found.handle, data, offset)

    def _keep(self, digest: bytes, total: int, offset: int, data: bytes) -> None:
        try:
            self._opened_shelf().keep(digest, total, offset, data)
        except Exception as error:
            if len(self._not_kept) < MOST_HANDLES:
                self._not_kept.setdefault(digest, self._failure(error))
            raise
        self._not_kept.pop(digest, None)

    def _put(self, buffer: int, offset: int, digest: bytes) -> None:
        found, device = self._buffer(buffer), self._opened()
        pieces = self._pieces(digest)
        check_range(found.nbytes, offset, sum(map(len, pieces)))
        for piece in pieces:
            device.write(found.handle, memoryview(piece), offset)
            offset += len(piece)

    def _load(self, kernel: int, digest: bytes) -> None:
        device = self._opened()
        _check_new(self._kernels, kernel, "kernel")
        try:
            pieces = self._pieces(digest)
            if sum(map(len, pieces)) > MOST_KERNEL_BYTES:
                raise ValueError(f"a kernel of more than {MOST_KERNEL_BYTES} bytes")
            parsed = parse_kernel(b"".join(pieces))
            reach = reaches_out(parsed)
            if reach:
                raise DeviceError(
                    "driver",
                    f"The agent refused to compile kernel {parsed.entry}: its text {reach}. Kernels of others keep to "
                    "themselves there; a kernel of your own that needs it can be tried on the machine itself.",
                )
            handle = device.load(parsed)
        except Exception as error:
            self._kernels[kernel] = self._failure(error)
            raise
        self._kernels[kernel] = _Kernel(handle, parsed.entry, parsed.access)

    def _unload(self, kernel: int) -> None:
        found = _pop(self._kernels, kernel, "kernel")
        if isinstance(found, _Kernel):
            self._opened().unload(found.handle)

    def _launch(self, launches: list[Any]) -> None:
        self._submit(self._resolved(launches))

    def _define(self, batch: int, launches: list[Any]) -> None:
        _check_new(self._batches, batch, "batch")
        try:
            found = self._resolved(launches)
            if self._bindings + found.bindings > MOST_BINDINGS:
                raise Failed(Failure("memory", f"The session's batches have more than {MOST_BINDINGS} launches and buffers."))
        except Exception as error:
            self._batches[batch] = self._failure(error)
            raise
        self._bindings += found.bindings
        self._batches[batch] = found

    def _run(self, batch: int) -> None:
        self._submit(_held(self._batches, batch, "batch"))

    def _forget(self, batch: int) -> None:
        found = _pop(self._batches, batch, "batch")
        if isinstance(found, _Batch):
            self._bindings -= found.bindings

    def _read(self, number: int, buffer: int, offset: int, nbytes: int) -> bytes:
        self._tell_kept()
        found = self._buffer(buffer)
        check_range(found.nbytes, offset, nbytes)
        return self._opened().read(found.handle, nbytes, offset)

    def _synchronize(self, number: int) -> None:
        self._tell_kept()
        self._opened().synchronize()

    def _close(self, number: int) -> None:
        self.end()

    def _opened(self) -> Device:
        if self.device is None:
            raise ValueError("the session was closed" if self._ended else "the session has no device: open comes first")
        return self.device

    def _opened_shelf(self) -> Shelf:
        self._opened()
        assert self._shelf is not None
        return self._shelf

    def _buffer(self, buffer: int) -> _Buffer:
        found: _Buffer = _held(self._buffers, buffer, "buffer")
        return found

    def _pieces(self, digest: bytes) -> tuple[bytes | bytearray, ...]:
        try:
            return self._opened_shelf().pieces(digest)
        except ValueError:
            if digest in self._not_kept:
                raise Failed(self._not_kept[digest]) from None
            raise

    def _resolved(self, launches: list[Any]) -> _Batch:
        found = []
        bindings = 0
        for number, buffers in launches:
            kernel = _held(self._kernels, number, "kernel")
            check_binding(kernel.entry, kernel.access, buffers)
            found.append(Launch(kernel.handle, tuple([self._buffer(buffer).handle for buffer in buffers])))
            bindings += 1 + len(buffers)
        return _Batch(tuple(found), bindings)

    def _submit(self, batch: _Batch) -> None:
        """Nothing runs while an error is kept, since its inputs would be wrong."""
        device = self._opened()
        if self._kept is None:
            device.run(batch.launches)
            self.launches += len(batch.launches)

    def _tell_kept(self) -> None:
        """Raises what a request that nobody waited for left behind: the device's own error first, since it is older."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if self.device is not None:
                self.device.synchronize()
            raise Failed(kept)

    def _failure(self, error: Exception) -> Failure:
        """What to answer for an error; a lost device is remembered."""
        failure = failure_of(error)
        if failure.kind == "lost":
            self._lost = failure = self._lost or Failure("lost", self.ended_because or failure.text)
        return failure


def _check_new(table: dict[int, Any], handle: int, kind: str) -> None:
    if handle in table:
        raise ValueError(f"{kind} {handle} exists already")
    if len(table) >= MOST_HANDLES:
        raise Failed(Failure("memory", f"The session has {MOST_HANDLES} {kind}s, and may not have more."))


def _held(table: dict[int, Any], handle: int, kind: str) -> Any:
    """What a handle stands for. Raises the error with which it failed, if it did."""
    found = table.get(handle)
    if found is None:
        raise ValueError(f"there is no {kind} {handle}")
    if isinstance(found, Failure):
        raise Failed(found)
    return found


def _pop(table: dict[int, Any], handle: int, kind: str) -> Any:
    if handle not in table:
        raise ValueError(f"there is no {kind} {handle}")
    return table.pop(handle)

"""What running a model needs of whatever executes operators: buffers, and work that is recorded once and submitted often.

`tapml.backends.interface` says the whole of a backend; this is the part of it that a shipped model needs, and it names nothing
that compiles. Handles of buffers are small integers of the engine's own. Work that was submitted runs in order, each part
seeing what the ones before it wrote; `submit` may return before it is done, and `read_many` waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from tapml.runtime.buffers import BufferPool
from tapml.tensors import HostArray, TensorSpec

# What one of several reads asks for: buffer, nbytes, offset.
Part: TypeAlias = tuple[int, int, int]

# One operator on the host: arrays in its body's order and dtypes in, its outputs.
HostFunction = Callable[[Sequence[HostArray]], Sequence[HostArray]]

# Gives an operator's function by its signature.
HostFunctions = Callable[[str], HostFunction]


class Compiled(Protocol):
    """One operator, ready to run. `inputs` and `outputs` are specs as the engine stores them (an int64 input of the operator may
    be int32 here); `scratch` are sizes in bytes of buffers that one run needs besides; an output that is an input unchanged is in
    `forwards`, output index to input index, and its buffer is not written. Equal digests run equally."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def scratch(self) -> tuple[int, ...]: ...

    @property
    def forwards(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def schedule(self) -> str:
        """How it was made, as verdicts name it."""

    @property
    def digest(self) -> str: ...


class Engine(Protocol):
    """See the module's docstring. Not thread-safe: one caller at a time. DeviceError for one refused request, after which the
    engine still works; DeviceLost and ConnectionLost when it is gone."""

    @property
    def pool(self) -> BufferPool:
        """Buffers, which are used again."""

    def record(
        self, compiled: Compiled, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> Sequence[Any]:
        """One run over these buffers, as work that can be submitted any number of times while the buffers live. Without `scratch`
        the engine uses its own, which all such work shares."""

    def submit(self, work: Sequence[Any]) -> None:
        """Carries out what `record` gave, in order."""

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        """Copies `data` into the buffer. The caller may reuse `data` as soon as this returns. `keep`: the same bytes may be
        wanted again, such as a weight, and an engine across a connection may remember them."""

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        """Several reads, each (buffer, nbytes, offset), after all that was submitted before."""

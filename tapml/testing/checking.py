"""What the rules of `check_backend` stand on: one open backend, and how an error of it becomes a broken rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tapml.backends.interface import Backend, Compiled
from tapml.errors import DeviceError, DeviceLost, first_line
from tapml.languages.body import LANGUAGE
from tapml.operators.graph import Body
from tapml.runtime.buffers import as_bytes
from tapml.tensors import NUMPY, HostArray, TensorSpec


class BrokenRule(AssertionError):
    """A backend breaks a rule: `rule` is its name, and the text a sentence that begins with it."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


@contextmanager
def told(rule: str, what: str) -> Iterator[None]:
    """An error that nobody agreed on is a broken rule, and so is an agreed one where nothing may fail."""
    try:
        yield
    except BrokenRule:
        raise
    except (DeviceError, DeviceLost) as error:
        raise BrokenRule(rule, f"{what} fails with {type(error).__name__}: {first_line(error)}") from error
    except Exception as error:
        wanted = "what a backend may raise is DeviceError, DeviceLost or ConnectionLost"
        raise BrokenRule(rule, f"{what} raises {first_line(error)}; {wanted}") from error


@dataclass
class Checking:
    backend: Backend
    ran: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def compiled(self, rule: str, body: Body, what: str) -> Compiled:
        """What it makes of a body that every backend has."""
        found = self.taken(rule, body, what)
        if isinstance(found, str):
            raise BrokenRule(rule, f"it does not take {what}, which every backend must have: {found}")
        return found

    def taken(self, rule: str, body: Body, what: str) -> Compiled | str:
        """What it makes of a body, accepted by its device; or what it says when it refuses it."""
        named: list[str] = []
        with told(rule, f"prepare, for {what},"):
            found = self.backend.prepare({"an operator": body}, lambda name, _: named.append(name))
        if list(found) != ["an operator"] or named != ["an operator"]:
            raise BrokenRule(rule, f"prepare of one body gives {sorted(found)}, and tells of {named}, not of that one alone")
        prepared = found["an operator"]
        if (prepared.compiled is None) != (prepared.status != "ok"):
            raise BrokenRule(rule, f"prepare of {what} gives status {prepared.status!r} and {type(prepared.compiled).__name__}")
        if prepared.compiled is None:
            if not prepared.message or prepared.stage is None:
                raise BrokenRule(rule, f"prepare refuses {what} without a message and a stage")
            return prepared.message
        try:
            with told(rule, f"load, for {what},"):
                self.backend.load(prepared.compiled)
        except BrokenRule as error:
            cause = error.__cause__
            if not isinstance(cause, DeviceError):
                raise
            if self.backend.target.language == LANGUAGE.name and cause.stage != "convert":
                raise BrokenRule(rule, f"{cause}; what an engine does not have is refused with NotSupported") from cause
            return str(cause)
        self.described(rule, body, prepared.compiled, what)
        return prepared.compiled

    def described(self, rule: str, body: Body, compiled: Compiled, what: str) -> None:
        """Whether what is said of it fits the body."""
        stored = self.backend.target.stored
        for side, given, wanted in (
            ("inputs", compiled.inputs, body.inputs), ("outputs", compiled.outputs, body.output_specs),
        ):  # fmt: skip
            right = tuple(TensorSpec(spec.shape, stored(spec.dtype)) for spec in wanted)
            if tuple(given) != right:
                shown = [" and ".join(map(str, specs)) for specs in (given, right)]
                raise BrokenRule(rule, f"the {side} of {what} are {shown[0]}, and should be {shown[1]}")
        for output, source in compiled.forwards:
            if body.outputs[output] != f"i{source}":
                raise BrokenRule(rule, f"forwards of {what} say that output {output} is input {source}, which it is not")

    def buffer(self, array: HostArray) -> int:
        buffer = self.backend.pool.allocate(array.nbytes)
        self.backend.write(buffer, as_bytes(array))
        return buffer

    def read(self, buffer: int, spec: TensorSpec) -> HostArray:
        (data,) = self.backend.read_many([(buffer, spec.nbytes, 0)])
        return np.frombuffer(data, NUMPY[spec.dtype]).reshape(spec.shape)

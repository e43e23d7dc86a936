"""What can be changed on the way from an operator to its run on a target: how a fault is put in at the level where it would
arise.

    class Broken(Alteration):
        def program(self, operator, target, program): ...      rewrites what one kernel does

A run without a fault has no alteration. Testing, migrating, bisecting and explaining hold the alteration in one place, the
workbench, so all of them run the same altered operators. Each hook is told which operator it is for, and returns the very same
object where it changes nothing. `--inject FILE.py:FUNCTION` is one (`tapml.migrate.inject`); the fault catalogue has others.
"""

from __future__ import annotations

from tapml.devices.interface import Device
from tapml.kernels import Program
from tapml.operators.graph import Body, Operator
from tapml.tensors import HostArray


class Alteration:
    """The base changes nothing. `text` is what people call it, `digest` its identity for caches and journals: equal digests
    alter equally."""

    def __init__(self, text: str, digest: str) -> None:
        self.text = text
        self.digest = digest

    def body(self, operator: Operator, body: Body) -> Body:
        """Graph level: another body of the same inputs and outputs is compiled. What the source computes stays what it was."""
        return body

    def mutation(self, operator: Operator) -> str | None:
        """Conversion, lowering or schedule level: a name of `tapml.compile.mutations`, applied while compiling, whatever the
        target."""
        return None

    def schedule(self, operator: Operator) -> str | None:
        """A schedule that is tried before the target's own."""
        return None

    def program(self, operator: Operator, target: str, program: Program) -> Program:
        """Text and launches of the kernels for this target alone."""
        return program

    def weight(self, operator: Operator, key: str, array: HostArray) -> HostArray:
        """A weight on its way to the device, for this operator."""
        return array

    def value(self, graph: str, name: str, array: HostArray) -> HostArray:
        """A graph's input or a state on its way to the device in a hybrid; `name` is the placeholder's key."""
        return array

    def device(self, device: Device) -> Device:
        """The platform as it really is."""
        return device

    def touches(self, operator: Operator) -> bool:
        """Whether this operator is what an alteration of the `device` is about; the other hooks speak for themselves."""
        return False

    @property
    def kernels_changed(self) -> tuple[int, int] | None:
        """How many kernels it changed, and of how many, so far; None for an alteration that is not about kernels' text."""
        return None

    def elsewhere(self) -> Alteration:
        """What other targets share of it: the graph and the lowering. A fault of one target's text is not on the others."""
        return _Shared(self)


class _Shared(Alteration):
    def __init__(self, whole: Alteration) -> None:
        super().__init__(whole.text, f"{whole.digest} elsewhere")
        self._whole = whole

    def body(self, operator: Operator, body: Body) -> Body:
        return self._whole.body(operator, body)

    def mutation(self, operator: Operator) -> str | None:
        return self._whole.mutation(operator)

    def schedule(self, operator: Operator) -> str | None:
        return self._whole.schedule(operator)

"""A backend that does something else than it was asked: how a fault is put in at the level where it would arise.

    class Broken(Rewrite):
        def program(self, operator, target, program): ...      rewrites what one kernel does

    with Workbench(run, Rewritten(backend, Broken("broken", "broken"))) as bench: ...

Whoever tests, migrates, bisects and explains on such a backend runs the same rewritten operators, and knows nothing of it.
`--inject FILE.py:FUNCTION` is a rewrite (`tapml.migrate.inject`); the fault catalogue has others. One that quantizes weights
belongs here too: `weight` then gives codes and scales, and says their encoding beside the dtype; `body` unpacks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tapml.backends.forwarding import Forwarding
from tapml.backends.interface import PLAIN, Backend, OnPrepared, Prepared, Way
from tapml.devices.interface import Device
from tapml.kernels import Program
from tapml.operators.graph import Body
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import HostArray


class Rewrite:
    """The base changes nothing. `text` is what people call it, `digest` its identity for caches and journals: equal digests
    rewrite equally. Each method is told the name of the operator (or graph) that it is for, and returns the very same object
    where it changes nothing."""

    def __init__(self, text: str, digest: str) -> None:
        self.text = text
        self.digest = digest

    def body(self, operator: str, body: Body) -> Body:
        """Graph level: another body of the same inputs and outputs is prepared. What the source computes stays what it was."""
        return body

    def way(self, operator: str, way: Way, target: Target) -> Way:
        """Conversion, lowering or schedule level: how the body is prepared, whatever the target."""
        return way

    def program(self, operator: str, target: str, program: Program) -> Program:
        """Text and launches of the kernels for this target alone."""
        return program

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        """A weight on its way up, for this operator ("": for none, as where it is an output of the graph)."""
        return array

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        """A graph's input or a state on its way up."""
        return array

    def device(self, device: Device) -> Device:
        """The platform as it really is."""
        return device

    @property
    def kernels_changed(self) -> tuple[int, int] | None:
        """How many kernels it changed, and of how many, so far; None for a rewrite that is not about kernels' text."""
        return None

    def require_change(self, operators: Sequence[str], target: str) -> None:
        """Raises UsageError where it should have changed something of these operators, which were prepared, and did not."""

    def elsewhere(self) -> Rewrite:
        """What other targets share of it: the graph and the lowering. A fault of one target's text is not on the others."""
        return _Shared(self)


class _Shared(Rewrite):
    def __init__(self, whole: Rewrite) -> None:
        super().__init__(whole.text, f"{whole.digest} elsewhere")
        self._whole = whole

    def body(self, operator: str, body: Body) -> Body:
        return self._whole.body(operator, body)

    def way(self, operator: str, way: Way, target: Target) -> Way:
        return self._whole.way(operator, way, target)


class Rewritten(Forwarding):
    """`inner` with a rewrite before it. `rewritten` puts it there, and takes it away."""

    def __init__(self, inner: Backend, rewrite: Rewrite) -> None:
        super().__init__(inner)
        self._rewrite = rewrite
        inner.through(rewrite.device)

    @property
    def rewrite(self) -> Rewrite:
        return self._rewrite

    def body(self, operator: str, body: Body) -> Body:
        return self.inner.body(operator, self.rewrite.body(operator, body))

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        return self.inner.weight(operator, key, self.rewrite.weight(operator, key, array))

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        return self.inner.value(graph, key, self.rewrite.value(graph, key, array))

    def prepare(
        self, bodies: Mapping[str, Body], on_prepared: OnPrepared | None = None, way: Way = PLAIN
    ) -> dict[str, Prepared]:
        found: dict[str, Prepared] = {}
        by_way: dict[Way, dict[str, Body]] = {}
        for operator, body in bodies.items():
            by_way.setdefault(self._way(operator, way), {})[operator] = self.rewrite.body(operator, body)

        def tell(operator: str, prepared: Prepared) -> None:
            found[operator] = self._finished(operator, prepared)
            if on_prepared is not None:
                on_prepared(operator, found[operator])

        for one, some in by_way.items():
            self.inner.prepare(some, tell, one)
        return found

    def variant(
        self, operator: str, body: Body, options: Mapping[str, str], way: Way = PLAIN
    ) -> tuple[TargetChoice, Prepared]:
        choice, prepared = self.inner.variant(operator, self.rewrite.body(operator, body), options, self._way(operator, way))
        return choice, self._finished(operator, prepared)

    def converted(
        self, operator: str, body: Body, inputs: Sequence[HostArray], way: Way = PLAIN
    ) -> list[HostArray] | str:
        return self.inner.converted(operator, self.rewrite.body(operator, body), inputs, self._way(operator, way))

    def changes(self, operator: str, body: Body) -> bool:
        """Whether it changes what is prepared for an operator: its body, how that is prepared, or what comes out."""
        if self.rewrite.body(operator, body) is not body or self._way(operator, PLAIN) is not PLAIN:
            return True
        prepared = self.inner.prepare({operator: body})[operator]
        return self._finished(operator, prepared) is not prepared

    def _way(self, operator: str, way: Way) -> Way:
        return self.rewrite.way(operator, way, self.target)

    def _finished(self, operator: str, prepared: Prepared) -> Prepared:
        program = prepared.compiled
        if not isinstance(program, Program):
            return prepared
        other = self.rewrite.program(operator, self.choice.name, program)
        return prepared if other is program else replace(prepared, compiled=other)


def rewritten(backend: Backend, rewrite: Rewrite | None) -> Backend:
    """The backend with this rewrite (None: with none) in place of the one that it has."""
    plain = backend.inner if isinstance(backend, Rewritten) else backend
    if rewrite is not None:
        return Rewritten(plain, rewrite)
    plain.through(None)
    return plain

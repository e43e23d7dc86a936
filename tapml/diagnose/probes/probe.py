"""What a probe is: one question about an operator, answered by running, reading or compiling it with one thing changed.

    class Grid(Probe):
        name, question = "grid", "Is the same text right with more workgroups?"
        right = "The same text is right with more workgroups: too few were launched."
        kernels_only = True

        def run(self, subject: Subject) -> Evidence: ...

A probe is one class, in a file with what it is made of; `catalogue.PROBES` lists them in the order in which they are made. From
that list follow what `explain` makes, the words of its report, the names that `explain/decide.py` may use, and the table in
docs/explain.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tapml.backends.interface import Compiled, Prepared
from tapml.diagnose.probes.evidence import Evidence, Finding, Question
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.diagnose.probes.shots import Shot
from tapml.migrate.operator_test import Trial
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator

if TYPE_CHECKING:
    from tapml.diagnose.probes.guard_bytes import Watched


class Probe(Question, ABC):
    """A question that one operator on one call is asked. It is made where its outcome may change the stage, or `always`:
    without these nothing is known, or what they show is worth saying beside any stage. `kernels_only`: it changes the kernels,
    reads them, or compiles them for something else, so only a backend with kernels can be asked."""

    always = False
    kernels_only = False

    @abstractmethod
    def run(self, subject: Subject) -> Evidence:
        """Raises UnavailableError where the device cannot be opened again after it died. What later probes need is left in
        `subject`."""


@dataclass
class Subject:
    """One operator on one call, and what the probes have seen of it so far. `first` is the run as it is; `repeats` is how often
    it takes to see the fault again."""

    bench: Workbench
    operator: Operator
    trial: Trial
    backends: ReferenceBackends
    prepared: Prepared | None = None
    evidence: dict[str, Evidence] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    first: Shot = field(default_factory=Shot)
    watched: Watched | None = None
    repeats: int = 1

    @property
    def program(self) -> Compiled:
        """What runs; there must be something."""
        assert self.prepared is not None and self.prepared.compiled is not None
        return self.prepared.compiled

    @property
    def here(self) -> str:
        return str(self.bench.choice)

    @property
    def memory_matters(self) -> bool:
        """Whether the fault shows over some contents of memory only, so that the other runs must be judged over all of them."""
        return self.watched is not None and self.first is self.watched.shot

    @property
    def writes_beyond(self) -> bool:
        """Whether it writes behind its buffers."""
        return self.watched is not None and self.watched.writes_beyond

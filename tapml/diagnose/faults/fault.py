"""What a fault class is: facts about a real kind of bug, and how to put it into one operator.

    rewrite = fault.place(operator, body, site)     None: this operator does not have what the fault needs
    with Workbench.on(run, "opencl", inject=rewrite) as bench: ...

A class is plain data around one function, `place`. It looks at an operator, its body and, through a `Site`, at the program
that the operator compiles to, and returns the `Rewrite` that makes just this one operator wrong. The classes stand in
the files beside this one, grouped by what they change; `catalogue.py` lists all of them in order. Nothing here is imported
by the path that tests and migrates models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tapml.carving.folder import RunFolder
from tapml.kernels import Program
from tapml.languages import LANGUAGES, Language
from tapml.operators.graph import Body, Operator
from tapml.targets.known import TARGETS
from tapml.targets.target import Target
from tapml.verdicts import Stage

if TYPE_CHECKING:
    from tapml.backends.rewrite import Rewrite
    from tapml.deploy.bundle import BundleFolder
    from tapml.deploy.composition import Composition

Level = Literal["kernel text", "schedule", "lowering", "graph", "state", "weights", "launch", "plan"]


@dataclass(frozen=True)
class Site:
    """What `FaultClass.place` may look at besides the operator and its body. `program` is the clean one with the default
    schedule (None where it does not compile); `compile` gives the clean program with another schedule, such as "dlight"."""

    run: RunFolder
    target: Target
    program: Program | None
    compile: Callable[[str], Program | None]


@dataclass(frozen=True)
class PlanFault:
    """A fault of composition in one place: the operator that is wrong because of it, and the one that it takes besides."""

    operator: str
    other: str | None
    composition: Composition


# Levels whose faults are put into what the compiler gives; the others look at the model only.
COMPILED: tuple[Level, ...] = ("kernel text", "schedule", "lowering", "launch")
NO_KERNELS = "that target runs no kernels of TapML"


@dataclass(frozen=True)
class FaultClass:
    """One class of bugs. `number` is its place in the catalogue (1 to 34), `name` what people type. `stage` is the true
    stage, which triage should name. `imitates` says which real bug it stands for and where the imitation is smaller than the
    real thing; `seen_in` where that was reported ("apache/tvm#16438"); `cannot` which targets cannot express it, and why. A class
    of the level "plan" is put into a bundle by `compose`, place by place, all others into an operator by `place`."""

    number: int
    name: str
    title: str
    level: Level
    stage: Stage
    imitates: str
    seen_in: tuple[str, ...]
    cannot: dict[str, str]
    place: Callable[[Operator, Body, Site], Rewrite | None]
    compose: Callable[[BundleFolder, int], Iterator[PlanFault]] | None = None

    def why_not(self, target: str) -> str:
        """Why the target of this name cannot express it; "" for one that can. Engines of packages run no kernels of TapML."""
        engine = target not in TARGETS and self.level in COMPILED
        return self.cannot.get(target, NO_KERNELS if engine else "")

    def to_json(self) -> dict[str, Any]:
        """Everything but the functions."""
        return {
            "number": self.number, "name": self.name, "title": self.title, "level": self.level, "stage": self.stage,
            "imitates": self.imitates, "seen_in": list(self.seen_in), "cannot": dict(self.cannot),
        }


def cannot(why: Callable[[Language], str]) -> dict[str, str]:
    """Which targets cannot express a fault, and why, by what `why` says of their languages; "" for one that can."""
    return {target.name: words for target in TARGETS.values() if (words := why(LANGUAGES[target.language]))}


def without_threads(words: str) -> dict[str, str]:
    """The targets where a kernel is one call in one thread cannot, for this reason."""
    return cannot(lambda language: "" if language.threads else words)

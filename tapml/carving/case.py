"""One recorded call of an operator, as the run keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tapml import strict
from tapml.carving.tolerance import Accuracy
from tapml.tensors import Layout

# How the reasons of calls at late positions begin (see `tapml.carving.late`).
LATE_POSITION = "late position"


@dataclass(frozen=True)
class Case:
    """`file` (relative to the run) is a safetensors file with "i{k}" for each body input k that is no weight, and "o{k}"
    for each output, and what the output is judged by (`tapml.carving.folder`). `prompt` and `step` say when: step 0 is the first
    call of the generation, prefill chunks counted; of a late call ("late position 159" in `reasons`) `prompt` is 0 and `step`
    counts the calls of the check of the whole model. `reasons` say why it was kept ("first layer", "largest magnitude", …).
    `accuracy` says, for each output, how exact the source is; `layouts`, by input, how those lay in memory that were not
    contiguous."""

    id: str
    operator: str
    signature: str
    graph: str
    prompt: int
    step: int
    reasons: tuple[str, ...]
    file: str
    accuracy: tuple[Accuracy, ...]
    layouts: tuple[tuple[int, Layout], ...] = ()

    @property
    def source_error(self) -> tuple[float, ...]:
        """For each output the distance of the source from float64, in the unit of `tapml.carving.distance.distance` (0.0 for an
        output that must be equal)."""
        return tuple(a.error for a in self.accuracy)

    @property
    def late(self) -> bool:
        """Whether it is a call of the text that fills the cache."""
        return any(reason.startswith(LATE_POSITION) for reason in self.reasons)

    @property
    def label(self) -> str:
        """ "case7", or "case7 (late position 159)"."""
        return f"{self.id} ({', '.join(self.reasons)})" if self.late else self.id

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "operator": self.operator,
            "signature": self.signature,
            "graph": self.graph,
            "prompt": self.prompt,
            "step": self.step,
            "reasons": list(self.reasons),
            "file": self.file,
            "accuracy": [a.to_json() for a in self.accuracy],
            "layouts": [[k, list(layout.strides), layout.offset] for k, layout in self.layouts],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        return Case(
            strict.name(data, "id"), strict.name(data, "operator"), strict.hexadecimal(data, "signature"),
            strict.name(data, "graph"), strict.whole(data, "prompt"), strict.whole(data, "step"),
            strict.several(strict.text, data, "reasons"), strict.name(data, "file"),
            tuple(Accuracy.from_json(a) for a in strict.items(data, "accuracy")),
            tuple(
                (strict.whole(item, 0), Layout(strict.several(strict.whole, item, 1), strict.whole(item, 2)))
                for item in strict.items(data, "layouts")
            ) if "layouts" in data else (),
        )

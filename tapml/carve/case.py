"""One recorded call of an operator, as the run keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """`file` (relative to the run) is a safetensors file with "i{k}" for each body input k that is no weight, and "o{k}"
    for each output. `prompt` and `step` say when: step 0 is the first call of the generation, prefill chunks counted.
    `reasons` say why it was kept ("first layer", "largest magnitude", …). `source_error` is, for each output, the
    distance of the source from the float64 oracle, in the unit of `tapml.carve.tolerance.distance` (0.0 for an output that
    must be equal)."""

    id: str
    operator: str
    signature: str
    graph: str
    prompt: int
    step: int
    reasons: tuple[str, ...]
    file: str
    source_error: tuple[float, ...]

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
            "source_error": list(self.source_error),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        return Case(
            data["id"], data["operator"], data["signature"], data["graph"], data["prompt"], data["step"],
            tuple(data["reasons"]), data["file"], tuple(data["source_error"]),
        )

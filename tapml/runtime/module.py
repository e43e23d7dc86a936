"""The kind "module": any module that is one graph, called with example inputs, each time from the first states on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tapml.runtime.protocol import Call, ModelProtocol
from tapml.tensors import FLOATS, HostArray, dtype_name


@dataclass(frozen=True)
class Module(ModelProtocol):
    """`graph` is the name of its graph."""

    kind = "module"
    noun = "example"

    graph: str = "forward"

    @property
    def graphs(self) -> tuple[str, ...]:
        return (self.graph,)

    def to_json(self) -> None:
        return None

    @staticmethod
    def from_json(data: None) -> Module:
        if data is not None:
            raise ValueError("a module has no shape of its own")
        return Module()

    def check(self, given: Mapping[str, HostArray], answer: Sequence[int]) -> list[Call]:
        return [Call(self.graph, dict(given), 0, 1)]

    def scores(self, key: str, output: HostArray) -> bool:
        """It is called logits, or it is one score a class [batch, classes]. In an image, a mask or a hidden state the largest
        element means nothing."""
        if dtype_name(output) not in FLOATS or not output.size or not output.ndim or output.shape[-1] < 2:
            return False
        return "logits" in key.lower() or output.ndim == 2

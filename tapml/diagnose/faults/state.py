"""Faults of the state: every operator is right with what it is given, and what it is given is wrong.

No test of an operator alone can see these. The whole model does: after prefill, tokens go to the wrong place in the cache.
"""

from __future__ import annotations

import hashlib

import numpy as np

from tapml.backends.rewrite import Rewrite
from tapml.diagnose.faults.fault import FaultClass, Site
from tapml.operators.graph import Body, Operator
from tapml.runtime.protocol import Generating
from tapml.tensors import HostArray


class LatePosition(Rewrite):
    """While decoding, the position arrives on the device one too high, up to the last one of the cache (`last`)."""

    def __init__(self, operator: Operator, positions: str, last: int) -> None:
        digest = hashlib.blake2b(f"late position\0{last}".encode(), digest_size=16).hexdigest()
        super().__init__(f"fault 20 (position one too high) at {operator.name}", digest)
        self._graph, self._positions, self._last = operator.graph, positions, last

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        if graph != self._graph or key != self._positions:
            return array
        late: HostArray = np.minimum(array + 1, self._last).astype(array.dtype)
        return late


def _late(operator: Operator, body: Body, site: Site) -> LatePosition | None:
    """At the first operator of decode that is given the position: what is handed over is handed to all, so one place stands for
    the run."""
    protocol = site.run.protocol
    if not isinstance(protocol, Generating) or protocol.positions is None or operator.graph != protocol.appends:
        return None
    graph = next(g for g in site.run.graphs if g.name == operator.graph)
    position = next((p.name for p in graph.inputs if p.key == protocol.positions), None)
    reads = [o.name for o in site.run.operators if o.graph == operator.graph and position in o.inputs]
    return LatePosition(operator, protocol.positions, protocol.max_len - 1) if reads[:1] == [operator.name] else None


CLASSES = (
    FaultClass(
        number=20, name="late-position", title="the cache position is one too high after prefill",
        level="state", stage="state",
        imitates="A runtime that counts one token too many when it goes over from the prompt to decoding. All operators on the "
        "device get it at once (rotary embedding, mask and cache). At the last position of the cache the real fault would write "
        "out of bounds; this one stays inside.",
        seen_in=("microsoft/onnxruntime-genai#2354", "mlc-ai/mlc-llm#2644"), cannot={}, place=_late,
    ),
)

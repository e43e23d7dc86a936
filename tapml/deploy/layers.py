"""The values at which a model's layers end, on the source and on a bundle, while calls run.

    ends = layer_ends(model, "decode")                   {"layers.0": (values), …}, in execution order
    stepper = SourceInside(hybrid, model, {"decode": ends})
    stepper.step("decode", inputs); stepper.inside       {"layers.0": array, …} of this call

A layer is the operators whose names begin alike up to the first number ("layers.3", "h.3"). It ends at the last of them, in
execution order, that gives something to operators outside of it: in a transformer the sum that goes on to the next layer. On the
bundle every value keeps memory of its own until the call is over and is read then, as in the first probe of
`tapml.deploy.composition`: all of a call is still submitted at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tapml.deploy.plan import make_plan
from tapml.deploy.session import Session
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.model import ModelData
from tapml.tensors import HostArray

# Values by layer, by graph.
Ends = Mapping[str, Mapping[str, tuple[str, ...]]]


def layer_of(operator: str, graph: str) -> str:
    """"" for an operator that is in none: its name has no number, or one at its end that tells it from others of its kind."""
    parts = operator.removeprefix(f"{graph}/").split(".")
    place = next((k for k, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: place + 1]) if 0 < place < len(parts) - 1 else ""


def layer_ends(model: ModelData, graph: str) -> dict[str, tuple[str, ...]]:
    """See the module's docstring. Empty for a model without layers."""
    layers = {operator.name: layer_of(operator.name, graph) for operator in model.operators_of[graph]}
    readers: dict[str, set[str]] = {value: {""} for value in model.graphs[graph].outputs}
    for operator in model.operators_of[graph]:
        for value in operator.inputs:
            readers.setdefault(value, set()).add(layers[operator.name])
    found: dict[str, tuple[str, ...]] = {}
    for operator in model.operators_of[graph]:
        layer = layers[operator.name]
        given = tuple(value for value in operator.outputs if readers.get(value, set()) - {layer})
        if layer and given:
            found[layer] = given
    return found


def _together(values: Mapping[str, HostArray], names: tuple[str, ...]) -> HostArray:
    return np.concatenate([values[name].reshape(-1).astype(np.float64) for name in names])


class SourceInside:
    """A `Stepper` over a hybrid with nothing offloaded. `inside` is of the last call, empty for a graph without ends."""

    def __init__(self, hybrid: Hybrid, model: ModelData, ends: Ends) -> None:
        self._hybrid, self._model, self._ends = hybrid, model, ends
        self.inside: dict[str, HostArray] = {}

    def reset(self) -> None:
        self._hybrid.reset()

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        self.inside = {}
        ends = self._ends.get(graph, {})
        if not ends:
            return self._hybrid.step(graph, inputs)
        facts = self._model.graphs[graph]
        wanted = {*facts.outputs, *(name for names in ends.values() for name in names)}
        values = dict(inputs)
        for operator, outputs in self._hybrid.observe(graph, inputs):
            values.update((name, array) for name, array in zip(operator.outputs, outputs, strict=True) if name in wanted)
        self.inside = {layer: _together(values, names) for layer, names in ends.items()}
        return {key: values[name] for key, name in zip(facts.output_keys, facts.outputs, strict=True)}


class BundleInside:
    """A `Stepper` over another player of a session, which `close` ends."""

    def __init__(self, session: Session, ends: Ends) -> None:
        bundle = session.bundle
        plan = make_plan(bundle.model, bundle.programs, bundle.plan, reuse=False)
        self._player = session.player(plan)
        self._ends = ends
        wanted = {graph: {name for names in those.values() for name in names} for graph, those in ends.items()}
        self._places = {
            graph: [
                (value, place)
                for launch in plan.graphs[graph].launches
                for value, place in zip(bundle.model.named[launch.operator].outputs, launch.outputs, strict=True)
                if value in names
            ]
            for graph, names in wanted.items()
        }
        self.inside: dict[str, HostArray] = {}

    def reset(self) -> None:
        self._player.reset()

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        self.inside = {}
        places = self._places.get(graph, [])
        if not places:
            return self._player.step(graph, inputs)
        self._player.begin(graph, inputs)
        self._player.launch(graph, 0, len(self._player.plan.graphs[graph].launches))
        arrays = self._player.values(graph, places)
        values = {value: array for (value, _), array in zip(places, arrays, strict=True)}
        self.inside = {layer: _together(values, names) for layer, names in self._ends[graph].items()}
        return self._player.end(graph)

    def close(self) -> None:
        self._player.close()

"""A model and a device that compute with whole numbers, exactly and in plain Python: for testing what moves where.

Every value is an int64 vector (int32 on the device). Operator number n of a model gives, in element j of output k, a mix of
n, k, j and all elements of its inputs: any stale, swapped or overwritten buffer changes everything after it. The device
fills new buffers with garbage and knows kernels whose source is "operator number; sizes of inputs; sizes of outputs".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np

from tapml.backends.interface import OnPrepared, Prepared, Way
from tapml.backends.on_device import OnDevice
from tapml.carving.case import Case
from tapml.carving.tolerance import Accuracy, Reference
from tapml.devices.interface import Device, DeviceInfo, Launch, ReadsInTurn
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.migrate.model import Model
from tapml.operators.graph import Body, Graph, Node, Operator, Placeholder
from tapml.runtime.module import Module
from tapml.targets.parse import parse
from tapml.tensors import HostArray, TensorSpec

PRIME = 2_147_483_629


def mix(number: int, inputs: Sequence[HostArray], sizes: Sequence[int]) -> list[HostArray]:
    total = number * 7919 + 13
    for position, array in enumerate(inputs):
        weights = np.arange(1, array.size + 1, dtype=np.int64) * (position + 3)
        total = (total * 31 + int((array.reshape(-1).astype(np.int64) * weights).sum() % PRIME)) % PRIME
    return [(total + np.arange(n, dtype=np.int64) * 104729 + k * 611953) % PRIME for k, n in enumerate(sizes)]


class FakeDevice(ReadsInTurn):
    """A `tapml.devices.interface.Device`; counts what it is asked to do."""

    info = DeviceInfo("null", "fake", "", True)

    def __init__(self) -> None:
        self.buffers: dict[int, bytearray] = {}
        self.kernels: dict[int, Kernel] = {}
        self.made = 0
        self.counts = {"run": 0, "read": 0, "write": 0}

    def allocate(self, nbytes: int) -> int:
        self.made += 1
        self.buffers[self.made] = bytearray(random.Random(self.made).randbytes(nbytes))
        return self.made

    def free(self, buffer: int) -> None:
        del self.buffers[buffer]

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self.counts["write"] += 1
        assert offset + len(data) <= len(self.buffers[buffer])
        self.buffers[buffer][offset : offset + len(data)] = data

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        self.counts["read"] += 1
        return bytes(self.buffers[buffer][offset : offset + nbytes])

    def load(self, kernel: Kernel) -> int:
        self.made += 1
        self.kernels[self.made] = kernel
        return self.made

    def unload(self, kernel: int) -> None:
        del self.kernels[kernel]

    def run(self, batch: Sequence[Launch]) -> None:
        self.counts["run"] += 1
        for launch in batch:
            number, given, made = (list(map(int, part.split())) for part in self.kernels[launch.kernel].source.split(";"))
            assert len(launch.buffers) == len(given) + len(made)
            assert len(set(launch.buffers[len(given):])) == len(made), "outputs share a buffer"
            assert not set(launch.buffers[len(given):]) & set(launch.buffers[: len(given)]), "an output overwrites an input"
            inputs = [np.frombuffer(self.buffers[b], np.int32, n) for b, n in zip(launch.buffers, given, strict=False)]
            for buffer, result in zip(launch.buffers[len(given):], mix(number[0], inputs, made), strict=True):
                self.buffers[buffer][: 4 * result.size] = result.astype(np.int32).tobytes()

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.buffers.clear()


class FakeBackend(OnDevice):
    """A backend for fake models, on whatever `device` makes, which is called anew each time that it is opened. The operators in
    `failing` and `crashing`, by number, do not compile."""

    has_kernels = True

    def __init__(
        self, device: Callable[[], Device] = FakeDevice, name: str = "local", failing: Collection[int] = (),
        crashing: Collection[int] = (),
    ) -> None:
        self._make = device
        self.failing, self.crashing = failing, crashing
        self.compiled: list[str] = []
        super().__init__(parse("cpu"), name)

    def _opened(self) -> Device:
        return self._make()

    def _prepare(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        for signature, body in bodies.items():
            number = body.nodes[0].args[0]
            self.compiled.append(str(number))
            if number in self.crashing or number in self.failing:
                status: Literal["crash", "error"] = "crash" if number in self.crashing else "error"
                tell(signature, Prepared(None, status, "lower", "no such thing", 0.0))
            else:
                tell(signature, Prepared(fake_program(body), "ok", None, "", 0.0))


def fake_program(body: Body) -> Program:
    """The body's first node says which operator it is, and whether that gives its first input back."""
    number, forward = body.nodes[0].args
    given = tuple(TensorSpec(s.shape, "int32") for s in body.inputs)
    made = tuple(TensorSpec(s.shape, "int32") for s in body.output_specs)
    if forward:
        return Program((), (), given, made, (), "fake", ((0, 0),))
    source = ";".join([str(number), " ".join(str(s.elements) for s in given), " ".join(str(s.elements) for s in made)])
    kernel = Kernel("null", f"k{number}", source, (), (1, 1, 1), (1, 1, 1))
    arguments = [Argument("input", k) for k in range(len(given))] + [Argument("output", k) for k in range(len(made))]
    return Program((kernel,), (Step(0, tuple(arguments)),), given, made, (4 * (number % 5),), "fake")


class FakeModel(Model):
    """`forwards` are operators that give their first input back unchanged."""

    forwards: frozenset[int]

    def source(self, signature: str) -> Callable[[Sequence[HostArray]], tuple[HostArray, ...]]:
        number = int(signature)
        sizes = [s.elements for s in self.bodies[signature].output_specs]
        if number in self.forwards:
            return lambda inputs: (inputs[0],)
        return lambda inputs: tuple(mix(number, inputs, sizes))

    def program(self, operator: Operator) -> Program:
        return fake_program(self.bodies[operator.signature])


def fake_model(random: random.Random, graphs: int = 2, operators: int = 12, states: int = 3) -> FakeModel:
    """A random model: graphs that share weights and states, values of random sizes read by random later operators."""
    weights = {f"w{n}": TensorSpec((random.randint(1, 5),), "int64") for n in range(3)}
    state_specs = {f"s{n}": TensorSpec((random.randint(1, 6),), "int64") for n in range(states)}
    made_graphs: list[Graph] = []
    made_operators: list[Operator] = []
    bodies: dict[str, Body] = {}
    forwards: set[int] = set()
    for g in range(graphs):
        places = [Placeholder("x", "input", "x", TensorSpec((random.randint(1, 4),), "int64"))]
        places += [Placeholder(f"p_{k}", "weight", k, s) for k, s in weights.items() if random.random() < 0.8]
        places += [Placeholder(f"p_{k}", "state", k, s) for k, s in state_specs.items() if random.random() < 0.8]
        specs = {p.name: p.spec for p in places}
        nodes: list[Node] = []
        written: dict[str, str] = {}
        for n in range(operators):
            number = len(made_operators)
            inputs = [random.choice(list(specs)) for _ in range(random.randint(1, 3))]
            forward = random.random() < 0.15
            sizes = [specs[inputs[0]]] if forward else [TensorSpec((random.randint(1, 6),), "int64")
                                                        for _ in range(random.randint(1, 2))]
            free = [p for p in places if p.role == "state" and p.key not in written]
            if free and random.random() < 0.4:
                state = random.choice(free)
                if not forward or sizes[0] == state.spec:
                    sizes[0] = state.spec
                    written[state.key] = f"v{n}_0"
            names = [f"v{n}_{k}" for k in range(len(sizes))]
            nodes += [Node(name, "fake", (), {}, (spec,)) for name, spec in zip(names, sizes, strict=True)]
            locals_ = tuple(Node(f"n{k}", "fake", (number, forward), {}, (s,)) for k, s in enumerate(sizes))
            roles = tuple(next((p.role for p in places if p.name == name), "value") for name in inputs)
            bodies[str(number)] = Body("fake", tuple(specs[i] for i in inputs), roles, locals_,
                                       tuple(node.name for node in locals_))
            if forward:
                forwards.add(number)
            made_operators.append(Operator(f"g{g}/op{n}", f"g{g}", "fake", str(number), tuple(inputs), tuple(names),
                                           tuple(names), ""))
            specs.update(zip(names, sizes, strict=True))
        outputs = random.sample(list(specs), min(3, len(specs)))
        made_graphs.append(Graph(f"g{g}", tuple(places), tuple(nodes), tuple(outputs),
                                 tuple(f"out{k}" for k in range(len(outputs))), written))
    arrays = {k: np.arange(s.elements, dtype=np.int64) * 17 + 5 for k, s in {**weights, **state_specs}.items()}
    model = FakeModel(made_graphs, made_operators, bodies, arrays.__getitem__, {k: arrays[k] for k in state_specs})
    model.forwards = frozenset(forwards)
    return model


def reference(model: FakeModel, calls: Sequence[tuple[str, HostArray]]) -> list[dict[str, HostArray]]:
    """What a sequence of calls gives, in the plainest way."""
    states = dict(model.initial_states)
    results = []
    for name, x in calls:
        graph = model.graphs[name]
        values = {p.name: x if p.role == "input" else model.weight(p.key) if p.role == "weight" else states[p.key]
                  for p in graph.placeholders}
        for operator in model.operators_of[name]:
            made = model.source(operator.signature)([values[i] for i in operator.inputs])
            values.update(zip(operator.outputs, made, strict=True))
        states.update({key: values[value] for key, value in graph.mutations.items()})
        results.append({key: values[value] for key, value in zip(graph.output_keys, graph.outputs, strict=True)})
    return results


class FakeRun:
    """What a `RunFolder` offers to testing and migrating, over a fake model that is no decoder: one example, and one recorded
    call of each operator."""

    kind = "module"
    late = None
    positions = None
    prompts = ()
    digest = "fake"

    def __init__(self, path: Path, seed: int = 0, operators: int = 12) -> None:
        rng = random.Random(seed)
        self.path = path
        self.model = fake_model(rng, graphs=1, operators=operators)
        self.graphs = tuple(self.model.graphs.values())
        self.protocol = Module(self.graphs[0].name)
        self.operators, self.bodies = self.model.operators, self.model.bodies
        self.initial_states = self.model.initial_states
        (graph,) = self.graphs
        x = np.arange(graph.inputs[0].spec.elements, dtype=np.int64) + 3
        self.examples = ({"x": x},)
        line = {"prompt": 0, "step": 0, "graph": graph.name, "source_error": {}, "excluded": {}, "straddling": {}, "spread": {}}
        self.oracle = (line,)
        self.weights = SimpleNamespace(entries={p.key: SimpleNamespace(digest=p.key) for p in graph.weights})
        self._calls: dict[str, tuple[list[HostArray], list[HostArray]]] = {}
        values = {p.name: self.model.weight(p.key) for p in graph.weights} | {p.name: x for p in graph.inputs}
        values |= {p.name: self.initial_states[p.key] for p in graph.states}
        for o in self.operators:
            inputs = [values[i] for i in o.inputs]
            made = self.model.source(o.signature)(inputs)
            values.update(zip(o.outputs, made, strict=True))
            self._calls[o.name] = (inputs, list(made))
        self.cases = tuple(
            Case(o.name, o.name, o.signature, graph.name, 0, 0, (), "", (Accuracy(),) * len(o.outputs)) for o in self.operators
        )

    def operator(self, name: str) -> Operator:
        return self.model.named[name]

    def case(self, id: str) -> Case:
        return next(c for c in self.cases if c.id == id)

    def cases_of(self, name: str) -> tuple[Case, ...]:
        return tuple(c for c in self.cases if c.operator == name)

    def cases_of_signature(self, signature: str) -> tuple[Case, ...]:
        return tuple(c for c in self.cases if c.signature == signature)

    def case_references(self, case: Case) -> tuple[list[HostArray], list[Reference]]:
        inputs, outputs = self._calls[case.operator]
        return inputs, [Reference(values) for values in outputs]

    def compound_error(self, name: str) -> dict[int, tuple[float, ...]]:
        return {}

    compound_spread = compound_error

"""A rewrite before a backend: what it changes, what it leaves as it is, and that it can be taken away again."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from tapml.backends.interface import Way
from tapml.backends.rewrite import Rewrite, Rewritten, rewritten
from tapml.devices.faulty import FaultyDevice
from tapml.devices.interface import Device
from tapml.kernels import Program
from tapml.operators.graph import Body
from tapml.targets.target import Target
from tapml.tensors import HostArray
from tests.migrate.fake import FakeBackend, FakeDevice, fake_model

MODEL = fake_model(random.Random(3))
KERNEL = next(o for o in MODEL.operators if int(o.signature) not in MODEL.forwards)
BODY = MODEL.bodies[KERNEL.signature]
ANOTHER = MODEL.bodies[next(o.signature for o in reversed(MODEL.operators) if int(o.signature) not in MODEL.forwards)]


class One(Rewrite):
    """Of the operator "one", in one way."""

    def __init__(self, at: str) -> None:
        super().__init__(at, at)
        self.at = at
        self.ways: list[tuple[str, Way]] = []

    def body(self, operator: str, body: Body) -> Body:
        return ANOTHER if (operator, self.at) == ("one", "body") else body

    def way(self, operator: str, way: Way, target: Target) -> Way:
        return replace(way, mutation="any") if (operator, self.at) == ("one", "way") else way

    def program(self, operator: str, target: str, program: Program) -> Program:
        return replace(program, schedule=target) if (operator, self.at) == ("one", "program") else program

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        return array + 1 if (operator, self.at) == ("one", "weight") else array

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        return array * 2 if self.at == "value" else array


class Telling(FakeBackend):
    """Keeps in which ways it was asked for bodies."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, list[str]]] = []
        super().__init__()

    def _prepare(self, bodies, tell, way) -> None:  # type: ignore[no-untyped-def]
        self.asked.append((way.mutation, [str(body.nodes[0].args[0]) for body in bodies.values()]))
        super()._prepare(bodies, tell, way)


def test_equal_bodies_are_prepared_once_and_told_for_each_operator() -> None:
    backend, told = FakeBackend(), []
    found = backend.prepare({"one": BODY, "two": BODY, "three": ANOTHER}, lambda name, prepared: told.append(name))
    assert sorted(told) == sorted(found) == ["one", "three", "two"] and len(backend.compiled) == 2
    assert found["one"].compiled is found["two"].compiled and [found[n].cached for n in ("one", "two")] == [False, True]
    assert backend.prepare({"later": BODY})["later"].cached and len(backend.compiled) == 2


def test_one_operator_is_rewritten_and_others_with_the_same_body_are_not() -> None:
    plain = Telling()
    clean = plain.prepare({"one": BODY})["one"].compiled
    for at in ("body", "way", "program"):
        backend = Rewritten(plain, One(at))
        plain.asked.clear()
        told: list[str] = []
        found = backend.prepare({"one": BODY, "two": BODY}, lambda name, prepared, told=told: told.append(name))
        assert sorted(told) == ["one", "two"] and found["two"].compiled is clean
        assert (found["one"].compiled == clean) == (at == "way"), "what a mutation does is the compiler's matter"
        number = str(ANOTHER.nodes[0].args[0])
        expected: dict[str, list[tuple[str | None, list[str]]]] = {
            "body": [(None, [number])], "way": [("any", [str(BODY.nodes[0].args[0])])], "program": [],
        }
        assert plain.asked == expected[at]
        assert backend.changes("one", BODY) and not backend.changes("two", BODY)
    assert not Rewritten(plain, One("weight")).changes("one", BODY)


def test_what_goes_up() -> None:
    array = np.arange(3)
    backend = Rewritten(Rewritten(FakeBackend(), One("weight")), One("value"))
    assert backend.weight("one", "w", array).tolist() == [1, 2, 3] and backend.weight("two", "w", array) is array
    assert backend.value("g", "x", array).tolist() == [0, 2, 4], "two rewrites, each of its own"
    assert backend.rewrite.text == "value" and FakeBackend().value("g", "x", array) is array


def test_a_device_is_put_before_the_real_one_and_taken_away() -> None:
    class Before(Rewrite):
        def device(self, device: Device) -> Device:
            return FaultyDevice(device)

    plain = FakeBackend(FakeDevice)
    real, pool = plain.device, plain.pool
    kept = pool.allocate(8)
    backend = rewritten(plain, Before("before", "before"))
    assert isinstance(plain.device, FaultyDevice) and plain.pool is not pool and backend.pool is plain.pool
    assert kept not in real.buffers, "what lay on it is gone"  # type: ignore[attr-defined]
    backend.reopen()
    assert isinstance(plain.device, FaultyDevice), "it stays, whatever happens to the device"
    other = rewritten(backend, One("body"))
    assert isinstance(other, Rewritten) and other.inner is plain and not isinstance(plain.device, FaultyDevice)
    assert rewritten(other, None) is plain and plain.rewrite is None

"""Triage on a real device: a fault of each stage is put in where it would arise, and its stage is named from what runs show."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tapml.backends.interface import Way
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.devices.interface import Device, Launch, ReadsInTurn
from tapml.diagnose.explain.triage import triage
from tapml.diagnose.faults.catalogue import put_in
from tapml.diagnose.probes.catalogue import PROBES
from tapml.diagnose.probes.evidence import Evidence, Triage
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.reference_backends import ANOTHER_TARGET, CPU, ReferenceBackends
from tapml.diagnose.probes.trials import recorded
from tapml.errors import DeviceError
from tapml.kernels import Kernel, Program
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Body
from tapml.report.evidence import chain
from tapml.targets.target import Target
from tapml.tensors import HostArray
from tests.conftest import MakeRun

NORM = "prefill/layers.0.input_layernorm"
LINEAR = "prefill/layers.0.self_attn.q_proj"
OUTPUT = 8 * 64 * 4  # bytes of the norm's output
GATE = "prefill/layers.0.mlp.gated_activation"

Need = Callable[[str], str]


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> RunFolder:
    return make_run("llama")


@pytest.fixture(scope="module")
def bench(run: RunFolder) -> Iterator[Workbench]:
    with Workbench.on(run, "opencl") as bench:
        yield bench


@pytest.fixture(scope="module")
def backends(run: RunFolder, bench: Workbench) -> Iterator[ReferenceBackends]:
    with ReferenceBackends(run, bench) as backends:
        yield backends


Diagnose = Callable[[str, Rewrite | None], Triage]


@pytest.fixture
def diagnose(need: Need, run: RunFolder, bench: Workbench, backends: ReferenceBackends) -> Iterator[Diagnose]:
    need("opencl")

    def diagnosed(name: str, rewrite: Rewrite | None) -> Triage:
        put_in(bench, rewrite)
        backends.put_in(rewrite)
        operator = run.operator(name)
        return triage(bench, operator, next(recorded(run, bench.model, operator)), backends)

    yield diagnosed
    put_in(bench, None)
    backends.put_in(None)


class Fault(Rewrite):
    def __init__(self, operator: str) -> None:
        super().__init__(type(self).__name__, f"{type(self).__name__} {operator}")
        self.operator = operator


class OfTheText(Fault):
    """A rewriting of the text of every kernel, whatever the schedule."""

    def __init__(self, operator: str, change: Callable[[str], str]) -> None:
        super().__init__(operator)
        self.change = change

    def program(self, operator: str, target: str, program: Program) -> Program:
        if operator != self.operator:
            return program
        return program.with_sources(tuple(self.change(k.source) for k in program.kernels))


class OfTheGraph(Fault):
    def body(self, operator: str, body: Body) -> Body:
        if operator != self.operator:
            return body
        return replace(body, nodes=tuple(replace(n, target=n.target.replace("silu", "relu")) for n in body.nodes))


class OfTheConversion(Fault):
    def way(self, operator: str, way: Way, target: Target) -> Way:
        return replace(way, mutation="exp2-for-exp") if operator == self.operator else way


class OfTheLowering(Fault):
    def way(self, operator: str, way: Way, target: Target) -> Way:
        return replace(way, mutation="half-accumulators") if operator == self.operator else way


class OfTheSchedule(Fault):
    def way(self, operator: str, way: Way, target: Target) -> Way:
        first = ("dlight", *(s for s in target.schedules if s != "dlight"))
        other = replace(way, mutation="uninitialised-accumulators", schedules=way.schedules or first)
        return other if operator == self.operator else way


class OfTheWeights(Fault):
    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        return np.roll(array, 1, 0) if operator == self.operator else array


class OfTheGrid(Fault):
    def program(self, operator: str, target: str, program: Program) -> Program:
        if operator != self.operator:
            return program
        x, y, z = program.kernels[-1].grid
        return replace(program, kernels=(*program.kernels[:-1], replace(program.kernels[-1], grid=(x - 1, y, z))))


class Platform(ReadsInTurn):
    """A device that is worse than it says: it refuses at `load` or `run`, or gets some outputs wrong."""

    def __init__(self, device: Device, refuses: str = "", every: int = 0) -> None:
        self._device, self._refuses, self._every, self._reads = device, refuses, every, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)

    def load(self, kernel: Kernel) -> int:
        if self._refuses == "load":
            raise DeviceError("driver", "internal error 0x17")
        return self._device.load(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        if self._refuses == "run":
            raise DeviceError("launch", "binding 1 has 4096 bytes, more than 1024")
        self._device.run(batch)

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        data = self._device.read(buffer, nbytes, offset)
        self._reads += nbytes == OUTPUT
        return bytes(b ^ 0x01 for b in data) if self._every and nbytes == OUTPUT and self._reads % self._every == 0 else data


class OfThePlatform(Fault):
    def __init__(self, operator: str, refuses: str = "", every: int = 0) -> None:
        super().__init__(operator)
        self.refuses, self.every = refuses, every

    def device(self, device: Device) -> Device:
        return Platform(device, self.refuses, self.every)  # type: ignore[return-value]


def test_a_clean_operator_passes_and_nothing_more_is_asked(diagnose: Diagnose) -> None:
    found = diagnose(NORM, None)
    assert found.passed and found.stage is None and not found.findings
    assert {e.probe for e in found.evidence if e.outcome == "not needed"} >= {"graph", "cpu", "other driver"}


def test_a_recording_that_is_off_is_not_the_targets_fault(
    need: Need, run: RunFolder, bench: Workbench, backends: ReferenceBackends
) -> None:
    """float64 is computed anew: what was recorded of it may be what is wrong."""
    need("opencl")
    operator = run.operator(NORM)
    trial = next(recorded(run, bench.model, operator))
    (reference,) = trial.references
    assert reference.exact is not None
    off = replace(trial, references=[replace(reference, exact=reference.exact * 1.01)])
    found = triage(bench, operator, off, backends)
    assert (found.status, found.stage, outcome(found, "float64")) == ("fail", "precision", "right")


def test_convert(diagnose: Diagnose) -> None:
    found = diagnose(GATE, OfTheGraph(GATE))
    assert (found.status, found.stage, outcome(found, "graph")) == ("fail", "convert", "wrong")


def outcome(found: Triage, probe: str) -> str:
    evidence = found.of(probe)
    assert evidence is not None
    return evidence.outcome


def test_a_wrong_conversion_is_told_from_a_wrong_lowering(diagnose: Diagnose, need: Need) -> None:
    """Both are wrong as plain C. What the operator was converted to is run before it is lowered."""
    need("cpu")
    found = diagnose(GATE, OfTheConversion(GATE))
    assert found.stage == "convert" and (outcome(found, "graph"), outcome(found, "cpu")) == ("right", "wrong")
    assert outcome(found, "converted") == "wrong"
    found = diagnose(LINEAR, OfTheLowering(LINEAR))
    assert found.stage == "lower" and (outcome(found, "cpu"), outcome(found, "converted")) == ("wrong", "right")


def test_weights(diagnose: Diagnose) -> None:
    found = diagnose(LINEAR, OfTheWeights(LINEAR))
    assert found.stage == "weights"
    assert [f.kind for f in found.findings] == ["weight differs"] and "q_proj.weight" in found.findings[0].text


def test_codegen(diagnose: Diagnose, need: Need) -> None:
    need("vulkan")
    found = diagnose(NORM, OfTheText(NORM, lambda s: s.replace("sqrt(", "1.01f * sqrt(")))
    assert found.stage == "codegen"
    assert found.of("same schedule elsewhere").outcome == "right"  # type: ignore[union-attr]
    assert found.of("other driver").outcome in ("not run", "right", "wrong")  # type: ignore[union-attr]


def test_schedule(diagnose: Diagnose, need: Need) -> None:
    need("vulkan")
    found = diagnose(NORM, OfTheSchedule(NORM))
    assert found.stage == "schedule"
    assert found.of("other schedule").outcome == "right"  # type: ignore[union-attr]
    assert found.of("text elsewhere").outcome == "wrong"  # type: ignore[union-attr]


def test_a_launch_that_is_too_small(diagnose: Diagnose) -> None:
    found = diagnose(NORM, OfTheGrid(NORM))
    assert found.stage == "launch"
    assert {f.kind for f in found.findings} == {"unwritten output", "launch size"}


def test_a_launch_that_the_device_refuses(diagnose: Diagnose) -> None:
    found = diagnose(NORM, OfThePlatform(NORM, refuses="run"))
    assert (found.status, found.stage, found.comparison) == ("error", "launch", None)
    assert "more than 1024" in found.of("run").detail  # type: ignore[union-attr]


def test_a_kernel_that_the_driver_refuses(diagnose: Diagnose) -> None:
    found = diagnose(NORM, OfThePlatform(NORM, refuses="load"))
    assert (found.status, found.stage) == ("error", "driver")
    assert "0x17" in found.of("load").detail  # type: ignore[union-attr]


def test_results_that_come_and_go(diagnose: Diagnose) -> None:
    found = diagnose(NORM, OfThePlatform(NORM, every=3))
    assert found.status == "flaky" and "2 different results in 3 runs" in found.of("run").detail  # type: ignore[union-attr]


def test_memory_that_nobody_wrote(diagnose: Diagnose) -> None:
    found = diagnose(NORM, OfTheText(NORM, lambda s: re.sub(r"(out3_ptr\[.*?\]) = ", r"\1 = \1 * 0.5f + ", s)))
    assert found.found("uninitialised read") and not found.passed


def test_a_write_behind_a_buffer(diagnose: Diagnose, need: Need) -> None:
    need("vulkan")
    behind = r"\g<0> \1[512 + get_local_id(0)] = 1.0f;"
    found = diagnose(NORM, OfTheText(NORM, lambda s: re.sub(r"(out3_ptr)\[.*?\] = .*", behind, s)))
    assert (found.status, found.stage) == ("fail", "codegen"), "its own numbers are right, and it destroys those of others"
    assert found.comparison is not None and found.comparison.passed
    assert "output 0" in found.found("out-of-bounds write").text  # type: ignore[union-attr]


def test_a_read_behind_a_buffer(diagnose: Diagnose) -> None:
    """Right by luck: what lies there is multiplied by 0, unless it is NaN."""
    found = diagnose(NORM, OfTheText(NORM, lambda s: re.sub(r"(out3_ptr\[.*?\]) = ", r"\1 = 0.0f * in1_ptr[512] + ", s)))
    assert found.found("out-of-bounds read") and not found.passed


class Negative(Probe):
    """A probe that somebody adds: this class, and a place in the list."""

    name = "negative"
    question = "Is any output negative?"
    right = "No output is negative."
    wrong = "An output is negative."
    always = True

    def run(self, subject: Subject) -> Evidence:
        lowest = min(float(a.min()) for a in subject.first.outputs)
        return self.gave("wrong" if lowest < 0 else "right", f"the lowest is {lowest:.3g}", subject.here)


def test_a_new_probe_is_one_class_and_a_place_in_the_list(
    need: Need, run: RunFolder, bench: Workbench, backends: ReferenceBackends
) -> None:
    operator = run.operator(NORM)
    trial = next(recorded(run, bench.model, operator))
    found = triage(bench, operator, trial, backends, probes=(*PROBES, Negative()))
    made = found.of("negative")
    assert made is not None and made.outcome == "wrong" and made.seconds > 0 and found.passed, "no rule asks for it"
    assert made.to_json()["said"] == "An output is negative." and made.to_json()["question"] == Negative.question
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(chain(found.evidence))
    assert "✗ An output is negative.  opencl" in console.export_text()


def test_on_vulkan(need: Need, run: RunFolder) -> None:
    need("opencl")
    fault = OfTheText(NORM, lambda s: s.replace("sqrt(", "1.01f * sqrt("))
    with Workbench.on(run, need("vulkan"), inject=fault) as bench, ReferenceBackends(run, bench) as backends:
        operator = run.operator(NORM)
        found = triage(bench, operator, next(recorded(run, bench.model, operator)), backends)
    assert (found.status, found.stage) == ("fail", "codegen")
    assert found.of("same schedule elsewhere").where.startswith("opencl")  # type: ignore[union-attr]


def test_where_no_other_place_is_here_the_evidence_says_so(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    get = ReferenceBackends.get
    absent = (CPU, ANOTHER_TARGET)
    monkeypatch.setattr(ReferenceBackends, "get", lambda self, b: "it is not here: no driver" if b in absent else get(self, b))
    found = diagnose(NORM, OfTheText(NORM, lambda s: s.replace("sqrt(", "1.01f * sqrt(")))
    assert found.stage is None and "none of the probes" in found.because
    assert {e.probe for e in found.evidence if e.detail == "it is not here: no driver"} >= {"cpu", "same schedule elsewhere"}

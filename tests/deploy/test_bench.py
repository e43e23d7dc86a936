"""Benching bundles: what is counted is what ran, the numbers follow from each other, and no test says how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tapml.api import Run
from tapml.cli.main import main
from tapml.deploy.bench import Measured, Spread, bench, bytes_read
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.session import Session
from tapml.devices.child import ChildDevice
from tapml.devices.copying import copy_speed
from tapml.devices.interface import Launch
from tapml.errors import PromptError, UsageError
from tapml.languages import LANGUAGES
from tapml.languages.language import COPY
from tests.cli.test_schemas import meets
from tests.conftest import MakeRun
from tests.deploy.conftest import TARGET

PROMPT, TOKENS, REPEAT = 11, 5, 2


@pytest.fixture(scope="module")
def measured(built: Path) -> Measured:
    return bench(BundleFolder.open(built), prompt_tokens=PROMPT, tokens=TOKENS, repeat=REPEAT)


@pytest.fixture(scope="module")
def encoder(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run("encoder")
    Run.open(run.path).migrate(TARGET, fresh=True)
    return build(run, TARGET, tmp_path_factory.mktemp("encoder") / "bundle").path


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many launches each batch had that a device's process was given."""
    found: list[int] = []
    run = ChildDevice.run

    def counted(self: ChildDevice, batch: Sequence[Launch]) -> None:
        found.append(len(batch))
        run(self, batch)

    monkeypatch.setattr(ChildDevice, "run", counted)
    yield found


def test_what_is_counted_is_what_ran(built: Path, submitted: list[int]) -> None:
    bundle = BundleFolder.open(built)
    measured = bench(bundle, prompt_tokens=PROMPT, tokens=TOKENS, repeat=REPEAT)
    steps = {
        name: sum(len(bundle.programs[launch.operator].steps) for launch in graph.launches)
        for name, graph in bundle.plan.graphs.items()
    }
    assert measured.prompt is not None and measured.tokens == TOKENS
    assert measured.call.graph == "decode" and measured.call.launches == steps["decode"] > 0
    assert (measured.prompt.tokens, measured.prompt.calls) == (PROMPT, 2), "a chunk has 8 tokens"
    assert measured.prompt.launches == 2 * steps["prefill"]
    answer = [steps["prefill"]] * 2 + [steps["decode"]] * TOKENS
    first = next(k for k in range(len(submitted)) if submitted[k : k + len(answer)] == answer)
    runs = submitted[first : first + (REPEAT + 1) * len(answer)]
    assert runs == answer * (REPEAT + 1), "one that is not counted, then as many as were asked for"
    assert submitted[first + len(runs)] == steps["decode"] != steps["prefill"], "the launches alone follow"


def test_the_numbers_follow_from_each_other(measured: Measured, built: Path) -> None:
    prompt, decode, call, copy = measured.prompt, measured.decode, measured.call, measured.copy
    assert prompt is not None and decode is not None and copy is not None, measured.no_copy
    for spread in (prompt.first, prompt.prefill, decode, call.seconds, call.alone):
        assert 0 < spread.least <= spread.median <= spread.most
    assert measured.load > 0 and measured.repeat == REPEAT
    # An answer's rate lies between those of its fastest and its slowest token; taking in a prompt is less than the first token.
    assert 1 / call.seconds.most <= decode.least * (1 + 1e-9) and decode.most <= 1 / call.seconds.least * (1 + 1e-9)
    assert prompt.prefill.most >= PROMPT / prompt.first.least
    assert call.around == call.seconds.median - call.alone.median
    assert call.bytes_per_second == call.bytes_read / call.seconds.median
    assert copy.bytes_per_second == 2 * copy.nbytes * copy.copies / min(copy.seconds)
    assert measured.copy_share == call.bytes_per_second / copy.bytes_per_second
    bundle = BundleFolder.open(built)
    with Session(bundle) as session:
        assert measured.memory.weights == session.uploaded
    assert measured.memory.planned == bundle.plan.planned_bytes
    assert measured.memory.device >= measured.memory.weights + measured.memory.planned
    assert measured.memory.host is None or measured.memory.host > 2**20


def test_the_bytes_that_a_decode_call_reads(built: Path) -> None:
    """Summed anew over the model: every weight and state of it once, but one row of the embedding."""
    bundle = BundleFolder.open(built)
    model = bundle.model
    weights = 0
    for operator in model.operators_of["decode"]:
        keys = model.weight_keys(operator)
        for key, spec in zip(keys, operator_specs(bundle, operator.name), strict=True):
            if key is not None:
                weights += spec[1] // spec[0] if operator.kind == "embedding" else spec[1]
    # The cache is read by what writes a row of it, and by attention.
    states = 2 * sum(spec.nbytes for spec in bundle.plan.states.values())
    assert bytes_read(bundle.plan.graphs["decode"], model.named, bundle.programs) == weights + states


def operator_specs(bundle: BundleFolder, name: str) -> list[tuple[int, int]]:
    """The first extent and the bytes of each input."""
    return [((spec.shape or (1,))[0], spec.nbytes) for spec in bundle.programs[name].inputs]


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 8.0, 2.0]) == Spread(2.5, 1.0, 8.0)


def test_without_numbers_it_fits_the_context(built: Path) -> None:
    for given, wanted in (((None, None), (16, 16)), ((30, None), (30, 2)), ((None, 30), (2, 30)), ((16, 16), (16, 16))):
        measured = bench(BundleFolder.open(built), prompt_tokens=given[0], tokens=given[1], repeat=1)
        assert measured.prompt is not None and (measured.prompt.tokens, measured.tokens) == wanted


def test_what_does_not_fit_is_refused(built: Path, encoder: Path) -> None:
    for prompt, tokens, needs in ((30, 3, 33), (32, None, 33), (None, 32, 33), (40, 1, 41)):
        with pytest.raises(PromptError, match=f"take {needs} positions; the context of .* has 32. Give a smaller"):
            bench(BundleFolder.open(built), prompt_tokens=prompt, tokens=tokens)
    with pytest.raises(UsageError, match="chooses no tokens"):
        bench(BundleFolder.open(encoder), tokens=3)


def test_a_model_that_chooses_no_tokens(encoder: Path) -> None:
    bundle = BundleFolder.open(encoder)
    measured = bench(bundle, repeat=REPEAT)
    assert measured.prompt is None and measured.tokens is None and measured.decode is None
    (graph,) = bundle.plan.graphs
    launches = sum(len(bundle.programs[launch.operator].steps) for launch in bundle.plan.graphs[graph].launches)
    assert (measured.call.graph, measured.call.launches) == (graph, launches)


def test_a_device_whose_copying_cannot_be_measured(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it has no room for the buffers beside the model."""
    monkeypatch.setattr("tapml.deploy.bench.copy_speed", partial(copy_speed, nbytes=2**62))
    measured = bench(BundleFolder.open(built), prompt_tokens=3, tokens=1, repeat=1)
    assert measured.copy is None and measured.copy_share is None and "no room" in measured.no_copy


def test_a_device_that_does_not_survive_copying_costs_no_other_number(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = f"void {COPY}(const float* x, float* y) {{ *(volatile float*)8 = x[0]; }}"
    monkeypatch.setitem(LANGUAGES, "c", replace(LANGUAGES["c"], copy=lambda words: crash))
    measured = bench(BundleFolder.open(built), prompt_tokens=3, tokens=1, repeat=1)
    assert measured.copy is None and "SIGSEGV" in measured.no_copy and measured.call.launches > 0


def test_the_command_line(
    built: Path, encoder: Path, need: Callable[[str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--repeat", "1", "--prompt-tokens", "9", "--tokens", "2"]
    assert main(["bench", str(built), *words, "--json", str(tmp_path / "bench.json")]) == 0
    meets("bench", json.loads((tmp_path / "bench.json").read_text()))
    said = capsys.readouterr().out
    assert "9 random tokens, then 2, 1 time" in said and "of copying" in said and "tokens/s" in said
    assert main(["bench", str(encoder), "--repeat", "1", "--json", "-"]) == 0
    meets("bench", json.loads(capsys.readouterr().out))
    path = str(built)
    for argv, code, text in (
        (["bench", path + "x"], 2, "No bundle at"),
        (["bench", path, "--repeat", "0"], 2, "'0' is not a whole number of at least 1"),
        (["bench", path, "--tokens", "-3"], 2, "is not a whole number of at least 1"),
        (["bench", path, "--prompt-tokens", "0"], 2, "'0' is not a whole number of at least 1"),
        (["bench", path, "--prompt-tokens", "33"], 2, "the context of"),
        (["bench", path, "--device", "phone"], 2, "There is no device 'phone' here"),
    ):
        assert main(argv) == code
        err = capsys.readouterr().err
        assert text in err and len(err.splitlines()) <= 3, err

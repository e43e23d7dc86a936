"""Evaluating bundles: the statistics give what is known in closed form, a right bundle is its source, and a wrong one is not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapml.api import Run
from tapml.cache.folder import file_digest
from tapml.carving.folder import RunFolder
from tapml.cli.main import main
from tapml.deploy import layout
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.evaluate import Evaluated, comparable, evaluate, own_text, windows
from tapml.deploy.layers import layer_ends, layer_of
from tapml.deploy.likelihood import Estimate, Tally
from tapml.deploy.session import Session
from tapml.errors import PromptError, UsageError, WrongValue
from tapml.manifest import SEAL, seal
from tapml.source.safetensors_file import header_of
from tests.cli.test_schemas import meets
from tests.conftest import MakeRun
from tests.deploy.conftest import TARGET
from tests.models import VOCABULARY

TEXT = [int(token) for token in np.random.default_rng(5).integers(3, VOCABULARY, size=60)]


def logits(*probabilities: float, offset: float = 0.0) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities)) + offset


def tally_of(*entries: tuple[Any, Any, int]) -> Tally:
    found = Tally()
    for entry in entries:
        found.add(*entry)
    return found


def test_divergence_in_closed_form() -> None:
    """KL between (1/2, 1/2) and (1/4, 3/4) is ln(4/3) / 2, and the other way round it is another number."""
    one, other = logits(0.5, 0.5, offset=100.0), logits(0.25, 0.75, offset=-7.0)
    there, back = tally_of((one, other, 0)), tally_of((other, one, 0))
    assert there.divergences == [pytest.approx(math.log(4 / 3) / 2)]
    assert back.divergences == [pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))]
    assert tally_of((one, one, 0)).divergences == [0.0]
    # A barred token costs nothing where the source bars it, and everything where it does not.
    assert tally_of((logits(0.5, 0.5, 0.0), logits(0.25, 0.25, 0.5), 0)).divergences == [pytest.approx(math.log(2))]
    assert tally_of((logits(0.5, 0.5), logits(1.0, 0.0), 0)).divergences == [math.inf]


def test_perplexity_and_its_error_by_the_delta_method() -> None:
    """Surprises of ln 2 and ln 8: their mean is ln 4, their standard deviation ln 4 / √2, that of the mean ln 4 / 2."""
    even = logits(0.25, 0.75)
    tally = tally_of((logits(0.5, 0.5), even, 0), (logits(0.125, 0.875), even, 0))
    assert tally.perplexity_of_source.value == pytest.approx(4)
    assert tally.perplexity_of_source.error == pytest.approx(4 * math.log(4) / 2)
    assert tally.perplexity_of_bundle.value == pytest.approx(4) and tally.perplexity_of_bundle.error == pytest.approx(0)
    # Token by token ln 4 - ln 2 and ln 4 - ln 8.
    assert tally.log_ratio == Estimate(pytest.approx(0, abs=1e-12), pytest.approx(math.log(2)))


def test_errors_do_not_add_up_where_tokens_are_hard_for_both() -> None:
    rows = [logits(p, 1 - p) for p in (0.9, 0.5, 0.1, 0.01)]
    tally = tally_of(*((row, row, 0) for row in rows))
    assert tally.perplexity_of_source.error > 1 and tally.log_ratio == Estimate(0, 0)


def test_agreement() -> None:
    """Three of four: the error is sqrt(3/4 · 1/4 / 3)."""
    a, b = logits(0.9, 0.1), logits(0.2, 0.8)
    tally = tally_of((a, a, 0), (b, b, 0), (a, logits(0.6, 0.4), 1), (a, b, 0))
    assert tally.agreement.value == 0.75 and tally.agreement.error == pytest.approx(0.25)


def test_the_error_of_a_mean() -> None:
    assert Estimate.of([1.0, 2.0, 3.0, 4.0]) == Estimate(2.5, pytest.approx(math.sqrt(5 / 3) / 2))


def test_large_logits_do_not_overflow() -> None:
    rows = np.array([1e4, 0.0], np.float32), np.array([1e4, 1e4], np.float32)
    assert tally_of((*rows, 0)).divergences == [pytest.approx(math.log(2))]


@given(st.integers(2, 300), st.integers(2, 64))
def test_every_token_after_the_first_half_window_is_scored_once(tokens: int, longest: int) -> None:
    scored: list[int] = []
    for window in windows(tokens, longest):
        assert window.start >= 0 and window.prompt >= 1 and window.scored >= 1
        assert window.prompt + window.scored <= longest
        scored += range(window.start + window.prompt, window.start + window.prompt + window.scored)
    assert scored == list(range(min(tokens, longest) // 2, tokens))


@pytest.mark.parametrize("operator, layer", [
    ("decode/layers.0.mlp.down_proj", "layers.0"),
    ("decode/layers.11.self_attn.rotary.2", "layers.11"),
    ("decode/h.3.ln_1", "h.3"),
    ("decode/mask.2", ""),
    ("decode/rotary_emb", ""),
    ("decode/lm_head", ""),
])  # fmt: skip
def test_layers_by_name(operator: str, layer: str) -> None:
    assert layer_of(operator, "decode") == layer


def test_a_layer_ends_where_the_next_begins(built: Path) -> None:
    model = BundleFolder.open(built).model
    ends = layer_ends(model, "decode")
    makers = {value: operator.name for operator in model.operators for value in operator.outputs}
    assert {layer: [makers[value] for value in values] for layer, values in ends.items()} == {
        "layers.0": ["decode/layers.0.mlp.down_proj"], "layers.1": ["decode/layers.1.mlp.down_proj"],
    }  # fmt: skip


def evaluated(bundle: Path | BundleFolder, run: RunFolder, **more: Any) -> Evaluated:
    with Session(bundle if isinstance(bundle, BundleFolder) else BundleFolder.open(bundle)) as session:
        return evaluate(session, run, TEXT, **more)


@pytest.fixture(scope="module")
def clean(built: Path, run: RunFolder) -> Evaluated:
    return evaluated(built, run, by_layer=True)


def test_a_right_bundle_is_its_source(clean: Evaluated, built: Path, run: RunFolder) -> None:
    assert clean.tally.agreement == Estimate(1, 0) and clean.tally.divergence.value < 1e-9
    assert clean.tally.perplexity_of_bundle.value == pytest.approx(clean.tally.perplexity_of_source.value, rel=1e-4)
    assert clean.tally.perplexity_of_source.value > 10, "random weights know nothing of random tokens"
    assert (clean.text_tokens, len(clean.tally), clean.windows, clean.window) == (60, 44, 3, 32)
    assert clean.layers is not None and [layer.layer for layer in clean.layers] == ["layers.0", "layers.1"]
    assert all(layer.error.value < 1e-5 for layer in clean.layers)
    assert clean.differences == ()
    # Where the values are not looked at, and with fewer tokens, the same tokens give the same numbers.
    fewer = evaluated(built, run, max_tokens=20)
    assert fewer.layers is None and fewer.tally.of_source == clean.tally.of_source[:20]
    assert fewer.tally.of_bundle == pytest.approx(clean.tally.of_bundle[:20])


def test_the_scores_are_those_of_the_whole_text(clean: Evaluated, run: RunFolder) -> None:
    """The first window's anew, by PyTorch: the logits of the graph that takes in prompts, for each length of the prompt."""
    from tapml.migrate.model import Model
    from tapml.runtime.hybrid import Hybrid
    from tapml.runtime.protocol import Generating, answered

    model, protocol = Model.of(run), run.protocol
    assert isinstance(protocol, Generating)
    source = Hybrid(model, model.source)
    for k in (0, 1, 7, 15):
        row = protocol.row(answered(source, protocol.read(TEXT[: 16 + k]))).astype(np.float64)
        surprise = math.log(np.exp(row - row.max()).sum()) + row.max() - row[TEXT[16 + k]]
        assert clean.tally.of_source[k] == pytest.approx(surprise, abs=1e-4)


def scaled(built: Path, folder: Path, key: str, factor: float) -> Path:
    """The bundle as if it had been built with another weight."""
    shutil.copytree(built, folder)
    line = next(entry for entry in map(json.loads, (folder / layout.WEIGHTS).read_text().splitlines()) if entry["key"] == key)
    path = folder / line["file"]
    with path.open("rb") as file:
        entry = header_of(file, path)[line["tensor"]]
    data = np.fromfile(path, np.uint8)
    data[entry.offset : entry.offset + entry.nbytes].view(np.float32)[:] *= factor
    data.tofile(path)
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    manifest["files"][line["file"]] = {"bytes": path.stat().st_size, "digest": file_digest(path)}
    manifest[SEAL] = seal(manifest)
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_changed_weight_shows_and_so_does_its_layer(clean: Evaluated, built: Path, run: RunFolder, tmp_path: Path) -> None:
    found = evaluated(scaled(built, tmp_path / "scaled", "model.layers.1.mlp.down_proj.weight", 1.5), run, by_layer=True)
    assert found.tally.of_source == clean.tally.of_source
    assert found.tally.divergence.value > 1e6 * clean.tally.divergence.value
    assert found.tally.divergence.value > 3 * found.tally.divergence.error > 0
    assert found.layers is not None and clean.layers is not None
    (first, second), (first_before, second_before) = found.layers, clean.layers
    assert first.error == first_before.error and second.error.value > 1e3 * second_before.error.value


def with_kernels(built: Path, operator: str, old: str, new: str) -> BundleFolder:
    bundle = BundleFolder.open(built)
    programs = dict(bundle.programs)
    program = programs[operator]
    changed = program.with_sources(tuple(kernel.source.replace(old, new) for kernel in program.kernels))
    assert changed != program
    bundle.__dict__["programs"] = programs | {operator: changed}
    return bundle


def test_a_changed_kernel_shows(clean: Evaluated, built: Path, run: RunFolder) -> None:
    found = evaluated(with_kernels(built, "decode/layers.0.mlp.gated_activation", "exp(", "1.5f * exp("), run)
    assert found.tally.divergence.value > 1e4 * clean.tally.divergence.value
    # The first token of each window is chosen from what the other graph gives, whose kernels are as they were.
    firsts = [0, 16, 32]
    assert all((found.tally.divergences[k] < 1e-9) == (k in firsts) for k in range(len(found.tally)))


def test_logits_that_are_no_distribution_are_an_error(built: Path, run: RunFolder) -> None:
    bundle = with_kernels(built, "decode/layers.1.mlp.gated_activation", "exp(", "sqrt(-1.0f) * exp(")
    with pytest.raises(WrongValue, match=r"logits of the bundle for token 17 of the text are NaN or infinite"):
        evaluated(bundle, run)


@pytest.fixture(scope="module")
def other(make_run: MakeRun) -> RunFolder:
    return make_run("gpt2")


def test_another_run_is_refused_or_what_differs_is_said(built: Path, other: RunFolder, make_run: MakeRun) -> None:
    bundle = BundleFolder.open(built)
    with pytest.raises(UsageError, match=r"is not the run that .* was built from.*--other-run"):
        evaluated(built, other)
    found = evaluated(built, other, max_tokens=8, other_run=True)
    assert found.tally.divergence.value > 1e-3
    assert len(found.differences) == 3 and found.differences == comparable(bundle, other, other_run=True)
    assert other.digest in found.differences[0] and str(bundle.manifest["run"]) in found.differences[0]
    assert "The run's model is " in found.differences[1]
    count = len({line["key"] for line in map(json.loads, (built / layout.WEIGHTS).read_text().splitlines())})
    assert found.differences[2].startswith(f"{count} of the bundle's {count} weights")
    with pytest.raises(UsageError, match="layers of the run are others"):
        evaluated(built, other, other_run=True, by_layer=True)
    with pytest.raises(UsageError, match="other tokens"):
        comparable(bundle, make_run("encoder"), other_run=True)


def test_what_cannot_be_evaluated(built: Path, run: RunFolder, make_run: MakeRun, tmp_path: Path) -> None:
    encoder = make_run("encoder")
    Run.open(encoder.path).migrate(TARGET, fresh=True)
    bundle = BundleFolder.open(build(encoder, TARGET, tmp_path / "encoder").path)
    with pytest.raises(UsageError, match="chooses no tokens"):
        comparable(bundle, encoder)
    with Session(BundleFolder.open(built)) as session:
        for tokens, most, words in (([5], None, "0 tokens of 1"), ([5, 6], None, "1 token of 2"), (TEXT, 1, "1 token of 60")):
            with pytest.raises(PromptError, match=f"{words} would be scored; error bars take two"):
                evaluate(session, run, tokens, most)
        with pytest.raises(PromptError, match="has token 128; the model's go from 0 to 127"):
            evaluate(session, run, [5, 128, 6, 7])
        assert len(evaluate(session, run, [5, 6, 7]).tally) == 2


def test_the_text_that_is_brought_along() -> None:
    text = own_text()
    assert text.startswith("Call me Ishmael.") and text.endswith("thither?\n") and 2000 < len(text.encode()) < 4000


def test_the_command_line(
    built: Path, talking: Path, run: RunFolder, other: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    against = ["--against", str(run.path)]
    ids = tmp_path / "ids.txt"
    ids.write_text(" ".join(map(str, TEXT)))
    told = tmp_path / "eval.json"
    words = ["eval", str(built), *against, "--text", str(ids), "--max-tokens", "6"]
    assert main([*words, "--by-layer", "--json", str(told)]) == 0
    data = json.loads(told.read_text())
    meets("eval", data)
    assert data["tokens"] == 6 and data["run_digest"] == run.digest and len(data["layers"]) == 2
    said = capsys.readouterr().out
    assert "6 of 60 tokens scored in 1 window" in said and "100.00%" in said and "layers.1" in said
    # One with a tokenizer, and the text that is brought along; another run.
    assert main(["eval", str(talking), *against, "--max-tokens", "3", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    meets("eval", data)
    assert data["text"].startswith("Moby-Dick (1851)") and data["layers"] is None and data["text_tokens"] > 2000
    assert main(["eval", str(built), "--against", str(other.path), "--other-run", *words[4:], "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    meets("eval", data)
    assert len(data["differences"]) == 3
    latin = tmp_path / "latin.txt"
    latin.write_bytes("voilà".encode("latin-1"))
    for argv, code, text in (
        (["eval", str(built)], 2, "--against"),
        (["eval", str(built), "--against", str(tmp_path)], 2, "is not a run of TapML"),
        (["eval", str(built), *against], 2, "has no tokenizer for a text. Give --text FILE"),
        (["eval", str(built), *against, "--text", str(tmp_path / "no.txt")], 2, "cannot be read: No such file"),
        (["eval", str(built), *against, "--text", str(latin)], 2, "is not UTF-8 text"),
        (["eval", str(built), *against, "--max-tokens", "0"], 2, "'0' is not a whole number of at least 1"),
        (["eval", str(built), "--against", str(other.path), "--text", str(ids)], 2, "--other-run to compare"),
    ):
        assert main(argv) == code
        assert text in capsys.readouterr().err


def test_it_is_the_same_on_a_device(built: Path, need: Callable[[str], str], make_run: MakeRun, tmp_path: Path) -> None:
    """A driver's process, whose inner values are read together."""
    target, run = need("opencl"), make_run("llama")
    Run.open(run.path).migrate(target, fresh=True)
    found = evaluated(build(run, target, tmp_path / "bundle").path, run, by_layer=True, max_tokens=20)
    assert found.tally.agreement.value == 1 and found.tally.divergence.value < 1e-9
    assert found.layers is not None and all(0 < layer.error.value < 1e-5 for layer in found.layers)

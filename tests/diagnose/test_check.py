"""An existing deployment against the run: ONNX files of other makers, right and wrong; arrays in files; a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tapml.carving.folder import RunFolder
from tapml.diagnose.check.feeds import questions
from tapml.diagnose.check.fits import fits
from tapml.diagnose.check.onnx_file import Wanted
from tapml.diagnose.check.stage import check_function, check_onnx, check_outputs
from tapml.errors import UnavailableError, UsageError
from tapml.migrate.model import Model
from tapml.runtime.hybrid import Hybrid
from tests.diagnose.onnx_bugs import LLAMA_BUGS, Bug, WithCache, WithoutCache, copy, exported, stripped
from tests.models import causal_lm, conv_net

MakeRun = Callable[[str], RunFolder]

TOKENS, MASK = torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    axes = {1: "tokens"}
    return exported(
        WithoutCache(causal_lm("llama")), (TOKENS, MASK), tmp_path_factory.mktemp("llama"), ["input_ids", "attention_mask"],
        ["logits"], {"input_ids": axes, "attention_mask": axes},
    )  # fmt: skip


def written(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def test_a_right_file_is_right(make_run: MakeRun, llama: onnx.ModelProto, tmp_path: Path) -> None:
    run = make_run("llama")
    result = check_onnx(run, written(llama, tmp_path))
    as_written, optimised = result.looks
    assert result.passed and result.first_wrong is None and not as_written.wrong and not optimised.wrong
    prefill = [o.name for o in run.operators if o.graph == "prefill"]
    assert len(as_written.seen) >= len(prefill) - 2 and set(as_written.seen) | set(as_written.unseen) == set(prefill)
    nameless = check_onnx(run, written(stripped(llama), tmp_path), optimised=False).looks[0]
    assert nameless.passed and len(nameless.seen) >= len(prefill) - 2


@pytest.mark.parametrize("names", [True, False], ids=["named", "stripped"])
@pytest.mark.parametrize("bug", LLAMA_BUGS, ids=lambda bug: bug.name)
def test_the_first_wrong_operator_is_named(
    bug: Bug, names: bool, make_run: MakeRun, llama: onnx.ModelProto, tmp_path: Path
) -> None:
    wrong = bug.put_in(llama)
    result = check_onnx(make_run("llama"), written(wrong if names else stripped(wrong), tmp_path), optimised=False)
    assert not result.passed and result.first_wrong is not None
    assert result.first_wrong.startswith(f"prefill/{bug.module}"), [f.operator.name for _, f in result.looks[0].wrong]
    wrong_ones = {f.operator.name for _, f in result.looks[0].wrong}
    exchanged = {f.exchanged for _, f in result.looks[0].wrong} - {""}
    assert wrong_ones == {result.first_wrong, *exchanged}  # what follows is right with what it is given
    assert len(exchanged) == (2 if "exchanged" in bug.name else 0)


def test_a_cache_is_filled_and_read(make_run: MakeRun, tmp_path: Path) -> None:
    past = torch.zeros(1, 2, 3, 16)
    kept = [f"{layer}.{what}" for layer in (0, 1) for what in ("key", "value")]
    given = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in kept)]
    made = ["logits", *(f"present.{name}" for name in kept)]
    axes = {name: {1: "tokens"} for name in given[:3]} | {name: {2: "past"} for name in given[3:]}
    axes |= {"attention_mask": {1: "all"}} | {name: {2: "all"} for name in made[1:]}
    inputs = (TOKENS, torch.ones(1, 11, dtype=torch.long), torch.arange(3, 11)[None], *[past] * 4)
    model = exported(WithCache(causal_lm("llama")), inputs, tmp_path, given, made, axes)
    run = make_run("llama")
    right = check_onnx(run, written(model, tmp_path), optimised=False)
    assert right.passed and {f.operator.graph for _, f in right.looks[0].found} == {"prefill", "decode"}
    assert len(right.looks[0].seen) >= len(run.operators) - 4


@pytest.mark.parametrize("gives", ["all", "the last", "the new"])
def test_a_cache_of_fixed_length_is_filled_and_read(gives: str, make_run: MakeRun, tmp_path: Path) -> None:
    """One token at a time over a cache of 16 positions; the file gives all 17, the last 16, or the new one."""
    length = 16
    kept = [f"{layer}.{what}" for layer in (0, 1) for what in ("key", "value")]
    given = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in kept)]
    inputs = (
        TOKENS[:, :1], torch.ones(1, length + 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long),
        *[torch.zeros(1, 2, length, 16)] * 4,
    )  # fmt: skip
    names = ["logits", *(f"present.{name}" for name in kept)]
    first = {"all": 0, "the last": 1, "the new": length}[gives]
    model = exported(Sliced(WithCache(causal_lm("llama")), first), inputs, tmp_path, given, names)
    result = check_onnx(make_run("llama"), written(model, tmp_path), optimised=False)
    look = result.looks[0]
    assert result.passed and {f.operator.graph for _, f in look.found} == {"prefill", "decode"}
    assert "decode/lm_head" in look.seen and "decode/layers.1.self_attn.attention" in look.seen


@pytest.mark.parametrize(("length", "first"), [(16, 0), (24, 16)])
def test_the_mask_tells_whether_tokens_are_written_in_place(length: int, first: int, make_run: MakeRun) -> None:
    inputs = [
        Wanted("input_ids", "int64", (1, 8)), Wanted("attention_mask", "int64", (1, length)),
        Wanted("past_key_values.0.key", "float32", (1, 2, 16, 16)),
    ]  # fmt: skip
    [question] = questions(make_run("llama"), inputs)
    assert np.flatnonzero(question.feed["attention_mask"]).tolist() == list(range(first, first + 8))


class Sliced(torch.nn.Module):
    """Of what a model keeps, the positions from `first` on."""

    def __init__(self, model: torch.nn.Module, first: int) -> None:
        super().__init__()
        self.model = model
        self.first = first

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, *kept = self.model(*inputs)
        return (logits, *(x[:, :, self.first :] for x in kept))


def test_what_is_fused_away_is_said_to_be_unseen(make_run: MakeRun, tmp_path: Path) -> None:
    module, inputs = conv_net()
    model = exported(module, inputs, tmp_path, ["image"], ["scores"])
    result = check_onnx(make_run("conv_net"), written(model, tmp_path))
    as_written, optimised = result.looks
    assert result.passed and "conv1" in as_written.unseen  # the exporter folds the norm into it
    assert len(optimised.unseen) > len(as_written.unseen)


def values_of(run: RunFolder) -> dict[str, np.ndarray]:
    """What the source gives for every operator, by name."""
    model = Model.of(run)
    example = run.examples[0]
    return {o.name: made[0] for o, made in Hybrid(model, model.source).observe(run.graphs[0].name, dict(example))}


def test_arrays_that_an_engine_wrote(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("encoder")
    values = values_of(run)
    wrong = "encoder.layer.1.output.LayerNorm"
    for number, array in enumerate(values.values()):
        np.save(tmp_path / f"{number}.npy", array.transpose() if array.ndim == 2 else array)
    assert check_outputs(run, tmp_path).passed
    place = list(values).index(wrong)
    np.save(tmp_path / f"{place}.npy", values[wrong] * np.float32(1.001))
    result = check_outputs(run, tmp_path)
    assert not result.passed and result.first_wrong == wrong
    (tmp_path / "map.json").write_text(json.dumps({"nothing": "x"}))
    with pytest.raises(UsageError, match=r"map\.json names 'nothing'"):
        check_outputs(run, tmp_path)


def test_a_function_of_the_users(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("encoder")
    values = values_of(run)
    np.savez(tmp_path / "values.npz", **values)
    file = tmp_path / "engine.py"
    file.write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "def values(inputs, wanted):\n"
        "    assert set(inputs) == {'input_ids', 'attention_mask'}\n"
        "    held = np.load(Path(__file__).with_name('values.npz'))\n"
        "    return {name: held[name] for name in wanted if name in held.files}\n"
        "def off(inputs, wanted):\n"
        "    key = 'encoder.layer.0.attention.self.key'\n"
        "    return {k: v + 0.01 if k == key else v for k, v in values(inputs, wanted).items()}\n"
        "def fails(inputs, wanted):\n    raise RuntimeError('no engine')\n"
        "def text(inputs, wanted):\n    return {'a': np.array(['x'])}\n"
    )
    assert check_function(run, f"{file}:values").passed
    assert check_function(run, f"{file}:off").first_wrong == "encoder.layer.0.attention.self.key"
    for name, words in (("fails", "RuntimeError: no engine"), ("text", "dtype"), ("none", "no function 'none'")):
        with pytest.raises(UsageError, match=words):
            check_function(run, f"{file}:{name}")


def test_indices_that_lead_nowhere_are_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("encoder")
    values = values_of(run)
    np.savez(tmp_path / "values.npz", **(values | {"embeddings.gather": np.full_like(values["embeddings.gather"], 99)}))
    with pytest.raises(UsageError, match=r"embeddings\.\S+: PyTorch refuses what the deployment has for its inputs \(Index"):
        check_outputs(run, tmp_path)


def test_wrong_use_is_one_line(make_run: MakeRun, llama: onnx.ModelProto, tmp_path: Path) -> None:
    run = make_run("llama")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UsageError, match="cannot be read as ONNX"):
        check_onnx(run, tmp_path / "text.onnx")
    with pytest.raises(UsageError, match="no file"):
        check_onnx(run, tmp_path / "absent.onnx")
    with pytest.raises(UnavailableError, match="no provider 'abacus'"):
        check_onnx(run, written(llama, tmp_path), "abacus")
    with pytest.raises(UsageError, match="is not among the run's example inputs"):
        check_onnx(make_run("conv_net"), written(llama, tmp_path))
    two = copy(llama)
    two.graph.input[0].name = "encoder_hidden_states"
    with pytest.raises(UsageError, match="encoder_hidden_states is that of a model with an encoder and a decoder"):
        check_onnx(run, written(two, tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        check_outputs(run, tmp_path / "absent")


def test_another_model_is_not_recognised(make_run: MakeRun, tmp_path: Path) -> None:
    axes = {1: "tokens"}
    other = exported(
        WithoutCache(causal_lm("llama", seed=1)), (TOKENS, MASK), tmp_path, ["input_ids", "attention_mask"], ["logits"],
        {"input_ids": axes, "attention_mask": axes},
    )  # fmt: skip
    assert not check_onnx(make_run("llama"), written(other, tmp_path), optimised=False).passed


def test_fits_lead_from_their_order_of_axes_to_ours() -> None:
    ours = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for order in ((0, 2, 1, 3), (3, 1, 0, 2), (0, 1, 2, 3)):
        theirs = ours.transpose(order)
        for shape in (theirs.shape, (theirs.shape[0], theirs.shape[1] * theirs.shape[2], theirs.shape[3])):
            found = [fit.taken(theirs.reshape(shape)) for fit in fits(shape, ours.shape, {})]
            assert any(np.array_equal(array, ours) for array in found)
    padded = np.zeros((1, 8, 6))
    [fit] = [fit for fit in fits((1, 5, 6), padded.shape, {8: 5}) if fit.plain]
    assert fit.over(padded, np.ones((1, 5, 6)))[0, :, 0].tolist() == [1] * 5 + [0] * 3
    last = next(fits((1, 5, 6), (1, 1, 6), {8: 5}))
    assert last.taken(np.arange(30).reshape(1, 5, 6)).reshape(-1).tolist() == list(range(24, 30))

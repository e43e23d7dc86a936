"""`tapml.Bundle`: what scripts use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tapml
from tapml.api import Run
from tapml.carving.folder import RunFolder
from tapml.cli.main import main
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.errors import BundleError, PromptError, UsageError
from tapml.tensors import TensorSpec
from tests.conftest import MakeRun
from tests.deploy.conftest import TARGET
from tests.models import causal_lm, save


def test_a_decoder_answers(built: Path, run: RunFolder) -> None:
    prompt = run.prompts[0]
    with tapml.Bundle.open(built) as bundle:
        assert (bundle.name, bundle.target, bundle.inputs) == (run.manifest["model"]["name"], TARGET, {})
        answer = bundle.generate(prompt.tokens, len(prompt.generated))
        assert answer.tokens == list(prompt.generated) and answer.text == " ".join(map(str, prompt.generated))
        assert bundle.generate(" ".join(map(str, prompt.tokens)), 2).tokens == list(prompt.generated)[:2]
        first = bundle.session
        bundle.close()
        assert bundle.generate(prompt.tokens, 1).tokens == list(prompt.generated)[:1] and bundle.session is not first
        with pytest.raises(UsageError, match=r"unexpected keyword argument 'heat'. Besides .* temperature"):
            bundle.generate([5], heat=1.0)
        with pytest.raises(UsageError, match="temperature"):
            bundle.generate([5], temperature=-1.0)
        with pytest.raises(PromptError, match="40 tokens"):
            bundle.generate([5] * 40)
        with pytest.raises(UsageError, match="generates text: use generate"):
            bundle.run({})
    with pytest.raises(BundleError, match="No bundle at"):
        tapml.Bundle.open(built.parent / "nothing")


def test_an_answer_comes_in_pieces(talking: Path) -> None:
    with tapml.Bundle.open(talking) as bundle:
        answer = bundle.stream("hi", 6, temperature=2.0, seed=5)
        assert not answer.tokens
        assert "".join(answer) == answer.text and answer.ended is not None and answer.tokens
        assert bundle.generate("hi", 6, temperature=2.0, seed=5).tokens == answer.tokens
        published = bundle.generate("hi", 6, published=True, seed=5, top_k=0)
        assert published.tokens == answer.tokens != bundle.generate("hi", 6).tokens and bundle.licence == "mit"
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
        told = bundle.generate("hi", 20, json_schema=schema)
        assert told.complete and set(json.loads(told.text)) == {"a"}


def test_a_module_is_called_with_inputs(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("conv_net")
    Run.open(run.path).migrate(TARGET, fresh=True)
    assert main(["build", str(run.path), "--target", TARGET, "-o", str(tmp_path / "conv_net")]) == 0
    assert f"Next: tapml verify {tmp_path / 'conv_net'}" in " ".join(capsys.readouterr().out.split())
    with tapml.Bundle.open(tmp_path / "conv_net") as bundle:
        ((key, spec),) = bundle.inputs.items()
        image = run.examples[0][key]
        assert spec == TensorSpec(image.shape, "float32")
        (scores,) = bundle.run({key: image}).values()
        (again,) = bundle.run({key: image.astype(np.float64).tolist()}).values()
        assert np.array_equal(scores, again) and scores.size
        for wrong, said in (
            ({"pixels": image}, f"has no input 'pixels'. It takes {key}"),
            ({}, "given: nothing"),
            ({key: image[..., 1:]}, "takes"),
            ({key: image.astype(np.complex64)}, "does not hold the complex64"),
        ):
            with pytest.raises(UsageError, match=said):
                bundle.run(wrong)
        with pytest.raises(UsageError, match="chooses no tokens"):
            bundle.generate("hi")


def test_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    table = torch.nn.Embedding(8, 4)
    run = tapml.carve(table, (torch.tensor([1, 3, 7]),), out=tmp_path / "run")
    run.migrate(TARGET)
    with tapml.Bundle.open(build(run.folder, TARGET, tmp_path / "table").path) as bundle:
        (key,) = bundle.inputs
        (rows,) = bundle.run({key: np.array([7, 0, 3], np.uint8)}).values()
        assert np.array_equal(rows, table.weight.detach().numpy()[[7, 0, 3]])
        for wrong in (np.array([2**63 + 1, 0, 3], np.uint64), np.array([1.0, 2.0, 3.0])):
            with pytest.raises(UsageError, match=r"takes .* does not hold the"):
                bundle.run({key: wrong})


def test_what_the_publisher_says_travels(tmp_path: Path) -> None:
    folder = save(causal_lm("llama"), tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    run = tapml.carve(folder, out=tmp_path / "run", prompts=["5 9 70"], decode_steps=2)
    run.migrate(TARGET)
    bundle = BundleFolder.open(build(run.folder, TARGET, tmp_path / "bundle").path)
    assert bundle.licence == "apache-2.0"
    assert (bundle.published.temperature, bundle.published.top_p) == (0.6, 0.95)

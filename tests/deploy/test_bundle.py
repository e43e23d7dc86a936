"""Bundles: what was tested ships, runs without PyTorch and the compiler, and nothing that was altered gives an answer."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapml.api import Run
from tapml.carving.folder import RunFolder
from tapml.cli.main import main
from tapml.deploy import layout
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.session import Session
from tapml.deploy.text import Text, _render
from tapml.errors import BundleError, PromptError, RunError, UsageError
from tapml.manifest import SEAL, seal
from tapml.migrate.model import Model
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import answered
from tests.cli.test_schemas import meets
from tests.conftest import MakeRun
from tests.deploy.conftest import TARGET


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_it_answers_as_the_source_does(built: Path, run: RunFolder) -> None:
    bundle = BundleFolder.open(built)
    with Session(bundle) as session:
        for _ in range(2):
            for prompt in run.prompts:
                assert tuple(session.generate(prompt.tokens, len(prompt.generated))) == prompt.generated
        assert session.uploaded == sum(p.stat().st_size for p in (built / "weights").iterdir()) - headers(built)


def headers(built: Path) -> int:
    return sum(8 + int.from_bytes(p.read_bytes()[:8], "little") for p in (built / "weights").iterdir())


def test_the_programs_are_those_that_passed(built: Path, run: RunFolder) -> None:
    programs = BundleFolder.open(built).programs
    verdicts = [json.loads(line) for line in (built / layout.VERDICTS).read_text().splitlines()]
    assert {v["operator"]: v["kernel"] for v in verdicts} == {name: program.digest for name, program in programs.items()}
    assert {v["status"] for v in verdicts} == {"pass"} and len(programs) == len(run.operators)


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "tvm", "tvm_ffi", "transformers"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
import json, pathlib, tapml
prompt = json.loads((pathlib.Path(sys.argv[1]) / "prompts.jsonl").read_text().splitlines()[0])
with tapml.Bundle.open(sys.argv[1]) as bundle:
    print(bundle.generate(prompt["tokens"], len(prompt["generated"])).tokens == prompt["generated"])
"""


def test_neither_torch_nor_a_compiler_of_ours_is_needed(built: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(built)], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_a_module_gives_its_outputs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("conv_net")
    Run.open(run.path).migrate(TARGET, fresh=True)
    bundle = BundleFolder.open(build(run, TARGET, tmp_path / "conv_net").path)
    inputs = {p.key: run.examples[0][p.key] for p in run.graphs[0].inputs}
    model = Model.of(run)
    expected = answered(Hybrid(model, model.source), run.protocol.check(inputs, ()))
    with Session(bundle) as session:
        outputs = session.run(inputs)
        with pytest.raises(UsageError, match=r"given: nothing"):
            session.run({})
        with pytest.raises(UsageError, match="chooses no tokens"):
            list(session.generate([1]))
    assert outputs.keys() == expected.keys() and outputs
    for key, array in expected.items():
        np.testing.assert_allclose(outputs[key], array, rtol=1e-4, atol=1e-5)


def test_what_was_altered_is_refused(copy: Path) -> None:
    """A byte of each file, one at a time."""
    rng = random.Random(3)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        clean = path.read_bytes()
        for place in {0, len(clean) - 1, rng.randrange(len(clean))}:
            path.write_bytes(clean[:place] + bytes([clean[place] ^ 0x10]) + clean[place + 1 :])
            name = path.relative_to(copy).as_posix()
            if name in (layout.VERDICTS, layout.PROMPTS):
                continue  # nothing that runs reads them
            with pytest.raises(BundleError, match=r"again|Use the TapML") as caught:
                answer(copy)
            assert "\n" not in str(caught.value)
        path.write_bytes(clean[: len(clean) // 2])
        if name not in (layout.VERDICTS, layout.PROMPTS):
            with pytest.raises(BundleError):
                answer(copy)
        path.unlink()
        if name not in (layout.VERDICTS, layout.PROMPTS):
            with pytest.raises(BundleError):
                answer(copy)
        path.write_bytes(clean)
    assert answer(copy)


def answer(path: Path) -> list[int]:
    bundle = BundleFolder.open(path)
    _ = bundle.plan, bundle.model, [bundle.weight(*key) for key in bundle._weights]
    return [1]


@pytest.mark.parametrize("change, words", [
    (lambda m: m.update(format_version=4), "has format 4; this TapML reads 3"),
        (lambda m: m.pop("allowed"), "is damaged"),
        (lambda m: m.update(generation={"temperature": -1}), "is damaged"),
        (lambda m: m.update(generation={"heat": 1}), "is damaged"),
    (lambda m: m.update(format="zip"), "is not the manifest of a bundle"),
    (lambda m: m.update(target="openc"), "There is no target 'openc'"),
    (lambda m: m["files"].pop("graphs.jsonl"), "has no graphs.jsonl"),
])  # fmt: skip
def test_manifests_that_are_sealed_and_wrong(copy: Path, change: Callable[[dict[str, object]], None], words: str) -> None:
    path = copy / layout.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest[SEAL] = seal(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=words):
        answer(copy)


def test_what_cannot_be_built_says_why(run: RunFolder, built: Path, make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"was not migrated to opencl.*First: tapml migrate"):
        build(run, "opencl", tmp_path / "a")
    with pytest.raises(BundleError, match=r"already holds a bundle. Replace it with --fresh"):
        build(run, TARGET, built)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(BundleError, match="is no bundle, so it was left"):
        build(run, TARGET, tmp_path / "mine", fresh=True)
    with pytest.raises(BundleError, match="No bundle at"):
        BundleFolder.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"is a run, not a bundle\. Make one of it: tapml build"):
        BundleFolder.open(run.path)
    with pytest.raises(RunError, match=r"is a bundle, not a run.*tapml verify"):
        RunFolder.open(built)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


def test_an_operator_that_stayed_cannot_ship(run: RunFolder, built: Path, tmp_path: Path) -> None:
    copied = RunFolder.open(Path(shutil.copytree(run.path, tmp_path / "run")))
    journal = copied.path / "targets" / TARGET / "migrate.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["record"] == "moved":
            line["operators"] = [name for name in line["operators"] if name != "decode/lm_head"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BundleError, match=r"1 of 71 operators stayed .*decode/lm_head \(pass.*tapml explain .* decode/lm_head"):
        build(copied, TARGET, tmp_path / "out")
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    with pytest.raises(BundleError, match=r"did not finish. Go on: .* --resume"):
        build(copied, TARGET, tmp_path / "out")


def test_an_operator_that_failed_ships_where_it_is_allowed(
    run: RunFolder, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record says that it failed, by a number that it never had: a kernel that is wrong on each machine is not to be had."""
    name = "decode/layers.1.mlp.gated_activation"
    copied = RunFolder.open(Path(shutil.copytree(run.path, tmp_path / "run")))
    journal = copied.path / "targets" / TARGET / "migrate.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["record"] == "moved":
            line["operators"] = [other for other in line["operators"] if other != name]
        if line["record"] == "verdict" and line["verdict"]["operator"] == name:
            line["verdict"] |= {"status": "fail", "stage": "numeric", "reason": "output 0: error 2 beyond 1"}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["build", str(copied.path), "--target", TARGET, "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert f"1 of 71 operators stayed on the source and cannot ship: {name} (fail" in capsys.readouterr().err
    for pattern, said in (("*lm_head", "each operator of that name passed on cpu"), ("*lm_heat", "No operator matches")):
        assert main([*words, "--allow", pattern]) == 2
        assert said in capsys.readouterr().err
    assert main([*words, "--allow", "*layers.1.mlp.*"]) == 0
    line = f"Not proven: 1 operator ships without having passed: {name}"
    assert line in " ".join(capsys.readouterr().out.split())
    bundle = BundleFolder.open(tmp_path / "out")
    assert bundle.allowed == (name,)
    assert bundle.programs[name] == BundleFolder.open(built).programs[name]
    assert main(["verify", str(tmp_path / "out"), "--repeat", "1", "--max-tokens", "2"]) == 0
    assert line in " ".join(capsys.readouterr().out.split())


def test_the_command_line(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert main(["build", str(run.path), "--target", TARGET, "-o", str(out)]) == 0
    assert "71 operators" in capsys.readouterr().out
    assert main(["build", str(run.path), "--target", TARGET, "-o", str(out), "--fresh", "--json", "-"]) == 0
    meets("build", json.loads(capsys.readouterr().out))
    prompt = run.prompts[0]
    words = " ".join(map(str, prompt.tokens))
    assert main(["generate", str(out), "--prompt", words, "--max-tokens", str(len(prompt.generated)), "--json", "-"]) == 0
    said_as_json = json.loads(capsys.readouterr().out)
    meets("generate", said_as_json)
    assert said_as_json["answers"][0]["generated"] == list(prompt.generated)
    for argv, code, said in (
        (["generate", str(out)], 2, "nothing to answer"),
        (["generate", str(out), "--prompt", "hello"], 2, "has no tokenizer: give token ids"),
        (["generate", str(out), "--prompt", "5 100000"], 2, "token 100000; the model's go from 0"),
        (["generate", str(out), "--prompt", " ".join(["5"] * 40)], 2, "40 tokens"),
        (["generate", str(tmp_path), "--prompt", "5"], 2, "No bundle at"),
        (["build", str(run.path), "--target", "gpu", "-o", str(out)], 2, "no target 'gpu'"),
    ):
        assert main(argv) == code
        assert said in capsys.readouterr().err


def test_a_chat_template_is_rendered_in_a_sandbox() -> None:
    turn = [{"role": "user", "content": "hi"}]
    template = (
        "{% for m in messages %}\n{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{{ 'now' if add_generation_prompt }}"
    )
    assert _render(template, turn, {"bos_token": "<s>"}) == "<s>user: hi\nnow"
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        _render("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", turn, {})


def test_a_model_without_a_tokenizer_takes_ids(built: Path) -> None:
    text = Text(BundleFolder.open(built))
    assert text.tokens("5, 9 70") == [5, 9, 70] and text.of([5, 9]) == "5 9"
    with pytest.raises(PromptError, match="has no tokenizer"):
        text.tokens("five")

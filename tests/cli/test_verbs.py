"""The verbs on a small model and a real driver: what they print, what their JSON holds, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml.devices.open import probe
from tests.cli.conftest import Typed

TypeIn = Callable[..., Typed]
VERDICT_KEYS = {"operator", "signature", "op", "status", "stage", "error", "bound", "source_error", "reason", "seconds"}
STATUSES = ["pass", "fail", "flaky", "error", "crash", "unchecked", "skipped"]

FAULT = """
def wrong(operator, target, source):
    return source.replace("exp(", "1.001f * exp(") if operator == "NAME" else source
"""

NORM = """
def wrong(operator, target, source):
    return source.replace("sqrt(", "1.01f * sqrt(") if operator == "NAME" else source
"""


@pytest.fixture(scope="session")
def target() -> str:
    """The one that opens and compiles soonest, for what is the same on all."""
    found = probe("cpu")
    if not found.available:
        pytest.skip(f"no C compiler here: {found.reason}")
    return "cpu"


@pytest.fixture(scope="session")
def opencl() -> str:
    found = probe("opencl")
    if not found.available:
        pytest.skip(f"no OpenCL here: {found.reason}")
    return "opencl"


def test_carve_tells_and_counts(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "run", tmp_path / "carve.json"
    typed = type_in("carve", f"{models}:conv_net", "-o", out, "--json", told)
    assert typed.code == 0, typed.err
    data = json.loads(told.read_text())
    assert data.keys() >= {"operators", "signatures", "cases", "bytes", "naive_bytes", "seconds", "source_seconds"}
    run = tapml.Run.open(out)
    assert (data["operators"], data["cases"]) == (len(run.operators), len(run.cases))
    assert f"{data['operators']} from" in typed.out
    assert f"Next: tapml migrate {out} --target opencl" in " ".join(typed.out.split())
    assert all(len(line) <= 120 for line in typed.out.splitlines())


def test_carve_keeps_what_prompts_gave(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("7 8 9\n\n10 11\n")
    typed = type_in(
        "carve", f"{models}:llama", "-o", tmp_path / "run", "--prompt", "5 9 70", "--prompt-file", prompts, "--decode-steps", "3",
        "--chunk", "4", "--json", "-",
    )  # fmt: skip
    assert typed.code == 0, typed.err
    data = json.loads(typed.out)
    assert [p["tokens"] for p in data["prompts"]] == [[5, 9, 70], [7, 8, 9], [10, 11]]
    assert all(1 <= len(p["generated"]) <= 3 for p in data["prompts"])


def test_test_passes_and_says_so(type_in: TypeIn, whole_run: Path, target: str, tmp_path: Path) -> None:
    told = tmp_path / "test.json"
    typed = type_in("test", whole_run, "--target", target, "--operator", "*layers.0*", "--json", told)
    assert typed.code == 0, typed.out + typed.err
    data = json.loads(told.read_text())
    assert data["target"] == target and data["device"]["platform"] == target
    assert list(data["summary"]) == STATUSES
    assert data["summary"]["pass"] == len(data["verdicts"]) > 10
    assert all(v.keys() >= VERDICT_KEYS and "layers.0" in v["operator"] for v in data["verdicts"])
    assert f"{len(data['verdicts'])} operators: {len(data['verdicts'])} pass · {target} on " in typed.out
    assert "more that passed" in typed.out


def test_a_fault_is_named(type_in: TypeIn, whole_run: Path, target: str, tmp_path: Path) -> None:
    name = "decode/layers.1.mlp.gated_activation"
    (tmp_path / "fault.py").write_text(FAULT.replace("NAME", name))
    words = ("test", whole_run, "--target", target, "--operator", "decode/*mlp*", "--inject", f"{tmp_path / 'fault.py'}:wrong")
    typed = type_in(*words, "--json", tmp_path / "test.json")
    assert typed.code == 1, typed.out + typed.err
    data = json.loads((tmp_path / "test.json").read_text())
    wrong = [v for v in data["verdicts"] if v["status"] != "pass"]
    assert [v["operator"] for v in wrong] == [name]
    assert wrong[0]["stage"] == "numeric" and wrong[0]["error"] > wrong[0]["bound"]
    lines = typed.out.splitlines()
    rows = [line.split()[3] for line in lines if len(line.split()) > 4 and line.split()[3] in ("fail", "pass")]
    assert rows[0] == "fail" and rows.count("fail") == 1, "worst first"
    assert f"{name}: fail at numeric" in typed.out and " 1 fail " in " ".join(lines[-3:])
    fault = f"{tmp_path / 'fault.py'}:wrong"
    assert lines[-1] == f"Next: tapml explain {whole_run} {name} --target {target} --inject {fault}"
    assert data["inject"] == fault and (data["kernels_changed"], data["passed"]) == (1, False) and data["kernels_seen"] > 1
    said = f"With fault {fault} injected: 1 of {data['kernels_seen']} kernels changed"
    assert said.replace(" ", "") in "".join(typed.out.split())
    assert data["run_digest"] == tapml.Run.open(whole_run).folder.digest and data["version"] == tapml.__version__
    assert abs((datetime.now(UTC) - datetime.fromisoformat(data["date"])).total_seconds()) < 600


def test_a_fault_that_changes_nothing_is_wrong_use(type_in: TypeIn, whole_run: Path, target: str, tmp_path: Path) -> None:
    (tmp_path / "fault.py").write_text(FAULT.replace("NAME", "no such operator"))
    words = ("--target", target, "--inject", f"{tmp_path / 'fault.py'}:wrong")
    for verb in (("test", whole_run, "--operator", "decode/*mlp*"), ("explain", whole_run, "decode/lm_head")):
        typed = type_in(*verb, *words)
        assert typed.code == 2 and not typed.out and "changed none of" in typed.err and "Traceback" not in typed.err


def test_a_failed_migration_says_what_to_type(type_in: TypeIn, run: Path, target: str, tmp_path: Path) -> None:
    name = "decode/layers.1.mlp.gated_activation"
    (tmp_path / "fault.py").write_text(FAULT.replace("NAME", name))
    fault = f"{tmp_path / 'fault.py'}:wrong"
    typed = type_in("migrate", run, "--target", target, "--tokens", "2", "--inject", fault, "--json", tmp_path / "m.json")
    assert typed.code == 1, typed.out + typed.err
    lines = typed.out.splitlines()
    assert lines[-1] == f"Next: tapml explain {run} {name} --target {target} --inject {fault}"
    assert f"With fault {fault} injected: 1 of ".replace(" ", "") in "".join(typed.out.split())
    data = json.loads((tmp_path / "m.json").read_text())
    assert (data["inject"], data["kernels_changed"], data["passed"]) == (fault, 1, False)
    folder = run / "targets" / target
    assert (folder / "migrate.injected.jsonl").is_file() and not (folder / "migrate.jsonl").exists()


def test_a_cumulative_test_names_the_first_wrong_operator(
    type_in: TypeIn, whole_run: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # names stay whole
    (tmp_path / "fault.py").write_text(NORM.replace("NAME", "prefill/layers.0.post_attention_layernorm"))
    words = ("test", whole_run, "--target", target, "--mode", "cumulative", "--inject", f"{tmp_path / 'fault.py'}:wrong")
    typed = type_in(*words, "--json", tmp_path / "test.json")
    assert typed.code == 1, typed.out + typed.err
    data = json.loads((tmp_path / "test.json").read_text())
    bad = [v for v in data["verdicts"] if v["status"] != "pass"]
    worst = max(bad, key=lambda v: v["error"] / v["bound"])["operator"]
    first = "prefill/layers.0.post_attention_layernorm"
    assert len(bad) > 3 and worst != first, "the fault grows on its way, so the worst operator is another one"
    lines = typed.out.splitlines()
    assert data["first_wrong"] == first and f"first wrong: {first}" in lines
    rows = [line.split()[0] for line in lines if line.startswith("prefill/") or line.startswith("decode/")]
    assert rows[0] == first and f" {first} " in lines[-1]
    order = [o.name for o in tapml.Run.open(whole_run).operators]
    shown = [line.split()[0] for line in lines[1:] if line.split()[3:4] == ["fail"]]
    assert shown == sorted(shown, key=order.index) and len(shown) > 3


def test_float16_that_is_computed_in_float32_is_said(type_in: TypeIn, models: Path, opencl: str, tmp_path: Path) -> None:
    out = tmp_path / "half"
    assert type_in("carve", f"{models}:conv_net", "-o", out, "--dtype", "float16").code == 0
    typed = type_in("test", out, "--target", f"{opencl}:f16=0", "--json", tmp_path / "test.json")
    data = json.loads((tmp_path / "test.json").read_text())
    assert data["storage"]["float16"] == "float32"
    said = f"float16 arithmetic: {opencl}:f16=0 asks for float32, so float16 was computed in float32"
    assert said in data["not_checked"] and f"Not checked: {said}" in " ".join(typed.out.split())
    kept = json.loads((out / "targets" / f"{opencl}_f16=0" / "test.jsonl").read_text().splitlines()[0])
    assert kept["storage"] == data["storage"] and kept["not_checked"] == data["not_checked"]


def test_files_for_build_servers(type_in: TypeIn, whole_run: Path, target: str, tmp_path: Path) -> None:
    name = "decode/layers.1.mlp.gated_activation"
    (tmp_path / "fault.py").write_text(FAULT.replace("NAME", name))
    words = ("test", whole_run, "--target", target, "--operator", "decode/*mlp*", "--inject", f"{tmp_path / 'fault.py'}:wrong")
    typed = type_in(*words, "--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md")
    assert typed.code == 1, typed.err
    assert '<failure type="fail" message="fail at numeric: ' in (tmp_path / "j.xml").read_text()
    text = (tmp_path / "m.md").read_text()
    assert f"| `{name}` | fail | numeric |" in text and f"Next: `tapml explain {whole_run} {name} --target" in text
    for flag in ("--junit", "--markdown"):
        typed = type_in(*words, flag, tmp_path / "none" / "x")
        assert typed.code == 2 and f"{flag} " in typed.said and "no directory" in typed.said


def test_cumulative(type_in: TypeIn, whole_run: Path, target: str) -> None:
    typed = type_in("test", whole_run, "--target", target, "--mode", "cumulative", "--operator", "*layers.1*", "--json", "-")
    assert typed.code == 0, typed.out + typed.err
    data = json.loads(typed.out)
    assert data["mode"] == "cumulative" and all("layers.1" in v["operator"] for v in data["verdicts"])


def test_migrate_shows_both_answers(type_in: TypeIn, run: Path, opencl: str, tmp_path: Path) -> None:
    told = tmp_path / "migrate.json"
    typed = type_in("migrate", run, "--target", opencl, "--tokens", "5", "--json", told)
    assert typed.code == 0, typed.out + typed.err
    data: dict[str, Any] = json.loads(told.read_text())
    total = len(tapml.Run.open(run).operators)
    assert len(data["offloaded"]) == data["summary"]["pass"] == total and data["kept_on_source"] == []
    end = data["end_to_end"]
    assert end.keys() >= {"tokens_source", "tokens_target", "tokens_match", "logit_error", "top1_agreement"}
    assert end["tokens_match"] is True and end["tokens_source"] == end["tokens_target"] and len(end["tokens_source"][0]) == 5
    tokens = " ".join(map(str, end["tokens_source"][0]))
    both = next(line for line in typed.out.splitlines() if tokens in line)
    assert both.count(tokens) == 2, "side by side"
    assert f"{total} of {total} operators offloaded to opencl" in typed.out and "5 of 5 tokens equal" in typed.out
    again = type_in("migrate", run, "--target", opencl, "--tokens", "5", "--resume", "--json", "-")
    assert json.loads(again.out)["resumed"] == total


def test_doctor(type_in: TypeIn, opencl: str) -> None:
    typed = type_in("doctor", "--target", opencl, "--json", "-")
    assert typed.code == 0
    assert [t["ready"] for t in json.loads(typed.out)["targets"]] == [True]

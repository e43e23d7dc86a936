"""The verbs on a small model and a real driver: what they print, what their JSON holds, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml.devices.open import probe
from tests.cli.conftest import Typed

TypeIn = Callable[..., Typed]
VERDICT_KEYS = {"operator", "signature", "op", "status", "stage", "error", "bound", "source_error", "reason", "seconds"}
STATUSES = ["pass", "fail", "flaky", "error", "crash", "skipped"]

FAULT = """
def wrong(operator, target, source):
    return source.replace("exp(", "1.001f * exp(") if operator == "NAME" else source
"""


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


def test_test_passes_and_says_so(type_in: TypeIn, whole_run: Path, opencl: str, tmp_path: Path) -> None:
    told = tmp_path / "test.json"
    typed = type_in("test", whole_run, "--target", opencl, "--operator", "*layers.0*", "--json", told)
    assert typed.code == 0, typed.out + typed.err
    data = json.loads(told.read_text())
    assert data["target"] == opencl and data["device"]["platform"] == opencl
    assert list(data["summary"]) == STATUSES
    assert data["summary"]["pass"] == len(data["verdicts"]) > 10
    assert all(v.keys() >= VERDICT_KEYS and "layers.0" in v["operator"] for v in data["verdicts"])
    assert f"{len(data['verdicts'])} operators: {len(data['verdicts'])} pass · opencl on " in typed.out
    assert "more that passed" in typed.out


def test_a_fault_is_named(type_in: TypeIn, whole_run: Path, opencl: str, tmp_path: Path) -> None:
    name = "decode/layers.1.mlp.gated_activation"
    (tmp_path / "fault.py").write_text(FAULT.replace("NAME", name))
    words = ("test", whole_run, "--target", opencl, "--operator", "decode/*mlp*", "--inject", f"{tmp_path / 'fault.py'}:wrong")
    typed = type_in(*words, "--json", tmp_path / "test.json")
    assert typed.code == 1, typed.out + typed.err
    wrong = [v for v in json.loads((tmp_path / "test.json").read_text())["verdicts"] if v["status"] != "pass"]
    assert [v["operator"] for v in wrong] == [name]
    assert wrong[0]["stage"] == "numeric" and wrong[0]["error"] > wrong[0]["bound"]
    lines = typed.out.splitlines()
    assert lines[1].split()[3] == "fail", "worst first"
    assert f"{name}: fail at numeric" in typed.out and "1 fail" in lines[-1]


def test_cumulative(type_in: TypeIn, whole_run: Path, opencl: str) -> None:
    typed = type_in("test", whole_run, "--target", opencl, "--mode", "cumulative", "--operator", "*layers.1*", "--json", "-")
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
    assert f"{total} of {total} operators run on opencl" in typed.out and "5 of 5 tokens equal" in typed.out
    again = type_in("migrate", run, "--target", opencl, "--tokens", "5", "--resume", "--json", "-")
    assert json.loads(again.out)["resumed"] == total


def test_doctor(type_in: TypeIn, opencl: str) -> None:
    typed = type_in("doctor", "--target", opencl, "--json", "-")
    assert typed.code == 0
    assert [t["ready"] for t in json.loads(typed.out)["targets"]] == [True]

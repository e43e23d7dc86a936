"""`--device NAME@URL` on the command line and in the carved suites: what is printed, and that no token is."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapml.cli import migrate
from tapml.cli.main import main
from tapml.cli.verb import follow_up
from tapml.report.progress import Progress
from tests.conftest import MakeRun
from tests.remote.processes import Agent, Hub

ROOT = Path(__file__).resolve().parents[2]
TARGET = "cpu"


@pytest.fixture
def hub(served: tuple[Hub, Agent], need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Hub:
    need(TARGET)
    served[1].wait_ready(TARGET)
    monkeypatch.setenv("TAPML_PATIENCE", "3")
    return served[0]


def test_a_device_at_a_hub_is_a_device_as_any_other(
    make_run: MakeRun, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run("encoder").path)
    remote = ["--target", TARGET, "--device", f"any@{hub.url}"]
    printed = ""
    for words in (["test", run], ["migrate", run, "--fresh"], ["bisect", run], ["health", run], ["explain", run, "linear"]):
        operator = make_run("encoder").operators[0].name
        words = [operator if word == "linear" else word for word in words]
        assert main([*words, *remote, "--json", "-"]) == 0, words
        out, err = capsys.readouterr()
        data = json.loads(out)
        assert data.get("device") != "local"
        if words[0] in ("test", "migrate"):
            (share,) = data["devices"]
            assert share["name"] == f"any@{hub.address.redacted}" and share["operators"] == len(data["verdicts"])
        printed += out + err
    assert hub.address.token not in printed
    for file in Path(run).rglob("*"):
        assert not file.is_file() or hub.address.token.encode() not in file.read_bytes(), file


def test_a_bench_of_faults_finds_on_a_device_at_a_hub_what_it_finds_here(
    make_run: MakeRun, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench = ["faults", "bench", str(make_run("encoder").path), "--target", TARGET, "--operators", "1"]
    bench += ["--faults", "ignored-strides,exponent-base", "--json", "-"]
    found = []
    for name, device in (("here", "local"), ("there", f"any@{hub.url}")):
        assert main([*bench, "--device", device, "-o", str(tmp_path / name)]) == 0
        data = json.loads(capsys.readouterr().out)
        found.append([data["device"], _without_seconds([data["classes"], data["clean"], data["totals"]])])
    assert found[0] == found[1]
    assert found[0][1][2]["tapml"]["detected"] == [2, 2]


def _without_seconds(data: object) -> Any:
    if isinstance(data, dict):
        return {key: _without_seconds(value) for key, value in data.items() if not key.endswith("seconds")}
    return [_without_seconds(value) for value in data] if isinstance(data, list) else data


def test_a_device_that_is_not_there(make_run: MakeRun, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run("encoder").path)
    operator = make_run("encoder").operators[0].name
    for words in (["test", run], ["migrate", run], ["bisect", run], ["explain", run, operator], ["faults", "bench", run]):
        assert main([*words, "--target", TARGET, "--device", f"phone@{hub.url}", "--json", "-"]) == 3, words
        out, err = capsys.readouterr()
        assert json.loads(out)["code"] == 3 and "Device phone is not connected to the hub" in err and "bench (" in err
    assert main(["test", run, "--target", TARGET, "--device", "phone@nowhere"]) == 2
    assert main(["bisect", run, "--target", TARGET, "--device", f"a,b@{hub.url}"]) == 2
    assert "which only tapml test and tapml migrate can share" in capsys.readouterr().err


def test_a_suite_runs_on_a_device_at_a_hub(make_run: MakeRun, hub: Hub) -> None:
    suite = str(make_run("encoder").path / "tests")
    for name, outcome, code in (("bench", "passed", 0), ("phone", "failed", 3)):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", suite, "-q", "-rs", "-p", "no:cacheprovider", "--target", TARGET,
             "--device", f"{name}@{hub.url}"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        counts = done.stdout.splitlines()[-1]
        assert done.returncode == code and outcome in counts, done.stdout
        assert name == "bench" or "not run: Device phone is not connected" in done.stdout


def test_what_is_to_be_typed_next_has_no_token() -> None:
    args = Namespace(run="R", target="cpu", device="a@http://h:1/?token=abc", tokens=None, inject=None)
    assert migrate.resume_hint(args).endswith("tapml migrate R --target cpu --device 'a@http://h:1/?token=…' --resume")
    assert follow_up(args, "explain", "x") == "tapml explain R x --target cpu --device 'a@http://h:1/?token=…'"


def test_what_remote_devices_say_is_shown_between_the_progress() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("tapml.remote")
    with Progress("test", stream):
        logger.warning("waiting for %s", "phone")
    logger.warning("nobody listens")
    assert stream.getvalue() == "test: waiting for phone\n"

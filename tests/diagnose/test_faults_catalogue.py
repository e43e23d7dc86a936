"""The catalogue of faults: complete, in order, documented, listed, and apart from what people run on their models."""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from rich.console import Console

from tapml.carving.folder import RunFolder
from tapml.cli import faults as verb
from tapml.cli.verb import Outcome
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.bench.result import METHODS, BenchResult, Fault, Found, Row
from tapml.diagnose.faults.catalogue import CATALOGUE, OF_OPERATORS, OF_PLANS, find
from tapml.diagnose.faults.fault import FaultClass, Level
from tapml.errors import RunError, TargetError, UsageError
from tapml.report.faults import markdown
from tapml.targets.known import TARGETS
from tapml.verdicts import STAGES

ROOT = Path(__file__).resolve().parents[2]

# What people run on their models; none of it may load a fault.
PRODUCT = ("tapml.api", *(f"tapml.cli.{name}" for name in ("carve", "test", "migrate", "bisect", "explain")))


def test_all_34_are_there_in_order() -> None:
    assert [fault.number for fault in CATALOGUE] == list(range(1, 35))
    assert len({fault.name for fault in CATALOGUE}) == len({fault.title for fault in CATALOGUE}) == 34
    assert [fault.number for fault in OF_PLANS] == [*range(29, 35)] and len(OF_OPERATORS) == 28


@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)
def test_the_facts_of_a_class_are_complete(fault: FaultClass) -> None:
    assert fault.name == fault.name.lower() and " " not in fault.name and not fault.name.isdecimal()
    assert fault.level in get_args(Level) and fault.stage in STAGES
    assert fault.title and len(fault.title) <= 90 and not fault.title.endswith(".")
    assert len(fault.imitates) > 60 and fault.imitates.endswith(".")
    assert fault.seen_in and all("#" in report and report.rpartition("#")[2].isdecimal() for report in fault.seen_in)
    assert set(fault.cannot) < set(TARGETS) and all(len(why) > 10 for why in fault.cannot.values())


def test_find_takes_numbers_and_names() -> None:
    assert find("16") is find(" Rotary-Pairing ") is CATALOGUE[15]
    with pytest.raises(UsageError, match="Did you mean rotary-pairing"):
        find("rotary-pair")
    with pytest.raises(UsageError, match="numbered 1 to 34"):
        find("35")


def listed(*words: str) -> Outcome:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    parser.add_argument("--json")
    return verb.run(parser.parse_args(["list", *words]))


def shown(outcome: Outcome, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for part in outcome.view:
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return str(text)


@pytest.mark.parametrize("width", [80, 130])
def test_the_list_names_every_class_at_any_width(width: int) -> None:
    text = shown(listed(), width)
    assert all(fault.name in text for fault in CATALOGUE)
    assert ("onnxruntime#31626" in text) == (width == 130)
    assert len(text.splitlines()) < 110


def test_the_list_says_what_a_target_cannot_express() -> None:
    outcome = listed("--target", "cpu")
    here = {row["number"]: row["here"] for row in outcome.data["faults"]}
    assert here == {fault.number: "cpu" not in fault.cannot for fault in CATALOGUE}
    assert not here[11] and here[16]
    assert f"cpu can express {sum(here.values())} of them" in shown(outcome, 80)
    assert "not here: kernels get plain pointers" in " ".join(shown(outcome, 130).split())
    with pytest.raises(TargetError):
        listed("--target", "vulcan")


def test_one_class_is_shown_whole() -> None:
    outcome = listed("11", "rotary-pairing")
    text = " ".join(shown(outcome, 80).split())
    for fault in (find("11"), find("16")):
        assert fault.imitates in text and all(report in text for report in fault.seen_in)
    assert "not on cpu, cuda, rocm" in text
    assert [row["number"] for row in outcome.data["faults"]] == [11, 16]
    assert len(listed("--long").data["faults"]) == 34


def test_json_may_stand_before_and_after_the_action() -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    parser.add_argument("--json")
    for words in (["--json", "-", "list"], ["list", "--json", "-"]):
        assert parser.parse_args(words).json == "-"
    assert parser.parse_args(["list"]).json is None
    text = json.dumps(listed().data)
    assert {"number", "name", "title", "level", "stage", "imitates", "seen_in", "cannot"} == set(json.loads(text)["faults"][0])


def typed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args(["bench", *words, "--target", "cpu"])


def test_wrong_use_of_the_bench_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No run at"):
        verb.run(typed(str(tmp_path / "run")))
    with pytest.raises(UsageError, match="Did you mean rotary-pairing"):
        verb.run(typed(str(tmp_path / "run"), "--faults", "3,rotary-pair"))


def result(*faults: tuple[bool, bool | None]) -> BenchResult:
    """What a bench gives in which TapML did or did not find each fault; the second says whether it is latent."""
    made = tuple(
        Fault("o", "a fault", {method: Found(detected, None, None, None, None, None, 0.0, "") for method in METHODS}, latent)
        for detected, latent in faults
    )
    row = Row(find("16").to_json(), 1, made)
    return BenchResult("m", "r", "cpu", DeviceInfo("cpu", "a processor", "gcc", False).to_json(), 1, 0, False, {}, (row,), 0.0)


def test_the_bench_passes_if_all_that_is_not_latent_was_found() -> None:
    assert verb.all_found(result((True, None), (False, True)))
    assert not verb.all_found(result((True, None), (False, False)))
    died = Row(find("6").to_json(), 1, (Fault("o", "a fault", {}, note="it ended the process"),))
    assert not verb.all_found(replace(result((True, None)), rows=(died,)))


def test_the_verb_hands_on_what_was_asked_and_writes_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def bench(run: RunFolder, target: str, device: str, **more: Any) -> BenchResult:
        asked.update(more, run=run, target=target, device=device)
        return result((False, False))

    monkeypatch.setattr("tapml.diagnose.bench.stage.bench", bench)
    monkeypatch.setattr(RunFolder, "open", lambda path: SimpleNamespace(path=path, digest="d"))
    words = ["run", "--faults", "3,rotary-pairing", "--operators", "2", "--seed", "5"]
    outcome = verb.run(typed(*words, "-o", str(tmp_path / "out")))
    assert asked["faults"] == (find("3"), find("16")) and (asked["operators"], asked["seed"]) == (2, 5)
    assert (str(asked["run"].path), asked["target"], asked["device"]) == ("run", "cpu", "local")
    assert outcome.data["run_digest"] == "d"
    assert outcome.code == 1
    assert outcome.data["files"] and all(Path(file).is_file() for file in outcome.data["files"])
    assert str(tmp_path / "out") in shown(outcome, 300)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        verb.run(typed(*words, "-o", str(tmp_path / "file")))


def test_the_documentation_has_the_table_of_the_catalogue() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    begin, end = "<!-- the table: tapml.report.faults.markdown -->\n", "<!-- end of the table -->\n"
    table = text[text.index(begin) + len(begin) : text.index(end)]
    assert table == markdown(CATALOGUE), "write it anew: python -m tests.diagnose.test_faults_catalogue"


def test_what_people_run_reaches_no_fault() -> None:
    """Through no import, those inside functions included."""
    waiting, seen = list(PRODUCT), set(PRODUCT)
    while waiting:
        name = waiting.pop()
        for other in imported(name) - seen:
            assert not other.startswith("tapml.diagnose.faults"), f"{name} imports {other}"
            seen.add(other)
            waiting.append(other)
    assert {"tapml.migrate.workbench", "tapml.diagnose.bisect.stage", "tapml.diagnose.explain.stage"} <= seen


def test_loading_what_people_run_loads_no_fault() -> None:
    stages = ("carving.carve", "migrate.migrate", "diagnose.bisect.stage", "diagnose.explain.stage")
    modules = [*PRODUCT, *(f"tapml.{stage}" for stage in stages)]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([m for m in sys.modules if m.startswith('tapml.diagnose.faults')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def source_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imported(module: str) -> set[str]:
    """Modules of TapML that a module imports anywhere but for types."""
    path = source_of(module)
    assert path is not None, module
    tree = ast.parse(path.read_text())
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typing = {id(node) for guard in guards for node in ast.walk(guard)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return {name for name in found if name.split(".")[0] == "tapml" and source_of(name) is not None}


if __name__ == "__main__":
    document = ROOT / "docs" / "faults.md"
    start, stop = "<!-- the table: tapml.report.faults.markdown -->\n", "<!-- end of the table -->\n"
    before, rest = document.read_text().split(start)
    document.write_text(before + start + markdown(CATALOGUE) + stop + rest.split(stop)[1])

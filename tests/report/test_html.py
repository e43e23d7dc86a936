"""The report as a file: what is in it is what was found, nothing breaks out of it, nothing leaves it, and it stays small."""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.api import Run
from tapml.carving.folder import RunFolder
from tapml.carving.tolerance import of_source
from tapml.cli import report as verb
from tapml.diagnose.probes.evidence import Evidence
from tapml.diagnose.probes.hazards import TextElsewhere
from tapml.diagnose.probes.launches import Grid
from tapml.diagnose.probes.running import AsItIs
from tapml.errors import RunError, UnavailableError, UsageError
from tapml.migrate.picture import keep_picture, picture
from tapml.migrate.programs import keep, kept
from tapml.migrate.records import Records
from tapml.operators.graph import Node
from tapml.printable import printable
from tapml.report.html import evidence as html_evidence
from tapml.report.html import page, sides
from tapml.report.html.bodies import lines, source_lines
from tapml.report.html.cases import facts
from tapml.report.html.kernels import CLASSES, marks
from tapml.report.html.layout import lay_out
from tapml.report.html.numbers import short
from tapml.report.html.page import LIMIT, embedded, script, write_report
from tapml.report.html.sides import LETTERS
from tapml.report.html.snippets import Snippets
from tests.report.results import HOSTILE, SOURCE, bare, copy, data_of, pretend, program


def operators_with(sheet: Any, letter: str) -> list[int]:
    return [k for k, found in enumerate(sheet["status"]) if found == letter]


def test_verdicts_and_measures_are_those_of_the_records(results: RunFolder, tmp_path: Path) -> None:
    written = write_report(results, tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    assert written.targets == ("opencl", "vulkan") and written.operators == len(results.operators)
    assert written.bytes == (tmp_path / "r.html").stat().st_size < LIMIT and not written.left_out
    for side in data["sides"][1:]:
        sheet, records = side["modes"]["isolated"], Records.of(results, side["target"])
        assert records.isolated is not None
        for k, operator in enumerate(results.operators):
            verdict = records.isolated.verdicts[operator.name]
            assert sheet["status"][k] == LETTERS[verdict.status]
            assert sheet["error"][k] == short(verdict.error) and sheet["bound"][k] == short(verdict.bound)
            assert data["strings"][sheet["reason"][k]] == printable(verdict.reason)
        assert sheet["measures"]["error"] == [short(m.error) for m in records.isolated.measures]
        assert sheet["measures"]["step"] == [m.step for m in records.isolated.measures]
        assert side["device"]["driver"] == "driver 1.2" and sum(side["summary"]["isolated"].values()) == len(results.operators)


def test_the_story_and_what_was_not_checked(results: RunFolder, tmp_path: Path) -> None:
    write_report(results, tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    _, opencl, vulkan = data["sides"]
    moved = {k for a, b in opencl["story"]["moved"] for k in range(a, b + 1)}
    assert moved == set(operators_with(opencl["modes"]["isolated"], "p"))
    assert set(opencl["story"]["kept"]) == set(range(len(results.operators))) - moved
    assert [e["kind"] for e in opencl["story"]["events"]] == ["check", "moved"]
    assert opencl["story"]["moved_count"] == len(moved)
    assert opencl["story"]["prompts"][0]["differs_at"] == 2 and not vulkan["story"]["finished"]
    told = " ".join(f"{line['what']} {line['command']}" for line in data["unchecked"])
    assert "vulkan: the migration has not ended" in told and "opencl: the migration" not in told
    assert "opencl, isolated: 1 operator skipped" in told and "Never run: cpu, webgpu" in told
    assert f"tapml test {results.path} --target opencl --mode cumulative" in told


def test_every_operator_has_its_place_body_inputs_and_case(results: RunFolder, tmp_path: Path) -> None:
    write_report(results, tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    place = {o.name: k for k, o in enumerate(results.operators)}
    norm, q_proj = place["decode/layers.1.input_layernorm"], place["decode/layers.1.self_attn.q_proj"]
    assert data["operators"]["inputs"][q_proj][0] == norm
    assert data["operators"]["inputs"][q_proj][1] == "weight model.layers.1.self_attn.q_proj.weight"
    assert data["strings"][data["operators"]["source"][norm][0]].startswith("modeling_llama.py:")
    assert data["signatures"][data["operators"]["signature"][norm]]["lines"][0][1] == "i0 ** 2"
    case = next(c for c in results.cases if c.operator.endswith("input_layernorm"))
    told = next(c for c in data["cases"] if c["id"] == case.id)
    inputs, expected = results.case_arrays(case)
    assert told["inputs"][0]["max"] == short(float(inputs[0].max()))
    assert told["outputs"][0]["mean"] == short(float(expected[0].astype(np.float64).mean()))
    kernel = data["kernels"]["programs"][data["sides"][1]["modes"]["isolated"]["program"][norm]]
    launch = data["kernels"]["kernels"][kernel["steps"][0][0]]
    assert launch["grid"] == [8, 1, 1] and SOURCE in data["kernels"]["texts"][launch["text"]]["source"]
    # One program a signature, though two targets and every operator of the signature point at it.
    assert len(data["kernels"]["programs"]) <= len(results.bodies)


def test_a_real_migration_keeps_its_kernels(
    make_run: Callable[[str], RunFolder], tmp_path: Path, need: Callable[[str], str]
) -> None:
    run = bare(make_run("conv_net"), tmp_path / "run")
    again = Run(run).test(need("cpu"), operator=run.operators[0].name, repeat=2).invariance
    result = Run(run).migrate("cpu")
    write_report(run, tmp_path / "r.html", ["cpu"])
    data = data_of(tmp_path / "r.html")
    side = data["sides"][1]
    assert again is not None and again.to_json().items() <= side["invariance"].items()
    assert side["device"]["name"] == result.device.name
    for k, verdict in enumerate(result.verdicts):
        used = data["kernels"]["programs"][side["modes"]["isolated"]["program"][k]]
        assert used["digest"] == verdict.kernel
    assert side["story"]["prompts"][0]["passed"] is result.passed is True
    assert not any("is not in the run" in line["what"] for line in data["unchecked"])


def test_a_fault_and_wider_arithmetic_are_said(results: RunFolder, tmp_path: Path) -> None:
    run = copy(results, tmp_path / "run")
    half = "float16 arithmetic: a GPU has no shader-f16, so float16 was computed in float32"
    pretend(run, "webgpu", not_checked=(half,))
    pretend(run, "webgpu", fault="fault.py:wrong")
    write_report(run, tmp_path / "r.html", ["webgpu"])
    data = data_of(tmp_path / "r.html")
    clean, faulty = data["sides"][1:]
    assert (clean["injected"], clean["fault"]) == (False, None) and clean["story"]["finished"], "the clean migration is there"
    assert (faulty["injected"], faulty["fault"]) == (True, "fault.py:wrong") and faulty["story"]["finished"]
    said = [line["what"] for line in data["unchecked"]]
    assert f"webgpu: not checked: {half}." in said
    assert "webgpu with fault fault.py:wrong: results of a fault, on purpose." in said
    assert not any("was not migrated" in line for line in said)
    assert "`with the fault ${side.fault}`" in script()


def test_nothing_breaks_out(results: RunFolder, tmp_path: Path) -> None:
    run = copy(results, tmp_path / "run")
    run.manifest["model"]["name"] = HOSTILE
    keep(Records.of(run, "opencl").folder, program(HOSTILE))
    file = tmp_path / "r.html"
    write_report(run, file)
    text = file.read_text(encoding="utf-8")
    assert text.count("</script") == 3 and "broken out'</script" not in text
    assert "<title>&lt;/script&gt;" in text
    data = data_of(file)
    seen = printable(HOSTILE)  # with escapes that can be seen
    assert data["run"]["name"] == seen != HOSTILE and data["sides"][1]["device"]["name"].endswith(seen)
    assert data["sides"][1]["story"]["prompts"][0]["reason"] == seen


@settings(max_examples=40)
@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedded_data_are_the_data_and_hold_no_markup(data: Any) -> None:
    text = embedded(data)
    assert json.loads(text) == data and not re.search("[<>&\u2028\u2029]", text)
    text.encode("utf-8")


def test_the_page_asks_nobody(results: RunFolder, tmp_path: Path) -> None:
    write_report(results, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    folder = Path(page.__file__).parent
    for part in (folder / "page.html", folder / "page.css", *(folder / "js").glob("*.js")):
        own = part.read_text(encoding="utf-8")
        assert not re.search(r"https?://|\burl\(|@import|\bfetch\(|XMLHttpRequest|innerHTML", own), part.name


def test_every_module_is_in_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {p.stem for p in (Path(page.__file__).parent / "js").glob("*.js")} == set(page.MODULES)
    for k, name in enumerate(page.MODULES):
        text = (Path(page.__file__).parent / "js" / f"{name}.js").read_text(encoding="utf-8")
        assert set(re.findall(r'from "\./(\w+)\.js"', text)) <= set(page.MODULES[:k]), name
    assert not re.search(r"^(import|export)\b", script(), re.MULTILINE)


def test_what_does_not_fit_is_left_out_and_said(results: RunFolder, tmp_path: Path) -> None:
    whole = write_report(results, tmp_path / "whole.html").bytes
    less = write_report(results, tmp_path / "less.html", limit=whole - 1)
    assert less.bytes < whole and less.left_out == ("the kernel source of operators that pass",)
    data = data_of(tmp_path / "less.html")
    assert data["left_out"] == list(less.left_out)
    sheet, texts = data["sides"][1]["modes"]["isolated"], data["kernels"]["texts"]

    def sources(letter: str) -> list[bool]:
        programs = [data["kernels"]["programs"][sheet["program"][k]] for k in operators_with(sheet, letter)]
        return ["source" in texts[data["kernels"]["kernels"][p["steps"][0][0]]["text"]] for p in programs]

    assert all(sources("f")) and not all(sources("p"))
    least = write_report(results, tmp_path / "least.html", limit=1)
    assert len(least.left_out) == 6 and least.bytes < less.bytes
    assert data_of(tmp_path / "least.html")["sides"][1]["modes"]["isolated"]["status"] == sheet["status"]


def test_a_run_without_results(make_run: Callable[[str], RunFolder], tmp_path: Path) -> None:
    run = bare(make_run("encoder"), tmp_path / "run")
    written = write_report(run, tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    assert written.targets == () and [side["target"] for side in data["sides"]] == ["source"]
    sheet = data["sides"][0]["modes"]["isolated"]
    worst = max(a.beyond for case in run.cases for a in case.accuracy)
    assert max(e for e in sheet["error"] if e is not None) == short(worst)
    told = [line["what"] for line in data["unchecked"]]
    assert told[:2] == ["No operator was run on any target.", "Never run: cpu, opencl, vulkan, webgpu, torch, ort."]


def test_two_runs(results: RunFolder, make_run: Callable[[str], RunFolder], tmp_path: Path) -> None:
    other = bare(make_run("llama"), tmp_path / "other")
    pretend(other, "opencl", scale=0.5)
    assert write_report(results, tmp_path / "r.html", ["opencl"], other).targets == ("opencl",)
    data = data_of(tmp_path / "r.html")
    assert [(s["target"], s["run"]) for s in data["sides"]] == [("source", 0), ("opencl", 0), ("opencl", 1)]
    first, second = (s["modes"]["isolated"]["error"] for s in data["sides"][1:])
    assert first != second and data["other"]["same_run"] and not data["other"]["only_here"]
    stranger = bare(make_run("encoder"), tmp_path / "stranger")
    pretend(stranger, "opencl")
    write_report(results, tmp_path / "r.html", ["opencl"], stranger)
    data = data_of(tmp_path / "r.html")
    assert len(data["other"]["only_here"]) == len(results.operators)
    told = data["sides"][-1]["story"]
    assert told["moved"] == [] and told["moved_count"] > 0, "operators that the first run lacks are counted all the same"


def test_diagnosis_is_shown(results: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy(results, tmp_path / "run")
    records = Records.of(run, "opencl")
    assert records.isolated is not None
    verdict = next(v for v in records.isolated.verdicts.values() if v.status == "fail")
    folder = records.folder / "explain" / verdict.operator.replace("/", "__")
    (folder / "reproducer").mkdir(parents=True)
    (folder / "reproducer" / "run.py").write_text("")
    array = {"shape": [2], "dtype": "float32", "values": [1.0, None]}
    probes = [
        Evidence(AsItIs(), "wrong", "error 4.5 of the tolerance", "opencl", 9e-6, 2e-6),
        Evidence(Grid(), "wrong", "the launch is large enough"), Evidence(TextElsewhere(), "not needed", ""),
    ]  # fmt: skip
    evidence = {
        "operator": verdict.operator, "stage": "codegen", "because": "of this", "evidence": [p.to_json() for p in probes],
        "elements_before": 9, "elements_after": 2, "reproducer": "/elsewhere/reproducer", "kernels": [], "minimised": {
            "inputs": [array], "expected": [array], "actual": [array], "kernels": [program("small").kernels[0].to_json()],
        },
    }  # fmt: skip
    (folder / "evidence.json").write_text(json.dumps(evidence))
    write_report(run, tmp_path / "r.html", ["opencl"])
    data = data_of(tmp_path / "r.html")
    (told,) = data["sides"][1]["explained"].values()
    assert told["stage"] == "codegen" and told["files"] == ["run.py"] and told["minimised"]["actual"] == [array]
    kernels = data["kernels"]
    launch = kernels["kernels"][kernels["programs"][told["program"]]["steps"][0][0]]
    assert "small" in kernels["texts"][launch["text"]]["source"]
    wrong, harmless = told["evidence"]
    assert wrong["said"] == "It is wrong on the target." and wrong["tone"] == "wrong" and wrong["ratio"] == 4.5
    assert harmless["said"].startswith("More workgroups do not help") and harmless["tone"] == "open", "it is no fault of anything"
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(told["packed"]["zip"]))) as archive:
        assert archive.namelist() == [f"{folder.name}/run.py"] and told["packed"]["name"] == f"{folder.name}.zip"
    monkeypatch.setattr(html_evidence, "MOST_BYTES", 10)
    write_report(run, tmp_path / "r.html", ["opencl"])
    (told,) = data_of(tmp_path / "r.html")["sides"][1]["explained"].values()
    assert told["packed"] is None and told["reproducer"], "one that is too large is named"
    (folder / "evidence.json").write_text("{")
    with pytest.raises(RunError, match=r"evidence\.json is damaged"):
        write_report(run, tmp_path / "r.html")


def test_wrong_outputs_are_drawn_worst_first_as_far_as_there_is_room(
    results: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(results, tmp_path / "run")
    records = Records.of(run, "opencl")
    assert records.isolated is not None
    verdicts = [v for v in records.isolated.verdicts.values() if v.status in ("fail", "flaky", "pass")]
    expected = np.arange(8.0).reshape(2, 4)
    for verdict in verdicts:
        drawn = {"trial": "case0", "output": 0, **picture(expected + 1, of_source(expected, 0.0), (0, 0))}
        keep_picture(records.folder, verdict.operator, str(verdict.kernel), drawn, injected=False)
    write_report(run, tmp_path / "r.html", ["opencl"])
    data = data_of(tmp_path / "r.html")
    place = {o.name: str(k) for k, o in enumerate(run.operators)}
    bad = {place[v.operator] for v in verdicts if v.status != "pass"}
    assert set(data["sides"][1]["pictures"]) == bad and len(bad) == 2, "what passed needs no picture"
    monkeypatch.setattr(sides, "MOST_CELLS", 8)
    write_report(run, tmp_path / "r.html", ["opencl"])
    assert len(data_of(tmp_path / "r.html")["sides"][1]["pictures"]) == 1


def test_a_test_keeps_what_its_wrong_outputs_look_like(
    make_run: Callable[[str], RunFolder], tmp_path: Path, need: Callable[[str], str]
) -> None:
    run = bare(make_run("conv_net"), tmp_path / "run")
    fault = tmp_path / "fault.py"
    fault.write_text(
        "import re\ndef wrong(operator, target, source):\n    return source if operator != 'head' else "
        "re.sub(r'^(\\s*out\\w*\\[[^\\]]*\\]) = (.*);$', r'\\1 = 1.5f + \\2;', source, flags=re.M)\n"
    )
    assert not Run(run).test(need("cpu"), inject=f"{fault}:wrong").passed
    write_report(run, tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    head = next(k for k, o in enumerate(run.operators) if o.name == "head")
    (side,) = [s for s in data["sides"] if s.get("injected")]
    (drawn,) = side["pictures"].values()
    assert list(side["pictures"]) == [str(head)] and drawn["maps"][0]["pattern"] == "every element is a mismatch"
    assert drawn["shape"] == list(run.bodies[run.operators[head].signature].output_specs[0].shape)


def test_the_models_own_lines_are_shown_where_the_file_is_there(results: RunFolder, tmp_path: Path) -> None:
    write_report(results, tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    place = next(k for k, o in enumerate(results.operators) if o.name == "prefill/layers.1.mlp.down_proj")
    (shown,) = [data["snippets"][k] for k in data["operators"]["code"][place]]
    assert shown["file"] == "modeling_llama.py" and len(shown["lines"]) == 3 and shown["own"] == [shown["first"] + 1]
    assert "self.down_proj(" in shown["lines"][1]
    run = copy(results, tmp_path / "run")
    file = tmp_path / "net.py"
    file.write_text("one\ntwo\nthree\nfour\nfive\n")
    run.manifest["model"]["spec"] = f"{file}:model"
    code = Snippets(run)
    nodes = [Node(f"n{k}", "aten.neg.default", (), {}, (), "", f"net.py:{line}") for k, line in enumerate((3, 4))]
    assert code.of(nodes) == code.of(nodes) == [0]
    assert code.all == [{"file": "net.py", "first": 2, "lines": ["two", "three", "four", "five"], "own": [3, 4]}]
    gone = [replace(nodes[0], source=source) for source in ("nowhere.py:3", "net.py:9", "../net.py:3", "")]
    assert code.of(gone) == [], "nothing is guessed"


def test_elements_that_were_not_compared_are_counted(results: RunFolder, tmp_path: Path) -> None:
    run = copy(results, tmp_path / "run")
    write_report(run, tmp_path / "r.html", ["opencl"])
    data = data_of(tmp_path / "r.html")
    assert "excluded" not in data["sides"][1]["modes"]["isolated"], "nothing to say where all were compared"
    path = Records.of(run, "opencl").folder / "migrate.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    record = next(r for r in lines if r["record"] == "verdict" and r["verdict"]["status"] == "pass")
    record["verdict"] |= {"excluded": 12, "elements": 4096}
    record["measures"][0] |= {"excluded": 12, "elements": 4096}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_report(run, tmp_path / "r.html", ["opencl"])
    data = data_of(tmp_path / "r.html")
    sheet = data["sides"][1]["modes"]["isolated"]
    place = [o.name for o in run.operators].index(record["verdict"]["operator"])
    assert (sheet["excluded"][place], sheet["elements"][place], sum(sheet["excluded"])) == (12, 4096, 12)
    assert max(sheet["measures"]["excluded"]) == 12
    assert "opencl, isolated: 12 elements of 1 operator not compared." in [line["what"] for line in data["unchecked"]]


def test_what_the_weights_were_stored_as_is_a_fact_of_the_run(results: RunFolder, tmp_path: Path) -> None:
    run = copy(results, tmp_path / "run")
    write_report(run, tmp_path / "r.html")
    assert data_of(tmp_path / "r.html")["run"]["weights"] is None
    run.manifest["result"]["weights"] = "Q4_1"
    write_report(run, tmp_path / "r.html")
    assert data_of(tmp_path / "r.html")["run"]["weights"] == "Q4_1"


def test_errors_name_what_to_do(results: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no results of target 'metal'. There are results of opencl, vulkan"):
        write_report(results, tmp_path / "r.html", ["metal"])
    with pytest.raises(UsageError, match="no directory"):
        write_report(results, tmp_path / "none" / "r.html")
    with pytest.raises(UsageError, match="is a directory"):
        write_report(results, tmp_path)
    with pytest.raises(UsageError, match=r"/proc/r.html cannot be written: No such file or directory in /proc"):
        write_report(results, Path("/proc/r.html"))
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="bokeh"):
        write_report(results, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_the_verb(results: RunFolder, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    file = tmp_path / "r.html"
    outcome = verb.run(parser.parse_args([str(results.path), "-o", str(file), "--target", "vulkan"]))
    assert outcome.code == 0 and outcome.data == {
        "file": str(file), "bytes": file.stat().st_size, "operators": len(results.operators), "targets": ["vulkan"],
        "left_out": [], "run_digest": results.digest,
    }  # fmt: skip


def test_kept_programs_are_what_ran(tmp_path: Path) -> None:
    clean = program("one")
    keep(tmp_path, clean)
    assert kept(tmp_path, clean.digest) == clean and kept(tmp_path, program("two").digest) is None
    path = tmp_path / "kernels" / f"{clean.digest}.json"
    path.write_text(path.read_text().replace("2.0f", "3.0f"))
    with pytest.raises(RunError, match="not what ran"):
        kept(tmp_path, clean.digest)
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        kept(tmp_path, clean.digest)


def test_the_grid_of_a_decoder() -> None:
    layer = ["input_layernorm", "self_attn.q_proj", "self_attn.cache_update.keys_{}", "mlp.ln_1"]
    layers = [f"decode/layers.{k}.{n.format(k)}" for k in range(3) for n in layer]
    names = ["decode/mask", *layers[:2], "decode/rotary_emb", *layers[2:], "decode/norm", "decode/mask.2"]
    grid = lay_out(names)
    assert [row.label for row in grid.rows] == ["mask", "rotary_emb", "0", "1", "2", "norm", "mask.2"]
    columns = [(c.group, c.label) for c in grid.columns]
    assert columns == [("", "input_layernorm"), ("self_attn", "q_proj"), ("self_attn", "cache_update.keys"), ("mlp", "ln_1")]
    assert grid.places[names.index("decode/layers.1.self_attn.cache_update.keys_1")] == (3, 2)
    assert grid.places[0] == (0, None) and grid.places[names.index("decode/rotary_emb")] == (1, None)


_PARTS = st.lists(st.sampled_from(["a", "b", "block", "0", "1", "2", "norm"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(_PARTS, max_size=30, unique=True))
def test_no_two_operators_stand_in_one_place(names: list[str]) -> None:
    grid = lay_out(names)
    assert len(set(grid.places)) == len(names) == len(grid.places)
    assert {row for row, _ in grid.places} == set(range(len(grid.rows)))
    for row, column in grid.places:
        assert (column is None) == (grid.rows[row].layer is None)


@settings(max_examples=60)
@given(st.text(max_size=80), st.sampled_from(["opencl-c", "wgsl", "c", "msl"]))
def test_marks_cover_the_text(text: str, language: str) -> None:
    found = marks(SOURCE + text, language)
    assert sum(int(n) for n in found[::2]) == len(SOURCE + text) and set(found[1::2]) <= set(CLASSES)


def test_ranges_of_arrays() -> None:
    odd = facts(np.array([np.nan, np.inf, -2.0, 4.0], np.float32))
    assert odd["odd"] == 2 and (odd["min"], odd["max"], odd["mean"]) == (-2, 4, 1) and len(odd["bars"]) == 24
    assert facts(np.array([np.inf])) == {"odd": 1} and facts(np.zeros((0,), np.float32)) == {}
    assert facts(np.array([True, True])) == {"min": 1, "max": 1, "mean": 1}
    assert facts(np.ma.MaskedArray(np.array([1.0, 2.0]), [True, False]))["masked"] == 1
    huge = np.array([-1.7e308, 1.7e308])
    assert len(facts(huge)["bars"]) == 24
    assert [short(v) for v in (1.23456e-7, 5.0, math.inf, math.nan, None)] == [1.235e-07, 5, "inf", "nan", None]


def test_bodies_read_like_code(make_run: Callable[[str], RunFolder]) -> None:
    run = make_run("llama")
    norm = next(body for body in run.bodies.values() if body.kind == "rms_norm")
    told = [text for _, text, _ in lines(norm)]
    assert told == ["i0 ** 2", "mean(n0, [-1], True)", "n1 + 1e-06", "rsqrt(n2)", "i0 * n3", "i1 * n4"]
    places = ["a.py:3", "a.py:5", "a.py:4", "", "b.py:9"]
    nodes = [Node(f"n{k}", "aten.neg.default", (), {}, (), "", source) for k, source in enumerate(places)]
    assert source_lines(nodes) == ["a.py:3–5", "b.py:9"]

"""What `--json` gives is what the schemas in `tapml/cli/schemas/` say: every key is described, and every description is met."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import tapml
from tapml.cli.main import VERBS
from tests.cli.conftest import Typed

TypeIn = Callable[..., Typed]
Need = Callable[[str], str]

FOLDER = Path(tapml.__file__).parent / "cli" / "schemas"
SCHEMAS = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}

FAULT = """
def wrong(operator, target, source):
    return source.replace("0.0e+00f", "1.0e+00f") if operator == "NAME" else source
"""


def closed(schema: Any, whole: bool = True) -> Any:
    """The same, and a key that is not described is wrong."""
    if isinstance(schema, list):
        return [closed(item, False) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value, False) for key, value in schema.items()}
    if whole:
        return found | {"unevaluatedProperties": False}
    return {"additionalProperties": False} | found if isinstance(schema.get("properties"), dict) else found


def registry(strict: bool) -> Registry[Any]:
    """`parts.json`; its parts that a verb's object is composed of stay open, since each describes some of the keys only."""
    common = deepcopy(SCHEMAS["parts.json"])
    if strict:
        parts = {name: part if name in ("every", "of_a_run") else closed(part, False) for name, part in common["$defs"].items()}
        common["$defs"] = parts
    return Registry().with_resource("parts.json", Resource.from_contents(common))


def meets(name: str, data: Any) -> None:
    for schema, known in ((SCHEMAS[f"{name}.json"], registry(False)), (closed(SCHEMAS[f"{name}.json"]), registry(True))):
        check = Draft202012Validator(schema, registry=known)
        errors = [f"{error.json_path}: {error.message[:300]}" for error in check.iter_errors(data)]
        assert not errors, f"{name}: {errors[:5]}"


@pytest.fixture(scope="module")
def small(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("schemas") / "run"
    tapml.carve(f"{models}:conv_net", out=out)
    return out


@pytest.fixture
def result(type_in: TypeIn, tmp_path: Path) -> Callable[..., Any]:
    """`result(code, "test", run, …)`: the JSON of a command that ends with this code."""

    def run(code: int, *words: str | Path) -> Any:
        typed = type_in(*words, "--json", tmp_path / "result.json")
        assert typed.code == code, typed.out + typed.err
        return json.loads((tmp_path / "result.json").read_text())

    return run


def test_every_verb_has_a_schema_and_every_schema_is_one() -> None:
    names = set(VERBS) - {"faults"} | {"faults-list", "faults-bench", "parts", "error"}
    assert {Path(name).stem for name in SCHEMAS} == names
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema" and schema["title"]


def test_the_check_can_fail(result: Callable[..., Any]) -> None:
    data = result(0, "faults", "list")
    meets("faults-list", data)
    for broken in (data | {"unknown": 1}, data | {"date": "yesterday"}, {k: v for k, v in data.items() if k != "passed"}):
        with pytest.raises(AssertionError, match="faults-list"):
            meets("faults-list", broken)
    data["faults"][0]["unknown"] = 1
    with pytest.raises(AssertionError, match="unknown"):
        meets("faults-list", data)


def test_carve_and_errors(models: Path, result: Callable[..., Any], tmp_path: Path) -> None:
    meets("carve", result(0, "carve", f"{models}:conv_net", "-o", tmp_path / "run"))
    meets("error", result(2, "test", tmp_path / "nothing", "--target", "opencl"))
    meets("error", result(2, "test", tmp_path / "run", "--target", "nothing"))


def test_verbs_on_a_run(small: Path, result: Callable[..., Any], need: Need, tmp_path: Path) -> None:
    target = ("--target", need("cpu"))
    name = next(o.name for o in tapml.Run.open(small).operators if o.kind == "linear")
    (tmp_path / "fault.py").write_text(FAULT.replace("NAME", name))
    fault = ("--inject", f"{tmp_path / 'fault.py'}:wrong")
    repeated = result(0, "test", small, *target, "--repeat", "2")
    meets("test", repeated)
    assert repeated["invariance"]["operators"] > 0
    meets("test", result(1, "test", small, *target, "--mode", "cumulative", *fault))
    meets("migrate", result(0, "migrate", small, *target))
    meets("migrate", result(1, "migrate", small, *target, *fault))
    meets("bisect", result(0, "bisect", small, *target))
    meets("bisect", result(1, "bisect", small, *target, *fault))
    meets("explain", result(0, "explain", small, name, *target))
    meets("explain", result(1, "explain", small, name, *target, *fault))
    meets("health", result(0, "health", small))
    meets("health", result(0, "health", small, *target))
    (tmp_path / "engine.py").write_text("import numpy\ndef values(inputs, wanted):\n    return {wanted[0]: numpy.zeros(3)}\n")
    meets("check", result(1, "check", small, "--backend", f"{tmp_path / 'engine.py'}:values"))
    meets("report", result(0, "report", small, "-o", tmp_path / "report.html"))
    meets("export-cases", result(0, "export-cases", small, "-o", tmp_path / "cases"))
    meets("doctor", result(0, "doctor", *target))


def test_a_hub_and_its_devices(served: tuple[Any, Any], result: Callable[..., Any]) -> None:
    hub, _ = served
    meets("devices", result(0, "devices", hub.url))


STAYS = """
import torch

class Turned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.after(torch.cumprod(torch.complex(self.before(x), x), 0).real)

def turned():
    return Turned(), (torch.randn(3, 4),)
"""


def test_what_stays_on_the_source_is_said_by_every_verb(
    result: Callable[..., Any], type_in: TypeIn, need: Need, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(STAYS)
    run, target, why = tmp_path / "run", ("--target", need("cpu")), "it computes with complex numbers, which no target has"
    made = result(0, "carve", f"{tmp_path / 'net.py'}:turned", "-o", run)
    meets("carve", made)
    assert made["stays"] == [{"operator": "complex", "reason": why}]
    for verb in ("test", "migrate"):
        found = result(1, verb, run, *target)
        meets(verb, found)
        assert {v["operator"]: v["reason"] for v in found["verdicts"] if v["status"] != "pass"} == {
            "complex": f"stays on the source: {why}"
        }
    assert found["kept_on_source"] == ["complex"]
    said = type_in("migrate", run, *target, "--fresh")
    assert f"stays on the source: {why}" in " ".join(said.out.split()) and "Next:" not in said.out
    found = result(0, "bisect", run, *target)
    meets("bisect", found)
    assert found["not_compiled"] == [{"operator": "complex", "stage": None, "reason": f"stays on the source: {why}"}]
    found = result(0, "health", run, *target)
    meets("health", found)
    assert found["target"]["on_source"] == {"complex": f"stays on the source: {why}"} and not found["source"]["not_checked"]
    assert f"complex stays on the source: {why}" in type_in("explain", run, "complex", *target).said
    meets("report", result(0, "report", run, "-o", tmp_path / "report.html"))
    assert why in (tmp_path / "report.html").read_text()

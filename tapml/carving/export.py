"""The recorded calls of a run as plain arrays, for tests in other languages and other test frameworks.

    exported = export_cases(run, Path("cases"), "decode/*norm")

    DIR/cases.json        every operator signature: what it computes, its inputs and outputs, and its cases
    DIR/case7/i0.npy      inputs, in order; weights are in DIR/weights, once each
    DIR/case7/o0.npy      what is expected: float64's answer, or integers and booleans as they are
    DIR/case7/s0.npy      what the source answered, in its own dtype
    DIR/case7/m0.npy      where there are such: elements that are not to be compared

docs/export-cases.md says how to read and judge them. numpy has no bfloat16: such arrays are float32, which has the same numbers.
The folder is made as a whole, or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tapml
from tapml.carving.case import Case
from tapml.carving.folder import RunFolder
from tapml.carving.plain_reference import PlainReference
from tapml.errors import UsageError
from tapml.operators.graph import Operator
from tapml.operators.listing import calls
from tapml.operators.matching import matching
from tapml.tensors import HostArray, dtype_name
from tapml.verdicts import finite
from tapml.whole_file import whole_folder, why_not

INDEX = "cases.json"
WEIGHTS = "weights"
RULE = "|actual - expected| <= bound * (|expected| + scale) for every element that is not in left_out; bound 0: equal"


@dataclass(frozen=True)
class Exported:
    """What was written: `operators` counts signatures, `without` are operators of which no call was recorded."""

    folder: Path
    operators: int
    cases: int
    files: int
    bytes: int
    without: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder), "operators": self.operators, "cases": self.cases, "files": self.files,
            "bytes": self.bytes, "without": list(self.without),
        }


def export_cases(run: RunFolder, out: Path, glob: str = "*") -> Exported:
    """The recorded calls of the operators whose name matches, and of all that share a signature with one of them. Raises
    UsageError where none matches or `out` is taken, RunError for a damaged run."""
    operators = matching(run.operators, glob)
    signatures = list(dict.fromkeys(o.signature for o in operators))
    there = [s for s in signatures if run.cases_of_signature(s)]
    if not there:
        raise UsageError(
            f"No call of {glob!r} was recorded, so there is nothing to export. Carve with a longer prompt or more --decode-steps."
        )
    _refuse_taken(out)
    with whole_folder(out.resolve()) as partial:
        writer = _Writer(run, partial)
        described = [writer.operator(s) for s in there]
        index = {
            "format": "tapml-cases", "version": tapml.__version__, "model": run.manifest["model"]["name"],
            "run_digest": run.digest, "rule": RULE, "operators": described,
        }  # fmt: skip
        writer.text(INDEX, json.dumps(finite(index), indent=1, allow_nan=False) + "\n")
    without = tuple(o.name for o in operators if o.signature not in there)
    return Exported(out, len(there), sum(len(o["cases"]) for o in described), writer.files, writer.bytes, without)


def _refuse_taken(out: Path) -> None:
    """Raises UsageError where no new folder can be made at `out`."""
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty, and cases are written to a folder of their own. Remove it, or choose another -o.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, and cases are written to a folder. Choose another -o.")
    above = out.resolve().parent
    if not above.is_dir():
        raise UsageError(f"-o {out}: there is no directory {above}. Create it first, or choose another -o.")
    if reason := why_not(above):
        raise UsageError(f"-o {out} cannot be written: {reason} in {above}. Choose another -o.")


class _Writer:
    def __init__(self, run: RunFolder, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.files = 0
        self.bytes = 0
        self._weights: dict[str, str] = {}
        self._keys = {graph.name: {p.name: p.key for p in graph.placeholders} for graph in run.graphs}

    def operator(self, signature: str) -> dict[str, Any]:
        body = self.run.bodies[signature]
        return {
            "signature": signature,
            "kind": body.kind,
            "operators": [o.name for o in self.run.operators if o.signature == signature],
            "computes": calls(body),
            "inputs": [
                {"role": role, "shape": list(spec.shape), "dtype": spec.dtype}
                for role, spec in zip(body.roles, body.inputs, strict=True)
            ],
            "outputs": [
                {"shape": list(spec.shape), "dtype": spec.dtype, "is": name}
                for name, spec in zip(body.outputs, body.output_specs, strict=True)
            ],
            "cases": [self._case(case) for case in self.run.cases_of_signature(signature)],
        }

    def _case(self, case: Case) -> dict[str, Any]:
        inputs, references = self.run.case_references(case)
        operator = self.run.operator(case.operator)
        outputs = []
        for k, reference in enumerate(references):
            plain = PlainReference.of(reference, reference.dtype)
            outputs.append({
                "expected": self._array(f"{case.id}/o{k}", plain.expected),
                "source": self._array(f"{case.id}/s{k}", reference.values),
                "left_out": None if plain.left_out is None else self._array(f"{case.id}/m{k}", plain.left_out),
                "bound": plain.bound, "scale": plain.scale, "source_error": reference.accuracy.error,
            })  # fmt: skip
        return {
            "id": case.id, "operator": case.operator, "prompt": case.prompt, "step": case.step, "reasons": list(case.reasons),
            "inputs": [self._input(case, operator, k, array) for k, array in enumerate(inputs)],
            "outputs": outputs,
            "strides": {str(k): {"strides": list(how.strides), "offset": how.offset} for k, how in case.layouts},
        }  # fmt: skip

    def _input(self, case: Case, operator: Operator, k: int, array: HostArray) -> str:
        if self.run.bodies[operator.signature].roles[k] != "weight":
            return self._array(f"{case.id}/i{k}", array)
        key = self._keys[operator.graph][operator.inputs[k]]
        if key not in self._weights:
            self._weights[key] = self._array(f"{WEIGHTS}/{len(self._weights)}", array)
        return self._weights[key]

    def _array(self, name: str, array: HostArray) -> str:
        path = self.folder / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        plain = array.astype(np.float32) if dtype_name(array) == "bfloat16" else array
        with path.open("wb") as file:
            np.save(file, np.ascontiguousarray(plain).reshape(array.shape), allow_pickle=False)
        self._count(path)
        return f"{name}.npy"

    def text(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content, encoding="utf-8")
        self._count(self.folder / name)

    def _count(self, path: Path) -> None:
        self.files += 1
        self.bytes += path.stat().st_size

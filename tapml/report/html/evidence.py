"""What `tapml explain` left in a target's folder: explanations of operators, with their minimised cases.

    explained(folder, operators, kernels, injected)      {"12": {"stage": …, "evidence": […], "minimised": {…}, "files": […]}}

The files are read as they are; the page shows what is in them and knows little of how it was found. What is missing is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tapml.errors import RunError
from tapml.kernels import Kernel, Program, Step
from tapml.report.html.kernels import KernelTable

EXPLAIN = "explain"
EVIDENCE = "evidence.json"

_KEPT = ("stage", "because", "status", "evidence", "findings", "advice", "elements_before", "elements_after", "not_minimised")
_ARRAYS = ("inputs", "expected", "actual")


def explained(folder: Path, operators: dict[str, int], kernels: KernelTable, injected: bool) -> dict[str, Any]:
    """By the operator's place (as a string, since JSON has no other keys); those of an injected fault, or those of none. The
    kernels of the minimised case go into `kernels`. Raises RunError when a file is damaged."""
    found: dict[str, Any] = {}
    for path in sorted((folder / EXPLAIN).glob(f"*/{EVIDENCE}")):
        data = _json(path)
        place = operators.get(str(data.get("operator")))
        if place is None or ("inject" in data and (data["inject"] is not None) != injected):
            continue
        try:
            found[str(place)] = {key: data[key] for key in _KEPT if key in data} | _minimised(data, path.parent, kernels)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}: {error}). Explain the operator again.") from error
    return found


def _minimised(data: dict[str, Any], folder: Path, kernels: KernelTable) -> dict[str, Any]:
    small = data.get("minimised")
    if small is None:
        return {"minimised": None}
    loose = tuple(Kernel.from_json(k) for k in small.get("kernels", ()))
    steps = tuple(Step(k, ()) for k in range(len(loose)))
    program = kernels.add(Program(loose, steps, (), (), (), "")) if loose else None
    named = data.get("reproducer")
    # By its name beside the evidence: a run may have been moved since.
    reproducer = folder / Path(named).name if isinstance(named, str) else None
    there = reproducer is not None and reproducer.is_dir()
    return {
        "minimised": {key: small[key] for key in _ARRAYS}, "program": program,
        "reproducer": str(reproducer) if there else None,
        "files": sorted(p.name for p in reproducer.iterdir() if p.is_file()) if reproducer is not None and there else [],
    }  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}). Remove it, or make it anew.") from error
    return data

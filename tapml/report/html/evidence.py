"""What `tapml explain` left in a target's folder: explanations of operators, with their minimised cases.

    explained(folder, operators, kernels, injected)      {"12": {"stage": …, "evidence": […], "minimised": {…}, "files": […]}}

The files are read as they are; the page shows what is in them and knows little of how it was found. What is missing is left out.
"""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from typing import Any

from tapml import strict
from tapml.errors import RunError
from tapml.inside import path_in, read_file
from tapml.kernels import Kernel, Program, Step
from tapml.report.evidence import MARK, more
from tapml.report.html.kernels import KernelTable
from tapml.report.html.numbers import short

EXPLAIN = "explain"
EVIDENCE = "evidence.json"

# The largest reproducer that is packed into the page; a larger one is named by its folder.
MOST_BYTES = 400_000
# More than this is not even tried to be packed.
MOST_UNPACKED = 2**25
MOST_FILES = 200

_KEPT = ("stage", "because", "status", "findings", "advice", "elements_before", "elements_after", "not_minimised")
_ARRAYS = ("inputs", "expected", "actual")


def explained(folder: Path, operators: dict[str, int], kernels: KernelTable, injected: bool) -> dict[str, Any]:
    """By the operator's place (as a string, since JSON has no other keys); those of an injected fault, or those of none. The
    kernels of the minimised case go into `kernels`. Raises RunError when a file is damaged."""
    found: dict[str, Any] = {}
    for path in sorted((folder / EXPLAIN).glob(f"*/{EVIDENCE}")):
        data = _json(folder, path)
        place = operators.get(str(data.get("operator")))
        if place is None or ("inject" in data and (data["inject"] is not None) != injected):
            continue
        try:
            found[str(place)] = {
                **{key: data[key] for key in _KEPT if key in data}, **_minimised(data, path.parent, kernels),
                "evidence": [_said(e) for e in data.get("evidence", ()) if e["outcome"] != "not needed"],
            }  # fmt: skip
        except strict.UNREADABLE as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}: {error}). Explain the operator again.") from error
    return found


def _said(written: dict[str, Any]) -> dict[str, Any]:
    """One probe in the console's words, and the `tone` in which it is shown. One of a version that did not write these keeps its
    question and its outcome."""
    error, bound = written.get("error"), written.get("bound")
    said, tone = written.get("said"), str(written.get("tone"))
    tone = tone if tone in MARK else "open"
    return {
        "said": f"{written.get('question', written.get('probe', ''))} {written['outcome']}" if said is None else said,
        "tone": tone, "detail": more(tone, written.get("detail", ""), error, bound), "where": written.get("where", ""),
        "ratio": None if error is None or not bound else short(error / bound),
    }  # fmt: skip


def _packed(folder: Path) -> dict[str, Any] | None:
    """The folder as a zip archive that the page offers: `name`, `zip` in base64, `bytes`; None for one that is too large."""
    files = sorted(folder.rglob("*"))
    if len(files) > MOST_FILES or sum(p.lstat().st_size for p in files) > MOST_UNPACKED:
        return None
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (p for p in files if not p.is_dir()):
            # One date for all: the same reproducer is the same archive.
            entry = zipfile.ZipInfo(f"{folder.parent.name}/{file.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, read_file(folder, file.relative_to(folder).as_posix()))
    data = held.getvalue()
    if len(data) > MOST_BYTES:
        return None
    return {"name": f"{folder.parent.name}.zip", "zip": base64.b64encode(data).decode("ascii"), "bytes": len(data)}


def _minimised(data: dict[str, Any], folder: Path, kernels: KernelTable) -> dict[str, Any]:
    small = data.get("minimised")
    if small is None:
        return {"minimised": None}
    loose = tuple(Kernel.from_json(k) for k in small.get("kernels", ()))
    steps = tuple(Step(k, ()) for k in range(len(loose)))
    program = kernels.add(Program(loose, steps, (), (), (), "")) if loose else None
    named = data.get("reproducer")
    # By its name beside the evidence: a run may have been moved since.
    reproducer = path_in(folder, Path(named).name) if isinstance(named, str) and Path(named).name else None
    there = reproducer is not None and reproducer.is_dir()
    return {
        "packed": _packed(reproducer) if reproducer is not None and there else None,
        "minimised": {key: small[key] for key in _ARRAYS}, "program": program,
        "reproducer": str(reproducer) if there else None,
        "files": sorted(p.name for p in reproducer.iterdir() if p.is_file())[:MOST_FILES] if reproducer and there else [],
    }  # fmt: skip


def _json(folder: Path, path: Path) -> dict[str, Any]:
    try:
        data = strict.fields(strict.parse_small(read_file(folder, path.relative_to(folder).as_posix(), most=MOST_UNPACKED)))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}). Remove it, or create it again.") from error
    return data

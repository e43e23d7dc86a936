"""The recorded calls of a run, as numbers that fit a page: range, mean and a small histogram of every input and output.

    cases = case_data(run, progress)      one object a case, see `case_data`

Everything is computed from the recorded arrays; a weight that several cases read is looked at once. Needs no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapml.carving.folder import RunFolder
from tapml.migrate.workbench import Progress
from tapml.report.html.numbers import short
from tapml.tensors import HostArray

BINS = 24
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_CHUNK = 1 << 22


def case_data(run: RunFolder, progress: Progress | None = None) -> list[dict[str, Any]]:
    """For each case, in the run's order: `id`, `operator` (its place among the run's operators), `prompt`, `step`, `reasons`,
    `source` (the source's own error, a number an output), `inputs` and `outputs` (see `facts`)."""
    index = {operator.name: k for k, operator in enumerate(run.operators)}
    keys = {g.name: {p.name: p.key for p in g.weights} for g in run.graphs}
    weights: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for number, case in enumerate(run.cases):
        if progress is not None:
            progress("look at cases", number, len(run.cases))
        inputs, expected = run.case_arrays(case)
        operator = run.operator(case.operator)
        given = [keys[operator.graph].get(name) for name in operator.inputs]
        found.append({
            "id": case.id, "operator": index[case.operator], "prompt": case.prompt, "step": case.step,
            "reasons": list(case.reasons), "source": [short(e, 3) for e in case.source_error],
            "inputs": [facts(a) if key is None else _weight(weights, key, a) for a, key in zip(inputs, given, strict=True)],
            "outputs": [facts(a) for a in expected],
        })  # fmt: skip
    return found


def facts(array: HostArray) -> dict[str, Any]:
    """`min`, `max` and `mean` of the finite elements (absent where there are none), `odd` (how many are NaN or infinite) and
    `masked` (how many the source cannot decide), both absent when none, `bars`: a histogram between min and max, one base-36
    digit a bin, on a logarithmic scale of counts."""
    mask = np.ma.getmask(array)
    flat = np.ma.getdata(array).reshape(-1)
    parts = [flat[k : k + _CHUNK].astype(np.float64) for k in range(0, flat.size, _CHUNK)]
    finite = [part[np.isfinite(part)] for part in parts]
    count = sum(part.size for part in finite)
    told: dict[str, Any] = {}
    if odd := flat.size - count:
        told["odd"] = odd
    if mask is not np.ma.nomask:
        told["masked"] = int(mask.sum())
    if not count:
        return told
    low = min(float(part.min()) for part in finite if part.size)
    high = max(float(part.max()) for part in finite if part.size)
    told |= {"min": short(low), "max": short(high), "mean": short(sum(float(part.sum()) for part in finite) / count)}
    if low < high:
        # Halves, since high - low may overflow.
        counts = np.sum([np.histogram(part / 2, BINS, (low / 2, high / 2))[0] for part in finite], axis=0)
        heights = np.log1p(counts)
        told["bars"] = "".join(_DIGITS[round(float(h))] for h in heights / heights.max() * 35)
    return told


def _weight(known: dict[str, dict[str, Any]], key: str, array: HostArray) -> dict[str, Any]:
    if key not in known:
        known[key] = facts(array)
    return known[key]


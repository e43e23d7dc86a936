"""What a wrong output looks like: an error map of its last two axes, and how its values are spread beside the expected ones.

    drawn = picture(actual, reference, index)         plain data, small whatever the output's size
    keep_picture(folder, operator, kernel, drawn, injected)       RUN/targets/opencl/failing/OPERATOR.json
    picture = kept_picture(folder, operator, kernel, injected)    None where there is none of these kernels

"Every fourth column" or "the last row" is half of a diagnosis, and the numbers of a verdict do not tell it. A map has one letter
an element of `LEVELS`, on the logarithmic scale of the report: the first is no error, the last a hundred times the tolerance and
more, "~" a NaN or infinity that should not be there, " " an element that was not compared. What is larger than `SIDE` along an
axis is reduced, each cell the worst of its elements. Only the newest failure of each operator is kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapml import strict
from tapml.carving.layout import folder_name
from tapml.carving.tolerance import Reference, element_errors
from tapml.errors import RunError
from tapml.inside import path_in, read_file
from tapml.tensors import HostArray
from tapml.whole_file import write_whole

logger = logging.getLogger(__name__)

FOLDER = "failing"
SIDE = 256
BINS = 48
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = LEVELS[:36]
_LISTED = 6
_LARGEST = 2**24  # bytes of a picture's file


def picture(actual: HostArray, reference: Reference, index: Sequence[int] | None) -> dict[str, Any]:
    """`shape`, `dtype`, `maps` (one a way to look at it), `values` (None where nothing is finite). `index` is the worst element,
    through which the planes go. Raises ValueError when `actual` has another shape than the reference."""
    errors = element_errors(actual, reference)
    ratios = errors / (reference.bound or 1.0)  # where the tolerance is 0 an error is 0 or inf
    at = tuple(index) if index is not None else (0,) * ratios.ndim
    compared = ~np.isnan(ratios)
    return {
        "shape": list(ratios.shape), "dtype": reference.dtype,
        "maps": [_map(name, plane) for name, plane in _planes(ratios, at)],
        "values": _values(np.asarray(actual)[compared], np.asarray(reference.values)[compared]),
    }  # fmt: skip


def _planes(ratios: NDArray[np.float64], at: tuple[int, ...]) -> list[tuple[list[str], NDArray[np.float64]]]:
    """Planes through the worst element: the last two axes, and, where there are channels before them, channel by position. Each
    with what its rows, its columns and the whole are called."""
    if ratios.ndim < 2 or ratios.size == 0:
        return [(["", "element", ""], ratios.reshape(1, -1))]
    rows, columns = f"axis {ratios.ndim - 2}", f"axis {ratios.ndim - 1}"
    front = at[:-2]
    where = f"[{', '.join([*map(str, front), ':', ':'])}]" if any(n > 1 for n in ratios.shape[:-2]) else ""
    planes = [([rows, columns, where], ratios[front])]
    if ratios.ndim > 2 and ratios.shape[-3] > 1:
        inner = at[:-3]
        place = f"[{', '.join([*map(str, inner), ':', ':', ':'])}]" if any(n > 1 for n in ratios.shape[:-3]) else ""
        whole = ratios[inner]
        planes.append(([f"axis {ratios.ndim - 3}", f"{rows} × {columns}", place], whole.reshape(whole.shape[0], -1)))
    return planes


def _map(name: list[str], plane: NDArray[np.float64]) -> dict[str, Any]:
    """`cells` are the rows one after the other, `every` how many elements a cell stands for down and across."""
    rows, columns = plane.shape
    down, across = -(-rows // SIDE) or 1, -(-columns // SIDE) or 1
    small = _reduced(plane, down, across)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.clip(np.round((np.log10(small) + 2) / 4 * (len(LEVELS) - 1)), 1, len(LEVELS) - 1)
    level = np.where(small == 0, 0, np.nan_to_num(level, nan=0.0, posinf=len(LEVELS) - 1))
    letters = np.array(list(LEVELS))[level.astype(int)]
    letters = np.where(np.isnan(small), " ", np.where(np.isposinf(small), "~", letters))
    return {
        "rows": name[0], "columns": name[1], "at": name[2], "size": [rows, columns], "every": [down, across],
        "height": int(letters.shape[0]), "cells": "".join(letters.reshape(-1)), "pattern": pattern(plane, name[0], name[1]),
    }  # fmt: skip


def _reduced(plane: NDArray[np.float64], down: int, across: int) -> NDArray[np.float64]:
    """The worst of each block; NaN where all of a block is NaN, which stands for what was not compared."""
    filled = np.where(np.isnan(plane), -1.0, plane)
    padded = np.pad(filled, ((0, -plane.shape[0] % down), (0, -plane.shape[1] % across)), constant_values=-1.0)
    blocks = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across)
    worst = blocks.max(axis=(1, 3)) if blocks.size else blocks.reshape(0, 0)
    return np.where(worst < 0, np.nan, worst)


def pattern(plane: NDArray[np.float64], rows: str, columns: str) -> str:
    """Where the mismatches of a plane are, in words: "every 4th of axis 2, from 3", "the last of axis 1", "all of it"."""
    with np.errstate(invalid="ignore"):
        wrong = plane > 1
    if not wrong.any():
        return "no mismatch in this plane"
    if wrong.all():
        return "every element is a mismatch"
    told = [_along(np.flatnonzero(wrong.any(axis=axis)), wrong.shape[1 - axis], name) for axis, name in ((1, rows), (0, columns))]
    said = " and ".join(text for text in told if text)
    return f"{int(wrong.sum()):,} of {wrong.size:,} elements: {said or 'scattered over all rows and columns'}"


def _along(found: NDArray[np.intp], size: int, name: str) -> str:
    """Which places along an axis hold a mismatch; "" where all of them do."""
    if len(found) == size or not name:
        return ""
    if len(found) == 1:
        word = "the last" if found[0] == size - 1 else "the first" if found[0] == 0 else f"place {found[0]}"
        return f"{word} of {name}"
    gaps = np.diff(found)
    if (gaps == 1).all():
        end = "to the last" if found[-1] == size - 1 else f"to {found[-1]}"
        return f"{name} from {found[0]} {end}"
    if len(found) > 2 and (gaps == gaps[0]).all():
        return f"every {_ordinal(int(gaps[0]))} of {name}, from {found[0]}"
    listed = ", ".join(str(n) for n in found[:_LISTED])
    return f"{len(found):,} of {size:,} places of {name} ({listed}{', …' if len(found) > _LISTED else ''})"


def _ordinal(number: int) -> str:
    tail = "th" if 10 < number % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{tail}"


def _values(actual: HostArray, expected: HostArray) -> dict[str, Any] | None:
    """Both histograms on one axis, which reaches over the expected values and as far again to both sides; `outside` counts actual
    values beyond it, `odd` those that are not finite. A bar is one base-36 digit, on a logarithmic scale of counts."""
    y, r = actual.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    finite, wanted = y[np.isfinite(y)], r[np.isfinite(r)]
    if not wanted.size:
        return None
    low, high = float(wanted.min()), float(wanted.max())
    room = (high - low) or abs(high) or 1.0
    if finite.size:
        low, high = max(min(low, float(finite.min())), low - room), min(max(high, float(finite.max())), high + room)
    if not low < high or not np.isfinite(high - low):
        return None
    inside = finite[(finite >= low) & (finite <= high)]
    counts = [np.log1p(np.histogram(part, BINS, (low, high))[0]) for part in (wanted, inside)]
    most = max(float(c.max()) for c in counts) or 1.0
    bars = ["".join(_DIGITS[round(float(h) / most * 35)] for h in c) for c in counts]
    return {
        "low": float(f"{low:.4g}"), "high": float(f"{high:.4g}"), "expected": bars[0], "actual": bars[1],
        "outside": int(finite.size - inside.size), "odd": int(y.size - finite.size),
    }  # fmt: skip


def keep_picture(folder: Path, operator: str, kernel: str, drawn: dict[str, Any], injected: bool) -> None:
    """Writes a picture into a target's folder, over an older one of the operator. One that cannot be written costs a warning."""
    try:
        path = path_in(folder, _name(operator, injected))
    except RunError as error:
        logger.warning("the report shows no error map of %s: %s", operator, error)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"operator": operator, "kernel": kernel, **drawn}, separators=(",", ":")) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s); the report shows no error map of %s", path, error, operator)


def kept_picture(folder: Path, operator: str, kernel: str | None, injected: bool) -> dict[str, Any] | None:
    """The picture of what these kernels gave; None where there is none, or a damaged one: the verdict says what counts."""
    try:
        data = strict.fields(strict.parse_small(read_file(folder, _name(operator, injected), most=_LARGEST)))
        for drawn in strict.items(data, "maps"):
            strict.text(drawn, "cells")
    except (OSError, RunError, *strict.UNREADABLE):
        return None
    return data if (data.get("operator"), data.get("kernel")) == (operator, kernel) else None


def _name(operator: str, injected: bool) -> str:
    return f"{FOLDER}/{folder_name(operator)}{'.injected' if injected else ''}.json"

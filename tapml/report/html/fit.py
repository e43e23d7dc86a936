"""What is left out of a report that would be too large, in the order in which it goes, and the words that the page has for it.

    for notes, left_out in smaller(data, kernels): ...     each time with one thing less in it

The first is whole. `left_out` are the places of the kernel texts that are not to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tapml.report.html.kernels import KernelTable

Step = Callable[[dict[str, Any], KernelTable, frozenset[int]], tuple[str, frozenset[int]]]


def _without_passing_kernels(data: dict[str, Any], kernels: KernelTable, left_out: frozenset[int]) -> tuple[str, frozenset[int]]:
    wanted: set[int] = set()
    for sheet in _sheets(data):
        for letter, program in zip(sheet["status"], sheet["program"], strict=True):
            if letter not in "pr." and program is not None:
                wanted |= kernels.texts_of(program)
    every = frozenset(k["text"] for k in kernels.kernels)
    return "the kernel source of operators that pass", every - wanted


def _without_passing_reasons(data: dict[str, Any], kernels: KernelTable, left_out: frozenset[int]) -> tuple[str, frozenset[int]]:
    kept: set[int] = {place for column in ("kind", "module") for place in data["operators"][column]}
    kept |= {place for places in data["operators"]["source"] for place in places}
    for sheet in _sheets(data):
        kept |= {place for place in sheet["stage"] if place is not None}
        for k, letter in enumerate(sheet["status"]):
            if letter == "p":
                sheet["reason"][k] = None
            elif sheet["reason"][k] is not None:
                kept.add(sheet["reason"][k])
    data["strings"] = [text if place in kept else "" for place, text in enumerate(data["strings"])]
    return "the words of verdicts that passed", left_out


def _without_histograms(data: dict[str, Any], kernels: KernelTable, left_out: frozenset[int]) -> tuple[str, frozenset[int]]:
    for case in data["cases"]:
        for told in (*case["inputs"], *case["outputs"]):
            told.pop("bars", None)
    return "the histograms of recorded values", left_out


def _without_pictures(data: dict[str, Any], kernels: KernelTable, left_out: frozenset[int]) -> tuple[str, frozenset[int]]:
    for side in data["sides"]:
        side["pictures"] = {}
        for found in side["explained"].values():
            found["packed"] = None
    return "the error maps and the reproducers", left_out


def _without_kernels(data: dict[str, Any], kernels: KernelTable, left_out: frozenset[int]) -> tuple[str, frozenset[int]]:
    return "the kernel source of all operators", frozenset(k["text"] for k in kernels.kernels)


def _without_measures(data: dict[str, Any], kernels: KernelTable, left_out: frozenset[int]) -> tuple[str, frozenset[int]]:
    for sheet in _sheets(data):
        sheet["measures"] = {key: "" if key == "status" else [] for key in sheet["measures"]}
    return "the numbers of single steps (the worst of all steps is there)", left_out


_STEPS: tuple[Step, ...] = (
    _without_passing_kernels, _without_passing_reasons, _without_histograms, _without_pictures, _without_kernels,
    _without_measures,
)


def smaller(data: dict[str, Any], kernels: KernelTable) -> Iterator[tuple[list[str], frozenset[int]]]:
    """(what was left out so far, kernel texts to leave out): nothing at first, then one thing more each time. Changes `data`."""
    notes: list[str] = []
    left_out: frozenset[int] = frozenset()
    yield list(notes), left_out
    for step in _STEPS:
        note, left_out = step(data, kernels, left_out)
        notes.append(note)
        yield list(notes), left_out


def _sheets(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [sheet for side in data["sides"] for sheet in side["modes"].values()]

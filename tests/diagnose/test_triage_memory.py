"""What runs over different memory say, as a pure function, and on a device."""

from __future__ import annotations

import numpy as np

from tapml.diagnose.probes.guard_bytes import RUNS, Filling, GuardedRun, findings_of

SIX = len(RUNS)


def held(*values: float, overwritten: tuple[str, ...] = ()) -> GuardedRun:
    return GuardedRun((np.array(values, np.float32),), overwritten)


def poisoned(filling: Filling) -> float:
    return float(np.frombuffer(bytes([filling.poison]) * 4, np.float32)[0])


def kinds(runs: list[GuardedRun]) -> list[str]:
    return [f.kind for f in findings_of(runs)]


def test_equal_runs_find_nothing() -> None:
    assert kinds([held(1, 2)] * SIX) == []


def test_nan_results_are_equal_to_themselves() -> None:
    assert kinds([held(np.nan, 2)] * SIX) == []


def test_a_result_that_follows_the_poison_was_read_before_it_was_written() -> None:
    assert kinds([held(1 if m.poison else 0, 2) for m in RUNS]) == ["uninitialised read"]


def test_an_element_that_is_the_poison_was_never_written() -> None:
    found = findings_of([held(1, poisoned(m)) for m in RUNS])
    assert [f.kind for f in found] == ["unwritten output"] and found[0].text.startswith("1 of 2 ")


def test_a_result_that_follows_the_guard_bytes_was_read_out_of_bounds() -> None:
    assert kinds([held(m.around, 2) for m in RUNS]) == ["out-of-bounds read"]


def test_guard_bytes_that_changed_were_written_to() -> None:
    found = findings_of([held(1, overwritten=("output 0",))] * SIX)
    assert [f.kind for f in found] == ["out-of-bounds write"] and "output 0" in found[0].text


def test_a_race_hides_what_else_a_result_depends_on() -> None:
    assert kinds([held(k) for k in range(SIX)]) == ["race"]

"""The decision table of triage as a pure function over outcomes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tapml.diagnose.explain.decide import FOREIGN_RULES, RULES, decide, needed
from tapml.diagnose.probes.catalogue import PROBES as CATALOGUE
from tapml.diagnose.probes.evidence import Outcome
from tapml.report.explain import MEANING
from tapml.verdicts import STAGES

PROBES = sorted({probe for rule in RULES for probe in rule.when})
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "refused", "not run")

# Everything before the lowered function is in order, and the numbers are wrong.
WRONG: dict[str, Outcome] = {
    "limits": "right", "load": "right", "run": "wrong", "float64": "wrong", "graph": "right", "uploads": "wrong", "grid": "wrong",
}  # fmt: skip
SAME, OTHER, THERE, DRIVER = "same schedule elsewhere", "other schedule", "other schedule elsewhere", "other driver"

outcomes = st.fixed_dictionaries({probe: st.sampled_from(OUTCOMES) for probe in PROBES})


def stage(**changed: Outcome) -> str | None:
    """The stage with these outcomes on top of `WRONG`, underscores for spaces; everything else was not run."""
    rest: dict[str, Outcome] = dict.fromkeys(PROBES, "not run")
    return decide({**rest, **WRONG, **{k.replace("_", " "): v for k, v in changed.items()}}).stage


def test_each_stage_by_the_pair_of_runs_that_names_it() -> None:
    assert stage(limits="wrong") == "launch"
    assert stage(load="refused") == "driver"
    assert stage(run="refused") == "launch"
    assert stage(run="right") is None
    assert stage(float64="right") == "precision"
    assert stage(graph="wrong") == "convert"
    assert stage(uploads="right") == "weights"
    assert stage(grid="right") == "launch"
    assert stage(cpu="wrong", converted="wrong") == "convert"
    assert stage(cpu="not run", converted="wrong") == "convert"
    assert stage(cpu="wrong", converted="right") == stage(cpu="wrong") == "lower"
    assert stage(cpu="right", other_schedule="right", same_schedule_elsewhere="wrong") == "schedule"
    assert stage(cpu="right", other_schedule="right", same_schedule_elsewhere="right") == "codegen"
    assert stage(cpu="right", other_schedule="wrong", same_schedule_elsewhere="right") == "codegen"
    assert stage(cpu="right", other_schedule="wrong", same_schedule_elsewhere="right", other_driver="right") == "driver"


def test_a_refused_text_is_the_drivers_unless_two_refuse_it() -> None:
    assert stage(load="refused", run="not run", other_driver="right") == "driver"
    assert stage(load="refused", run="not run", other_driver="wrong") == "driver"
    assert stage(load="refused", run="not run", other_driver="refused") == "codegen"


def test_the_fault_goes_with_the_schedule_or_with_what_is_before_it() -> None:
    here: dict[str, Outcome] = {"cpu": "right", "other_schedule": "wrong", "same_schedule_elsewhere": "wrong"}
    assert stage(**here, other_schedule_elsewhere="right") == "schedule"
    assert stage(**here, other_schedule_elsewhere="wrong") == "lower"


def test_a_hazard_in_both_texts_goes_with_the_schedule_though_it_shows_on_one_target_only() -> None:
    seen: dict[str, Outcome] = {"cpu": "right", "text": "wrong", "same_schedule_elsewhere": "right"}
    assert stage(**seen, text_elsewhere="wrong", other_schedule="right") == "schedule"
    assert stage(**seen, text_elsewhere="right", other_schedule="right") == "codegen"
    assert stage(**seen, text_elsewhere="wrong", other_schedule="wrong") == "codegen", "another schedule is as wrong without it"


def test_with_no_other_target_the_words_say_what_could_not_be_excluded() -> None:
    absent: dict[str, Outcome] = dict.fromkeys(PROBES, "not run")
    only_here: dict[str, Outcome] = {**absent, **WRONG, "cpu": "right"}
    found = decide({**only_here, OTHER: "right"})
    assert found.stage == "schedule" and "cannot be excluded" in found.because
    assert decide({**only_here, OTHER: "wrong"}).stage == "codegen"
    assert decide({**only_here, "cpu": "not run"}).stage is None


def test_a_stage_that_a_diagnosis_names_says_where_the_fault_is() -> None:
    """ "numeric" says that nobody asked, which is a test's word; each other stage has its meaning on the console."""
    named = {rule.stage for rule in RULES if rule.stage is not None}
    assert "numeric" not in named and named <= set(MEANING) == set(STAGES) - {"numeric"}


@given(outcomes)
def test_every_combination_decides_and_says_why(found: dict[str, Outcome]) -> None:
    decision = decide(found)
    assert decision.because
    if found["run"] == "right" and found["limits"] != "wrong" and found["load"] != "refused":
        assert decision.stage is None


@given(outcomes)
def test_a_probe_that_is_not_needed_changes_nothing(found: dict[str, Outcome]) -> None:
    """Making only the probes that are needed gives the stage that making all of them gives."""
    made: dict[str, Outcome] = {}
    for probe in (p.name for p in CATALOGUE):
        if probe in found and needed(probe, made):
            made[probe] = found[probe]
    assert decide(made).stage == decide(found).stage


@given(outcomes, st.sampled_from(PROBES))
def test_a_platform_that_is_absent_is_never_evidence_of_right(found: dict[str, Outcome], probe: str) -> None:
    """Where a probe was not run, the words do not claim that it was right."""
    words = decide({**found, probe: "not run"}).because
    if probe == DRIVER:
        assert "another driver of the same language runs" not in words
    if probe == "cpu":
        assert "right as plain C" not in words
    if probe == "converted":
        assert "was converted to is" not in words
    if probe in (SAME,):
        assert "the same schedule is right on another" not in words


def test_the_table_names_only_probes_of_the_catalogue() -> None:
    names = [probe.name for probe in CATALOGUE]
    assert len(names) == len(set(names))
    assert {name for rule in (*RULES, *FOREIGN_RULES) for name in rule.when} <= set(names)

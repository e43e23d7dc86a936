"""The catalogue of probes, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import tapml.diagnose.probes as package
from tapml.diagnose.explain.in_model import MODEL_QUESTIONS
from tapml.diagnose.probes.catalogue import PROBES
from tapml.diagnose.probes.probe import Probe
from tapml.diagnose.probes.reference_backends import REFERENCE_BACKENDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explain.md"


def row(probe: Probe) -> str:
    kernels = "with kernels" if probe.kernels_only else "any"
    return f"| `{probe.name}` | {probe.question} | {kernels} | {'always' if probe.always else ''} |".replace("|  |", "| |")


def table(header: str) -> list[str]:
    """The rows under this header in the page."""
    lines = PAGE.read_text().splitlines()
    start = lines.index(header) + 2
    return lines[start : lines.index("", start)]


def test_the_page_has_the_questions_of_the_catalogue() -> None:
    assert table("| probe | question | backends | asked |") == [row(probe) for probe in PROBES]
    assert table("| probe | question |") == [f"| `{q.name}` | {q.question} |" for q in MODEL_QUESTIONS]


def test_the_page_has_the_reference_backends() -> None:
    names = [line.split("|")[1].strip() for line in table("| backend | what it is | gets of a fault |")]
    assert names == [f"`{backend.name}`" for backend in REFERENCE_BACKENDS]


def test_every_probe_is_in_the_catalogue_and_has_words_for_what_it_can_say() -> None:
    """One that is forgotten in the list would never be made."""
    classes = set(Probe.__subclasses__())
    assert {type(probe) for probe in PROBES} == {c for c in classes if c.__module__.startswith(package.__name__)}
    for question in (*PROBES, *MODEL_QUESTIONS):
        assert question.question.endswith("?") and question.right.endswith(".") and question.right != question.wrong
        assert question.wrong or question.refused

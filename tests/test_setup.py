"""What the Makefile installs: the demo's part of the lock file is what the demo needs, and what it says beforehand is so."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DEMO = ("source", "compile", "opencl")
BUILD = {"setuptools"}


def pins(name: str) -> dict[str, str]:
    lines = (line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
    return {canonicalize_name(package): version for package, _, version in (line.partition("==") for line in lines)}


def asked(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def with_what_they_need(requirements: list[Requirement]) -> set[str]:
    """Names of these packages and of all that the installed ones of them ask for."""
    found: set[tuple[str, frozenset[str]]] = set()
    while requirements:
        wanted = requirements.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in found:
            continue
        found.add((name, frozenset(wanted.extras)))
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                requirements.append(needed)
    return {name for name, _ in found}


def test_the_demo_installs_what_it_needs_and_no_more() -> None:
    whole, demo = pins("requirements.lock"), pins("requirements-demo.lock")
    assert demo.items() <= whole.items()
    known = with_what_they_need(asked(*DEMO)) & whole.keys()
    assert demo.keys() == known | BUILD
    assert not demo.keys() & {"pytest", "mypy", "ruff", "bokeh", "matplotlib", "playwright", "wgpu", "websockets"}


def test_the_announcement_counts_the_packages() -> None:
    said = re.search(r"the (\d+) packages", (ROOT / "Makefile").read_text())
    assert said and int(said[1]) == len(pins("requirements-demo.lock"))

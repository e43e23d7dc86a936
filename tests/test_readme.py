"""What the documents say is so: every command parses, every link and path exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tapml.cli.main import parse
from tapml.devices.known import WITHOUT_RUNTIME
from tapml.targets.known import TARGETS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, indented or fenced, joined where they end in a backslash."""
    found: list[str] = []
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            line = line.strip()
            if found and found[-1].endswith("\\"):
                found[-1] = f"{found[-1][:-1]} {line}"
            else:
                found.append(line)
    return found


def commands() -> list[tuple[str, str]]:
    """(document, command line) of every `tapml …` that a document shows in a code block."""
    found = []
    for document in DOCUMENTS:
        for line in code_lines(document.read_text()):
            match = re.match(r"(?:\$ )?(?:\.venv/bin/)?tapml (?P<rest>.*)", line)
            if match:
                command = re.split(r"\s{2,}|\s#|;", match["rest"])[0]
                found.append((document.name, command))
    return sorted(set(found))


@pytest.mark.parametrize(("document", "command"), commands())
def test_every_command_parses(document: str, command: str) -> None:
    words = shlex.split(command)
    if words == ["--help"]:
        return
    assert parse(words).verb == words[0]


def test_commands_are_found() -> None:
    shown = {command.split()[0] for document, command in commands() if document == "README.md"}
    assert shown >= {"carve", "test", "migrate", "doctor"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    """A path of the tree in backticks, such as `errors.py`, is there. What a run or a user has is not one."""
    inside = [ROOT, ROOT / "tapml", document.parent]
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml|lock|mjs|js|html|sh))`", document.read_text()):
        if not name.startswith(("/", "run/")) and "RUN" not in name and "NAME" not in name:
            assert any((folder / name).exists() for folder in inside), f"{document.name} names {name}"


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_every_stage_is_told(name: str) -> None:
    text = (ROOT / name).read_text()
    stages = {path.parent.name for path in (ROOT / "tapml").glob("*/__init__.py")}
    assert not [stage for stage in stages if f"{stage}/" not in text], f"{name} leaves out stages"


def test_make_goals_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for goal in re.findall(r"^(?:\$ )?make ([a-z]+)\b", "\n".join(code_lines(document.read_text())), re.M):
            assert re.search(rf"^{goal}:", makefile, re.M), f"{document.name} says make {goal}"


def test_the_target_table_is_true() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert rows.keys() == TARGETS.keys()
    assert {name for name, runs in rows.items() if runs != "runs"} == set(WITHOUT_RUNTIME)

"""How the code reads (README, "Where to look"): what a linter does not check."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]
# What stands between the pieces of a literal, besides spaces.
BETWEEN = (tokenize.NL, tokenize.COMMENT)
TEXT = {".py", ".md", ".toml", ".lock", ".js", ".mjs", ".html", ".css", ".json", ".yml", ".yaml", ".sh", ".txt", ""}


def files() -> list[Path]:
    """Every file that git knows or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(path for line in listing.stdout.splitlines() if (path := ROOT / line).is_file())


def python_files() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def lines_matching(pattern: str, suffixes: set[str] = TEXT) -> list[str]:
    """ "path:line: text" of each line of the project that matches."""
    rule = re.compile(pattern)
    found = []
    for path in files():
        if path.suffix not in suffixes or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if rule.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_opens_with_what_it_does(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py" and not tree.body:
        return
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring at its top"


def test_no_file_is_named_for_nothing() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "stuff", "core", "base"}
    assert not [str(p.relative_to(ROOT)) for p in files() if p.stem.lower() in vague or p.parent.name.lower() in vague]


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in python_files() if (n := len(p.read_text().splitlines())) > 600}
    assert not long, "split them: a file of 100 to 300 lines is read, one of 600 is searched"


def test_the_files_that_are_begun_first_are_there() -> None:
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]


def test_nothing_points_at_a_machine_or_a_registry() -> None:
    paths = r"(?<![\w.$}/])/(home|Users|work|root|mnt|opt)/\w"
    hosts = r"(?i)(pythonhosted|pypi\.org|download\.pytorch|registry\.npmjs|artifactory|(extra-)?index-url|--find-links)"
    assert not lines_matching(paths) + lines_matching(hosts)


def test_nothing_is_left_for_later() -> None:
    assert not lines_matching(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError", {".py", ".js", ".mjs", ".sh"})


def test_nothing_is_pickled_or_evaluated() -> None:
    """What comes from a file or a network is data. One device runs programs, those that its own process's parent wrote."""
    found = []
    for path in (ROOT / "tapml").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            # Only a name or an attribute is called so: the text of a longer expression need not be made.
            plain = isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
            called = ast.unparse(node.func) if isinstance(node, ast.Call) and plain else ""
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if called in ("eval", "exec", "torch.load", "torch.save") or {"pickle", "marshal", "shelve"} & set(modules):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [place.partition(":")[0] for place in found] == ["tapml/devices/torch_device.py"]


def test_no_error_is_swallowed() -> None:
    found = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            broad = isinstance(node, ast.ExceptHandler) and (
                node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
            )
            if broad and all(isinstance(item, ast.Pass | ast.Continue) for item in node.body):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_no_literal_is_cut_that_fits_a_line() -> None:
    """A sentence in two pieces is found by no search. Longer ones are cut, since lines end at 130."""
    found = []
    for path in (ROOT / "tapml").rglob("*.py"):
        lines = path.read_text().splitlines()
        tokens = [t for t in tokenize.generate_tokens(iter([f"{line}\n" for line in lines]).__next__) if t.type not in BETWEEN]
        for _, group in itertools.groupby(tokens, lambda token: token.type == tokenize.STRING):
            pieces = [token for token in group if token.type == tokenize.STRING]
            if len(pieces) > 1 and not any('"""' in token.string for token in pieces):
                first, last = pieces[0], pieces[-1]
                around = len(lines[first.start[0] - 1][: first.start[1]]) + len(lines[last.end[0] - 1][last.end[1] :])
                text = sum(len(token.string.lstrip("rbf")) - 2 for token in pieces) + 2 + ("f" in first.string[:2])
                if around + text <= 130:
                    found.append(f"{path.relative_to(ROOT)}:{first.start[0]}")
    assert not found

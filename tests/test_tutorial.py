"""docs/tutorial.md, typed as it stands there: every command is run, and prints the lines that the page shows."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"

# What differs between machines: numbers with a point, an exponent or a comma, and the device's name.
_FIGURE = re.compile(r"\d[\d,]*\.\d+(?:e[+-]?\d+)?|\d(?:\.\d+)?e[+-]?\d+|\d+,\d{3}(?= ×)")
_DEVICE = re.compile(r"pthread-\S.*$")
# Which of several operators that share kernels is the worst by a rounding, and so stands for them, differs too.
_STANDS_FOR = re.compile(r"^(prefill|decode)/\S+(?=\s+\d+\s+\w+\s+pass\s)")


@dataclass
class Shown:
    """A command of the page and the lines that stand under it."""

    command: str
    lines: list[str] = field(default_factory=list)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def shown() -> list[Shown]:
    found: list[Shown] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append(Shown(line[2:]))
        elif line.strip() not in ("", "…"):
            found[-1].lines.append(line)
    return found


def without_figures(line: str) -> str:
    return " ".join(_DEVICE.sub("DEVICE", _STANDS_FOR.sub("OPERATOR", _FIGURE.sub("N", line.rstrip("…")))).split())


def typed(command: str, folder: Path) -> str:
    """What it prints, in a shell that finds this environment's programs and this tree's package. Its exit code is on the page."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    env = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.stdout + ("" if done.stdout.strip() or not done.stderr else f"\nstderr: {done.stderr}")


def missing(lines: list[str], printed: str) -> str:
    """The first of the lines that was not printed behind those before it; "" when all were, in order."""
    rest = [without_figures(line) for line in printed.splitlines()]
    for line in lines:
        wanted = without_figures(line)
        cut = line.endswith("…")
        at = next((k for k, there in enumerate(rest) if there == wanted or (cut and there.startswith(wanted))), None)
        if at is None:
            return line
        rest = rest[at + 1 :]
    return ""


def test_the_tutorial(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (kernel,) = blocks("python")
    (tmp_path / "my_norm.py").write_text(kernel)
    commands = shown()
    assert [c.command.split()[1] for c in commands if c.command.startswith("tapml")] == [
        "carve", "migrate", "bisect", "explain", "test", "migrate",
    ]  # fmt: skip
    for step in commands:
        printed = typed(step.command, tmp_path)
        line = missing(step.lines, printed)
        assert not line, f"{step.command}\ndoes not print\n{line}\nbut\n{printed}"
    mine, given = (runpy.run_path(str(p)) for p in (tmp_path / "my_norm.py", ROOT / "examples" / "own_rms_norm.py"))
    assert mine["SUM_OF_SQUARES"] == given["SUM_OF_SQUARES"], "the fixed kernel of the page is the example"


def test_lines_are_missed() -> None:
    assert missing(["a 1.5", "b"], "a 2.25\n…\nb") == ""
    assert missing(["b", "a"], "a\nb") == "a"
    assert missing(["10 fail"], "9 fail") == "10 fail"
    assert missing(["output 0: error 0.25, bound …"], "on x\noutput 0: error 0.5, bound 1e-7; more") == ""
    assert missing(["2 of 3 · opencl on pthread-x"], "2 of 3 · opencl on pthread-AMD EPYC · 12 s") == ""

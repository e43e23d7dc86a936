"""Run as a program: migrates a run again and again, killed at random moments and resumed, and compares with an undisturbed run.

    python -m tests.migrate.killed RUN TARGET KILLS SEED

A parent that has imported everything forks a child for each attempt, so an attempt costs no start-up. The child is killed with
SIGKILL at a random moment: some records after it began, and some milliseconds more. When a migration gets to its end, its
verdicts, moves and tokens are compared, and the next one begins from nothing. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.migrate import operator_test
from tapml.migrate.journal import read
from tapml.migrate.migrate import folder_name, migrate


def attempt(run: Path, target: str, out: Path, fresh: bool, trace: Path) -> None:
    """In the child: one migration, its result as JSON, and the name of each operator that is really tested."""
    real = operator_test.OperatorTester.test

    def test(self: operator_test.OperatorTester, name: str) -> Any:
        verdict = real(self, name)
        with trace.open("a") as file:
            file.write(name + "\n")
        return verdict

    operator_test.OperatorTester.test = test  # type: ignore[method-assign]
    result = migrate(RunFolder.open(run), target, fresh=fresh, resume=not fresh, max_tokens=4)
    out.write_text(json.dumps(result.to_json()))


def plain(out: Path) -> dict[str, Any]:
    """A result without what differs between processes: how long it took, what was replayed, what was in the kernel cache."""
    data = json.loads(out.read_text())
    for verdict in data["verdicts"]:
        del verdict["seconds"]
    return {k: v for k, v in data.items() if k not in ("seconds", "date", "resumed", "compiled", "devices")}


def differences(now: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """What differs between two results, verdict by verdict."""
    found = [f"{key}: {now[key]}, undisturbed {whole[key]}" for key in whole if key != "verdicts" and now[key] != whole[key]]
    pairs = zip(now["verdicts"], whole["verdicts"], strict=True)
    return found + [f"{a}, undisturbed {b}" for a, b in pairs if a != b]


def verdicts(path: Path) -> list[dict[str, Any]]:
    """The verdicts in a journal, as they were written."""
    return [r["verdict"] for r in read(path)[0] if r["record"] == "verdict"] if path.exists() else []


def wait_for_growth(path: Path, size: int, child: int) -> None:
    """Until the journal has this many bytes, or the child has ended."""
    while not path.exists() or path.stat().st_size < size:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)


def spawn(*arguments: Any) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


def main(run: Path, target: str, kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    out, trace = run.parent / "result.json", run.parent / "tested.txt"
    path = run / "targets" / folder_name(target) / "migrate.jsonl"
    _, status = os.waitpid(spawn(run, target, out, True, trace), 0)
    assert status == 0
    whole, records = plain(out), len(read(path)[0])
    done = completed = 0
    problems: list[str] = []
    lengths: list[int] = []
    fresh = True
    while done < kills or not fresh:
        if fresh:
            path.unlink(missing_ok=True)
        trace.write_text("")
        out.unlink(missing_ok=True)
        before = verdicts(path)
        size = path.stat().st_size if path.exists() else 0
        child = spawn(run, target, out, False, trace)
        if done < kills:
            wait_for_growth(path, size + rng.randrange(0, 6000), child)
            time.sleep(rng.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        fresh = False
        after = verdicts(path)
        lengths.append(len(after))
        if after[: len(before)] != before:
            problems.append("verdicts were lost or changed")
        again = set(trace.read_text().split()) & {v["operator"] for v in before}
        if again:
            problems.append(f"tested again though journalled: {sorted(again)}")
        if os.WIFSIGNALED(status):
            done += 1
        elif status != 0:
            problems.append(f"an attempt failed with status {status}")
            break
        else:
            completed += 1
            fresh = True
            now = plain(out)
            problems += differences(now, whole)
            if len(read(path)[0]) != records:
                problems.append(f"{len(read(path)[0])} records, {records} undisturbed")
            if len({v["operator"] for v in after}) != len(after):
                problems.append("a verdict appears twice")
    return {"kills": done, "completed": completed, "problems": problems, "lengths": lengths, "records": records}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))

"""Results of targets as testing and migrating leave them, made up: every status at once, and no device needed.

    pretend(run, "opencl")                      RUN/targets/opencl: a migration with a verdict of every status, measures, kernels
    data_of(file)                               the JSON object in a report
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tapml
from tapml.carving.folder import RunFolder
from tapml.carving.layout import TARGET_FOLDER
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.migrate.journal import Header, Journal
from tapml.migrate.programs import keep
from tapml.migrate.records import file_name, target_folder
from tapml.operators.graph import Operator
from tapml.verdicts import STATUSES, Measure, Status, Verdict

HOSTILE = "</script><script>document.title='broken out'</script><!-- <b>&amp;\u2028"

SOURCE = """__kernel void run(__global float* x) {
  int k = get_group_id(0) * 64 + get_local_id(0);  // one element a thread
  x[k] = x[k] * 2.0f;
}
"""

DEVICE = {
    "platform": "opencl", "name": f"A device {HOSTILE}", "driver": "driver 1.2", "software": True, "limits": {}, "features": [],
}  # fmt: skip


def copy(run: RunFolder, to: Path) -> RunFolder:
    shutil.copytree(run.path, to)
    return RunFolder.open(to)


def bare(run: RunFolder, to: Path) -> RunFolder:
    """A copy without results: other tests leave theirs in the runs that all share."""
    shutil.copytree(run.path, to, ignore=shutil.ignore_patterns(TARGET_FOLDER))
    return RunFolder.open(to)


def program(text: str) -> Program:
    """A program of one kernel with `text` in its source."""
    kernel = Kernel("opencl-c", "run", f"{SOURCE}// {text}\n", ("read_write",), (8, 1, 1), (64, 1, 1))
    return Program((kernel,), (Step(0, (Argument("output", 0),)),), (), (), (), "blocked")


def verdicts(run: RunFolder, scale: float) -> Iterator[tuple[Verdict, list[Measure]]]:
    """Mostly passes; each status that is none is on one of the first operators of layer 1."""
    bad: list[Status] = [s for s in STATUSES if s != "pass"]
    for number, operator in enumerate(run.operators):
        status: Status = "pass"
        if "layers.1." in operator.name and bad:
            status = bad.pop(0)
        yield _verdict(operator, status, number, scale)


def _verdict(operator: Operator, status: Status, number: int, scale: float) -> tuple[Verdict, list[Measure]]:
    numbers = status in ("pass", "fail", "flaky")
    bound = 2e-6
    ratio = scale * (0.01 + number % 17 / 20) if status == "pass" else 4.5
    error = bound * ratio if numbers else None
    verdict = Verdict(
        operator=operator.name, signature=operator.signature, op=operator.kind, status=status,
        stage=None if status in ("pass", "skipped") else "numeric" if numbers else "driver", error=error,
        bound=bound if numbers else None, source_error=bound / 9 if numbers else None,
        reason=f"{status} of {operator.name} {HOSTILE}", seconds=0.1, schedule="blocked",
        kernel=program(f"signature {operator.signature}").digest if numbers else None, cases=2,
    )  # fmt: skip
    first = Measure(operator.name, "case0", 0, 0, operator.graph, error, verdict.bound, verdict.source_error, status)
    less = None if error is None else error / 9
    measures = [first, replace(first, case=None, step=2, error=less, status="pass")]
    return verdict, measures if numbers else []


def pretend(
    run: RunFolder, target: str, scale: float = 1.0, done: bool = True, fault: str | None = None,
    not_checked: tuple[str, ...] = (),
) -> list[Verdict]:
    """Writes a migration of the run, and gives its verdicts."""
    folder = target_folder(run, target)
    header = Header(
        version=tapml.__version__, run=run.digest, target=target, target_key="key", device="local", compiler="none",
        device_info=DEVICE, time=1_790_000_000.0, inject=fault and "digest", fault=fault, not_checked=not_checked,
    )  # fmt: skip
    found = list(verdicts(run, scale))
    names = [v.operator for v, _ in found if v.status == "pass"]
    answer = {"status": "pass", "stage": None, "error": 1e-6, "bound": 4e-6, "source_error": 5e-7, "reason": "near"}
    prompts = [
        {
            "index": p.index, "tokens_source": [5, 6, 7], "tokens_target": [5, 6, 8], "error": 1e-6, "bound": 4e-6,
            "source_error": 5e-7, "top1_agreement": 2 / 3, "differs_at": 2, "margin": 0.1, "reason": HOSTILE,
        }
        for p in run.prompts
    ]  # fmt: skip
    with Journal.open(folder / file_name("migration", fault is not None), header, fresh=True) as journal:
        for verdict, measures in found:
            journal.append({"record": "verdict", "verdict": verdict.to_json(), "measures": [m.to_json() for m in measures]})
            if verdict.kernel is not None:
                keep(folder, program(f"signature {verdict.signature}"))
        journal.append({"record": "check", "set": "x", "size": len(names), "answer": answer})
        journal.append({"record": "moved", "operators": names})
        journal.append(*({"record": "prompt", "result": result} for result in prompts))
        if done:
            journal.append({"record": "done"})
    return [verdict for verdict, _ in found]


def data_of(file: Path) -> Any:
    """Read as a browser does: the element ends at the first closing tag."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', file.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])

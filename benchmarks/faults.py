"""All fault classes, put into SmolLM2-135M and the small models of fault_models.py, and looked for by eight methods.

    faults.py [--target T]... [--model NAME]... [--operators N]     default: opencl and vulkan, all models, 3 operators a class
    faults.py --from FOLDER                                         puts together what `tapml faults bench --json` wrote elsewhere
    faults.py --clean [--target T]... [--runs 20]                   false alarms: runs of SmolLM2 with different prompts, no fault

Each model is carved, and `tapml faults bench` runs on it. Put together, a class counts as detected if there is a model in which
each of its faults was detected. Writes results/DATE-faults.json and .md, and a picture a target. With --clean each prompt is
carved by itself, and `tapml migrate` tests every operator on its recorded calls and the whole model end to end: anything but a
pass is a false alarm. """

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import fault_models
from measure import RESULTS, brief, machine, save, smollm2, tapml

from tapml.diagnose.bench.result import (
    METHODS,
    BenchResult,
    Clean,
    Method,
    Row,
    is_detected,
    totals_of,
)
from tapml.report.faults_bench import classes_markdown, methods_markdown, table, totals_markdown
from tapml.report.faults_picture import draw

SMOL = "smollm2"
HERE = Path(__file__).parent

PROMPTS = (
    "What is the capital of France?", "Write one sentence about the sea.", "List three colours of the rainbow.",
    "Why is the sky blue?", "Give me a short recipe for pancakes.", "1, 1, 2, 3, 5, 8, 13,", "def fibonacci(n):",
    "Translate to German: good morning.", "Who wrote Hamlet?", "Name a mammal that can fly.", "2 + 2 * 2 =",
    "The quick brown fox", "What does HTTP stand for?", "Tell me a joke about a computer.", "How many days has a leap year?",
    "Summarise: the cat sat on the mat.", "Once upon a time", "Which planet is the largest?", "Explain recursion in one line.",
    "!?#$ 0000 zzzz",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [SMOL, *(f.__name__ for f in fault_models.MODELS)]
    parser.add_argument("--target", action="append", help="default: opencl vulkan")
    parser.add_argument("--model", action="append", choices=names, help="default: all")
    parser.add_argument("--operators", type=int, default=3)
    parser.add_argument("--from", dest="folder", type=Path, help="JSON files, one a model and target")
    parser.add_argument("--name", default="faults", help="of the files that are written: results/DATE-NAME.*")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    targets = args.target or ["opencl", "vulkan"]
    if args.folder is not None:
        return conclude(*gathered(args.folder), args.name, "Run elsewhere, on the devices named below; put together here.")
    with tempfile.TemporaryDirectory() as scratch:
        if args.clean:
            return clean(targets, PROMPTS[: args.runs], Path(scratch))
        return faults(targets, args.model or names, args.operators, Path(scratch))


def carve(name: str, out: Path) -> None:
    if name == SMOL:
        done = tapml("carve", smollm2(), "-o", str(out), "--decode-steps", "8", "--prompt", PROMPTS[0])
    else:
        spec = f"{HERE / 'fault_models.py'}:{name}"
        done = tapml("carve", spec, "-o", str(out), "--decode-steps", "8", "--max-len", "32")
    if done.code:
        sys.exit(done.log)


def faults(targets: Sequence[str], models: Sequence[str], operators: int, scratch: Path) -> int:
    results: dict[str, list[BenchResult]] = defaultdict(list)
    figures: dict[str, object] = {}
    for name in models:
        run = scratch / name
        carve(name, run)
        for target in targets:
            done = tapml("faults", "bench", str(run), "--target", target, "--operators", str(operators))
            if not done.data:
                sys.exit(done.log)
            result = BenchResult.from_json(done.data)
            results[target].append(result)
            own = result.totals()["tapml"]
            figures[f"{name} on {target}"] = brief(done) | {"data": {"totals": done.data["totals"], "clean": done.data["clean"]}}
            print(f"{name} on {target}: {own.detected[0]} of {own.detected[1]} detected, {done.seconds:.0f} s", flush=True)
    here = machine()
    return conclude(results, figures, "faults", f"{here['cores']} cores, {here['memory_gib']} GiB, {here['system']}.")


def gathered(folder: Path) -> tuple[dict[str, list[BenchResult]], dict[str, object]]:
    """Results that were made elsewhere, in the order of their files' names."""
    results: dict[str, list[BenchResult]] = defaultdict(list)
    figures: dict[str, object] = {}
    for path in sorted(folder.glob("*.json")):
        result = BenchResult.from_json(json.loads(path.read_text()))
        results[result.target].append(result)
        figures[f"{result.model} on {result.target}"] = {"device": result.device, "seconds": result.seconds}
    return results, figures


def conclude(results: dict[str, list[BenchResult]], figures: dict[str, object], name: str, where: str) -> int:
    """Puts the models of each target together, checks what was promised, and writes it."""
    checks: dict[str, bool] = {}
    stem = f"{time.strftime('%Y-%m-%d')}-{name}"
    for target, found in results.items():
        rows = merged(found)
        totals = totals_of(rows, alarms(found))
        own = totals["tapml"]
        assert own.stages is not None
        missing = [row.label for row in rows if row.faults and not somewhere(row.name, found)]
        unplaced = [row.label for row in rows if not row.faults and "cannot express" not in row.why]
        # A fault that changes no bit of what was recorded is not there to be named.
        kernel = [
            replace(row, faults=tuple(f for f in row.faults if f.latent is not True))
            for row in rows if row.fault["level"] != "state"
        ]  # fmt: skip
        named = totals_of(kernel, {})["tapml"].operators
        figures[f"all on {target}"] = {
            "totals": {m: asdict(total) for m, total in totals.items()}, "missing": missing, "unplaced": unplaced,
        }  # fmt: skip
        checks[f"{target}: every class that it can express is detected"] = not missing and not unplaced
        checks[f"{target}: the right operator is named for every fault of a kernel"] = named[0] == named[1] > 0
        checks[f"{target}: the right stage is named for 90%"] = own.stages[0] >= 0.9 * own.stages[1] > 0
        small = own.elements is not None and own.elements <= 64
        checks[f"{target}: reproducers of at most 64 input elements in the median"] = small
        checks[f"{target}: no false alarm"] = own.false_alarms[0] == 0
        RESULTS.mkdir(exist_ok=True)
        draw(rows, totals, f"{len(found)} models on {target}", RESULTS / f"{stem}-{target}.svg")
    text = "\n".join(markdown(results, stem, where)) + "\n"
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    return save(name, figures, checks)


def merged(found: Sequence[BenchResult]) -> list[Row]:
    """A row a class with the faults of all models; why there are none, where none has any."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for result in found:
        for row in result.rows:
            rows[row.name].append(row)
    made = []
    for alike in rows.values():
        tried = tuple(fault for row in alike for fault in row.faults)
        cannot = next((row.why for row in alike if "cannot express" in row.why), "")
        why = "" if tried else cannot or "no model has what the fault needs"
        made.append(Row(alike[0].fault, sum(row.sites for row in alike), tried, why))
    return made


def alarms(found: Sequence[BenchResult]) -> dict[Method, Clean]:
    return {
        m: Clean(sum(r.clean[m].checked for r in found), tuple(f"{r.model}: {a}" for r in found for a in r.clean[m].alarms),
                 sum(r.clean[m].seconds for r in found)) for m in METHODS
    }  # fmt: skip


def somewhere(name: str, found: Sequence[BenchResult]) -> bool:
    """Whether there is a model in which TapML detected each fault of this class."""
    rows = [row for result in found for row in result.rows if row.name == name and row.faults]
    counts = [row.count("tapml", is_detected) for row in rows]
    return any(n == of > 0 for n, of in counts)


def markdown(results: dict[str, list[BenchResult]], stem: str, where: str) -> Iterator[str]:
    yield f"# Faults, {time.strftime('%Y-%m-%d')}"
    yield ""
    models = ", ".join(r.model for r in next(iter(results.values())))
    yield f"Models: {models}. {where}"
    yield ""
    yield from methods_markdown()
    for target, found in results.items():
        rows, clean_ones = merged(found), alarms(found)
        yield ""
        yield f"## {target} ({found[0].device['name']})"
        yield ""
        yield f"![by class](./{stem}-{target}.svg)"
        yield ""
        yield from totals_markdown(totals_of(rows, clean_ones), {m: c.seconds for m, c in clean_ones.items()})
        yield ""
        yield from classes_markdown([row for row in rows if row.faults])
        left_out = [(row.label, row.why) for row in rows if not row.faults]
        if left_out:
            yield ""
            yield from table(("not put in", "why"), left_out)
        missed = [
            (row.label, fault.operator, fault.findings["tapml"].reason if fault.findings else fault.note)
            for row in rows for fault in row.faults if not fault.findings or not fault.findings["tapml"].detected
        ]  # fmt: skip
        if missed:
            yield ""
            yield from table(("not detected by TapML", "put into", "what it says"), missed)


def clean(targets: Sequence[str], prompts: Sequence[str], scratch: Path) -> int:
    figures: dict[str, object] = {}
    found: dict[str, list[str]] = {target: [] for target in targets}
    for number, prompt in enumerate(prompts):
        run = scratch / f"clean{number}"
        done = tapml("carve", smollm2(), "-o", str(run), "--decode-steps", "4", "--prompt", prompt)
        if done.code:
            sys.exit(done.log)
        for target in targets:
            done = tapml("migrate", str(run), "--target", target, "--tokens", "4")
            if not done.data:
                sys.exit(done.log)
            bad = [v["operator"] for v in done.data["verdicts"] if v["status"] != "pass"]
            end = done.data["end_to_end"]
            bad += [] if end["tokens_match"] and end["within_bound"] else ["the whole model"]
            found[target] += [f"{prompt!r}: {name}" for name in bad]
            figures[f"{prompt} on {target}"] = {"seconds": done.seconds, "alarms": bad, "operators": len(done.data["verdicts"])}
            print(f"{number + 1} of {len(prompts)} on {target}: {len(bad)} false alarms, {done.seconds:.0f} s", flush=True)
    return save("faults-clean", figures, {f"{t}: no false alarm in {len(prompts)} runs": not bad for t, bad in found.items()})


if __name__ == "__main__":
    sys.exit(main())

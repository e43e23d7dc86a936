"""The fault bench: puts each class of the catalogue into several operators, and lets eight methods look for it.

    result = bench(run, "opencl", faults=["1", "rotary-pairing"], operators=3)
    result.rows, result.totals(), result.to_json()

The methods are TapML's own (`own_method.py`), three others (`baselines.py`), the rules of other projects' tests of kernels
(`neighbours.py`) and a bisection over prefixes (`prefix.py`); what counts as found is in `result.py`. All of them look at the
same kernels on the same device, which is opened once; the clean model is compiled once, and each method's verdict on it is taken
once. With a fault put in only those operators are tested again that it changes
(`faults.catalogue.changed`): all others run byte-identical kernels on identical inputs, so their verdicts are the clean ones.
Checks of the whole model are made once a fault and method. Seconds are what a method needs for a fault when the clean verdicts
are there already.

Where a class is put: of all operators that can have it, those with different signatures first, drawn with the seed. A class
without any keeps its row, which says why.

A fault may hang or kill the device: it has `DEADLINE` seconds a call, is then opened anew, and the loss is a finding. What was
found goes to `RUN/targets/TARGET/faults/bench.jsonl` at once, with a line before each fault; the same call again goes on where
it was, and a fault that ended the process is left out and recorded as that. A finished bench is begun anew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tapml
from tapml.backends.interface import Backend
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.compile.cache import toolchain
from tapml.diagnose.bench.baselines import DebugCompare, EndToEndOnly, RandomInputs
from tapml.diagnose.bench.neighbours import BackendBench, FlashinferBench, TestBackendOps
from tapml.diagnose.bench.own_method import OwnMethod
from tapml.diagnose.bench.prefix import PrefixBisection
from tapml.diagnose.bench.result import METHODS, BenchResult, Clean, Diagnosis, Fault, Found, Method, Row
from tapml.diagnose.faults.catalogue import OF_OPERATORS, changed, find, put_in, sites
from tapml.diagnose.faults.fault import FaultClass
from tapml.diagnose.faults.placed import edition
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.diagnose.probes.trials import recorded
from tapml.errors import UsageError
from tapml.inside import is_file, path_in
from tapml.migrate.journal import Header, Journal, read
from tapml.migrate.outcome import Ran
from tapml.migrate.records import target_folder
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.tensors import spec_of

WHOLE_MODEL = "the whole model"

# Seconds that one call to the device may take. Faults that hang are waited for several times, so this is less than elsewhere; the
# slowest call of a small language model on a processor takes a few.
DEADLINE = 20.0

ENDED = "it killed the process that injected it, and was left out when the bench continued"


def bench(
    run: RunFolder,
    target: str | Backend,
    device: str = "local",
    faults: Sequence[str | FaultClass] | None = None,
    operators: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    minimise: bool = True,
) -> BenchResult:
    """Benches these classes (None: all; by number, name or as they are), each in up to `operators` operators. Raises UsageError
    for an unknown class or a number of operators below 1, TargetError and UnavailableError as `Workbench` does. An opened backend
    as `target` stays the caller's, with its own deadline."""
    if operators < 1:
        raise UsageError(f"--operators {operators} leaves nothing to bench. Give 1 or more.")
    started = time.monotonic()
    classes = OF_OPERATORS if faults is None else tuple(find(f) if isinstance(f, str) else f for f in faults)
    if others := [f"{f.number} {f.name}" for f in classes if f.compose is not None]:
        raise UsageError(f"{', '.join(others)}: a fault of a bundle's plan, not of an operator. Leave it out of --faults.")
    with Workbench.on(run, target, device, deadline=DEADLINE) as clean, ReferenceBackends(run, clean) as backends:
        header = Header(
            version=tapml.__version__, run=run.digest, target=str(clean.choice), target_key=clean.target.key,
            device=clean.device_name, compiler=toolchain(),
            settings=f"faults={','.join(f.name for f in classes)} operators={operators} seed={seed} minimise={minimise} "
            f"catalogue={edition()}",
        )  # fmt: skip
        with _journal(bench_folder(run, str(clean.choice)) / "bench.jsonl", header) as journal:
            made = _Bench(run, clean, backends, journal, operators, seed, minimise, progress)
            return made.carry_out(classes, started)


def bench_folder(run: RunFolder, target: str) -> Path:
    """Where the bench of a target keeps its journal, and its results unless they are wanted elsewhere."""
    return path_in(target_folder(run, target), "faults")


def _journal(path: Path, header: Header) -> Journal:
    """The journal of a bench that was interrupted, if it was of the same; a new one otherwise, beside the old one."""
    if is_file(path.parent, path.name):
        records, _ = read(path)
        if records and records[-1]["record"] != "done" and not header.differences(records[0]):
            return Journal.open(path, header, resume=True)
    return Journal.open(path, header, fresh=True)


class _Bench:
    def __init__(
        self, run: RunFolder, bench: Workbench, backends: ReferenceBackends, journal: Journal, operators: int, seed: int,
        minimise: bool, progress: Progress | None,
    ) -> None:
        self.run = run
        self.bench = bench
        self.journal = journal
        self.operators = operators
        self.seed = seed
        self.minimise = minimise
        self.tell = bench.telling(progress)
        self.own = OwnMethod(run, bench, backends, (), smaller=minimise)
        self.alone: dict[Method, RandomInputs] = {
            "random": RandomInputs(run, bench, seed), "backendbench": BackendBench(run, bench, seed),
            "flashinfer_bench": FlashinferBench(run, bench, seed), "test_backend_ops": TestBackendOps(run, bench, seed),
        }  # fmt: skip
        self.prefix = PrefixBisection(run, bench)
        self.debug_compare = DebugCompare(run, bench)
        self.end_to_end = EndToEndOnly(run, bench)
        self.clean: dict[Method, Clean] = {}
        self.chosen: dict[str, dict[str, Any]] = {}
        self.begun: set[tuple[str, str]] = set()
        self.done: dict[tuple[str, str], Fault] = {}
        for record in journal.replayed:
            self._replay(record)
        self.resumed = len(self.done)

    def _replay(self, record: dict[str, Any]) -> None:
        kind = record["record"]
        if kind == "clean":
            self.clean[record["method"]] = Clean.from_json(record["clean"])
        elif kind == "class":
            self.chosen[record["name"]] = record
        elif kind == "begun":
            self.begun.add((record["name"], record["operator"]))
        elif kind == "fault":
            self.done[record["name"], record["operator"]] = Fault.from_json(record["fault"])

    def carry_out(self, classes: Sequence[FaultClass], started: float) -> BenchResult:
        self.bench.compile(self.run.operators, self.tell)
        self._clean()
        rows: list[Row] = []
        for number, fault in enumerate(classes):
            self.tell("bench faults", number, len(classes))
            rows.append(self._row(fault))
        self.tell("bench faults", len(classes), len(classes))
        self.journal.append({"record": "done"})
        return BenchResult(
            model=str(self.run.manifest["model"]["name"]), run=self.run.path.name, target=str(self.bench.choice),
            device=self.bench.info.to_json(), operators=self.operators, seed=self.seed, minimised=self.minimise,
            clean=self.clean, rows=tuple(rows), seconds=time.monotonic() - started, resumed=self.resumed,
        )  # fmt: skip

    def _clean(self) -> None:
        """Every method on the model as it is: what they complain of now is a false alarm."""
        looks: dict[Method, Callable[[], tuple[int, list[str]]]] = {
            "tapml": self._own_clean, **{method: partial(self._alone_clean, looks) for method, looks in self.alone.items()},
            "prefix": lambda: (len(self.run.graphs), [f.operator or WHOLE_MODEL for f in (self.prefix.find(),) if f]),
            "debug_compare": lambda: (len(self.run.bodies), [f.operator or "" for f in (self.debug_compare.find(),) if f]),
            "end_to_end": lambda: (1, [WHOLE_MODEL for f in (self.end_to_end.find(),) if f]),
        }  # fmt: skip
        for number, method in enumerate(METHODS):
            self.tell("clean model", number, len(METHODS))
            if method not in self.clean:
                started = time.monotonic()
                checked, alarms = looks[method]()
                self.clean[method] = Clean(checked, tuple(alarms), time.monotonic() - started)
                self.journal.append({"record": "clean", "method": method, "clean": self.clean[method].to_json()})
        self.tell("clean model", len(METHODS), len(METHODS))
        alarms_of_own = self.clean["tapml"].alarms
        self.own.passed = frozenset(o.name for o in self.run.operators if o.name not in alarms_of_own)
        self.own.model_passed = WHOLE_MODEL not in alarms_of_own

    def _own_clean(self) -> tuple[int, list[str]]:
        verdicts, wrong = self.own.clean(self.tell)
        alarms = [v.operator for v in verdicts if v.status not in ("pass", "skipped")]
        return len(verdicts) + 1, alarms + ([WHOLE_MODEL] if wrong else [])

    def _alone_clean(self, looks: RandomInputs) -> tuple[int, list[str]]:
        """One operator of each signature: random inputs and weights are the same for the others."""
        ones = list({o.signature: o for o in reversed(self.run.operators)}.values())
        return len(ones), [f.operator for f in looks.find(ones) if f.operator]

    def _row(self, fault: FaultClass) -> Row:
        target = self.bench.choice.name
        if why := fault.why_not(target):
            return Row(fault.to_json(), 0, (), f"{target} cannot express it: {why}")
        open_ones = self.chosen.get(fault.name)
        if open_ones is not None and all((fault.name, n) in self.done for n in open_ones["operators"]):
            found: dict[str, Rewrite] = {}
        else:
            found = dict(sites(fault, self.bench))
        if open_ones is None:
            named = self.bench.model.named
            operators = spread([named[n] for n in found], self.operators, random.Random(f"{self.seed} {fault.name}"))
            open_ones = {"record": "class", "name": fault.name, "sites": len(found), "operators": [o.name for o in operators]}
            self.journal.append(open_ones)
        if not open_ones["operators"]:
            return Row(fault.to_json(), 0, (), "not applicable here: no operator of this model has what the fault needs")
        faults = [self._fault(fault, name, found) for name in open_ones["operators"]]
        return Row(fault.to_json(), open_ones["sites"], tuple(faults))

    def _fault(self, fault: FaultClass, name: str, found: dict[str, Rewrite]) -> Fault:
        key = fault.name, name
        if key in self.done:
            return self.done[key]
        rewrite = found[name]
        if key in self.begun:
            made = Fault(name, rewrite.text, {}, note=ENDED)
        else:
            self.journal.append({"record": "begun", "name": fault.name, "operator": name})
            made = self._injected(fault, name, rewrite)
        self.journal.append({"record": "fault", "name": fault.name, "operator": name, "fault": made.to_json()})
        self.done[key] = made
        return made

    def _injected(self, fault: FaultClass, name: str, rewrite: Rewrite) -> Fault:
        put_in(self.bench, rewrite)
        self.bench.losses = 0  # each fault may lose the device as often as a whole bench might
        try:
            rewritten = [o for o in self.run.operators if changed(self.bench, o)]
            findings: dict[Method, Found] = {
                "tapml": self._own(fault, rewritten),
                **{method: self._alone(fault, method, rewritten) for method in self.alone},
                "debug_compare": self._debug_compare(rewritten), "prefix": self._prefix(rewritten),
                "end_to_end": self._end_to_end(rewritten),
            }  # fmt: skip
            latent: bool | None = None
            if rewritten and not any(f.detected for f in findings.values()):
                outputs = self._recorded_bits(rewritten)
                put_in(self.bench, None)
                latent = outputs is not None and outputs == self._recorded_bits(rewritten)
        finally:
            put_in(self.bench, None)
        return Fault(name, rewrite.text, findings, latent)

    def _own(self, fault: FaultClass, rewritten: Sequence[Operator]) -> Found:
        started = time.monotonic()
        said = self.own.find(rewritten)
        found = _found(said, rewritten, started, "every rewritten operator and the whole model pass")
        return replace(found, stage_right=said is not None and said.stage == fault.stage)

    def _alone(self, fault: FaultClass, method: Method, rewritten: Sequence[Operator]) -> Found:
        started = time.monotonic()
        looks = self.alone[method]
        if method != "random":
            if not rewritten:
                return _not_applicable("the fault is in no operator, and the rule looks at operators alone")
            if fault.level == "weights" and not any(map(looks.meets, rewritten)):
                return _not_applicable("the fault is in which weights the model hands over, and the rule brings its own")
        alarms = {self.bench.model.named[name].signature for name in self.clean[method].alarms}
        tested = [o for o in rewritten if o.signature not in alarms]
        said = next((d for o in tested if (d := looks.test(o)) is not None), None)
        left_out = len(rewritten) - len(tested)
        why = f"{left_out} that fail on the clean model too; the others pass" if left_out else "every rewritten operator passes"
        return _found(said, rewritten, started, why if rewritten else "no operator is rewritten")

    def _debug_compare(self, rewritten: Sequence[Operator]) -> Found:
        started = time.monotonic()
        said = self.debug_compare.find()
        if said is not None and said.operator in self.clean["debug_compare"].alarms:
            return _found(None, rewritten, started, f"stops at {said.operator}, as it does on the clean model")
        return _found(said, rewritten, started, "no mismatch")

    def _prefix(self, rewritten: Sequence[Operator]) -> Found:
        if not rewritten:
            return _not_applicable("the fault is in what the runtime hands over, and the rule gives each graph its inputs itself")
        started = time.monotonic()
        said = self.prefix.find()
        if said is not None and (said.operator or WHOLE_MODEL) in self.clean["prefix"].alarms:
            found = _found(None, rewritten, started, f"complains of {said.operator or WHOLE_MODEL}, as on the clean model")
        else:
            found = _found(said, rewritten, started, "the outputs of every graph agree")
        return replace(found, executions=self.prefix.executions)

    def _end_to_end(self, rewritten: Sequence[Operator]) -> Found:
        started = time.monotonic()
        said = self.end_to_end.find()
        if said is not None and self.clean["end_to_end"].alarms:
            return _found(None, rewritten, started, "the clean model fails too")
        return _found(said, rewritten, started, "tokens and logits agree")

    def _recorded_bits(self, operators: Sequence[Operator]) -> list[bytes] | None:
        """What these operators give on their recorded calls, bit for bit; None where one does not run."""
        bits: list[bytes] = []
        for operator in operators:
            program = self.bench.program(operator)
            if program is None:
                return None
            for trial in recorded(self.run, self.bench.model, operator):
                specs = [spec_of(r) for r in trial.expected]
                outcome = self.bench.attempt(partial(self.bench.run, operator, program, trial.inputs, specs))
                if not isinstance(outcome, Ran):
                    return None
                bits += [a.tobytes() for a in outcome.value]
        return bits


def spread(operators: Sequence[Operator], count: int, draw: random.Random) -> list[Operator]:
    """Up to `count` of these operators, in their order: one of each signature before a second of any, drawn at random."""
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(operator.signature, []).append(operator)
    order = list(groups.values())
    draw.shuffle(order)
    for group in order:
        draw.shuffle(group)
    rounds = [group[k] for k in range(max(map(len, order), default=0)) for group in order if k < len(group)]
    taken = {o.name for o in rounds[:count]}
    return [o for o in operators if o.name in taken]


def _right(named: str | None, rewritten: Sequence[Operator]) -> bool | None:
    """Whether the named operator is one that the fault was put into; None for a fault that is in no operator."""
    return named in {o.name for o in rewritten} if rewritten else None


def _not_applicable(why: str) -> Found:
    return Found(False, None, None, None, None, None, 0.0, why, applies=False)


def _found(said: Diagnosis | None, rewritten: Sequence[Operator], started: float, why_missed: str) -> Found:
    """Scored; None is a miss."""
    seconds = time.monotonic() - started
    if said is None:
        return Found(False, None, _right(None, rewritten), None, None, None, seconds, why_missed)
    return Found(True, said.operator, _right(said.operator, rewritten), said.stage, None, said.elements, seconds, said.reason)

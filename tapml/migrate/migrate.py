"""The whole migration of a run to a target: compile, test each operator, move those that pass, compare end to end.

    result = migrate(run, "opencl")
    result.passed, result.offloaded, result.kept_on_source, result.end_to_end

1. Every signature is compiled, once.
2. Every operator is tested alone (`tapml.migrate.operator_test`).
3. Those that passed move, in order, in batches that are split when the model as a whole no longer agrees with the source
   (`tapml.migrate.plan`). What fails stays on the source; there is a runnable hybrid at every moment.
4. The hybrid that came out answers every prompt, and is compared with the source (`tapml.migrate.end_to_end`).

Every verdict, check, move and comparison goes into the journal in the run's folder before anybody hears of it
(`tapml.migrate.journal`), so a migration that was killed goes on with `resume` where it was. One with an injected fault has a
journal of its own. What the records are:

    verdict   an operator's verdict of stage 2, and the calls that were measured for it
    check     what the whole model said with a set of operators on the target (the set as a hash, and its size)
    moved     these operators moved
    kept      this operator stays though it passed alone; its new verdict
    prompt    the comparison on one prompt
    done      the end
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tapml.backends.interface import Backend
from tapml.carving.folder import RunFolder
from tapml.carving.layout import folder_name as folder_name
from tapml.devices.interface import DeviceInfo
from tapml.errors import AnotherDevice, DeviceLost, UnavailableError, UsageError, WrongValue, is_confined, nearest
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.device_pool import DevicePool, Share, opened
from tapml.migrate.end_to_end import (
    Answer,
    EndToEnd,
    Oracle,
    PromptResult,
    Reference,
    answer_of,
    broken_off,
    compare_one,
)
from tapml.migrate.inject import Inject
from tapml.migrate.journal import Journal
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.outcome import Ran
from tapml.migrate.picture import keep_picture
from tapml.migrate.plan import Step, move
from tapml.migrate.programs import keep
from tapml.migrate.records import file_name, header_of, target_folder
from tapml.migrate.workbench import Progress
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid
from tapml.verdicts import Verdict, summary

MAX_TOKENS = 16


@dataclass(frozen=True)
class MigrationResult:
    """`verdicts` has one of each operator, in execution order; the numbers are those of the whole model where an operator passed
    alone and not in the model. `seconds` are those of this process, `resumed` how many verdicts came from the journal,
    `compiled` how many signatures were compiled, those in the kernel cache not counted. `devices` says which tested how
    many operators, `circumstances` what the result is worth, `positions` which of the cache the tests and the check exercise (see
    `tapml.carving.late`)."""

    target: str
    device: DeviceInfo
    verdicts: tuple[Verdict, ...]
    offloaded: tuple[str, ...]
    kept_on_source: tuple[str, ...]
    end_to_end: EndToEnd
    seconds: float
    checks: int
    resumed: int
    compiled: int
    devices: tuple[Share, ...] = ()
    circumstances: Circumstances = field(default_factory=Circumstances)
    positions: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Everything moved, and the migrated model answers as the source does."""
        return not self.kept_on_source and self.end_to_end.passed

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "device": self.device.to_json(),
            "verdicts": [v.to_json() for v in self.verdicts],
            "summary": summary(self.verdicts),
            "offloaded": list(self.offloaded),
            "kept_on_source": list(self.kept_on_source),
            "end_to_end": self.end_to_end.to_json(),
            "seconds": self.seconds,
            "checks": self.checks,
            "resumed": self.resumed,
            "compiled": self.compiled,
            "devices": [share.to_json() for share in self.devices],
            "passed": self.passed,
            **self.circumstances.to_json(),
            "positions": self.positions,
        }


def migrate(
    run: RunFolder,
    target: str | Backend,
    device: str = "local",
    *,
    resume: bool = False,
    fresh: bool = False,
    inject: Inject | None = None,
    order: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Progress | None = None,
) -> MigrationResult:
    """Migrates a run, to the target of a text or to an opened backend, which stays the caller's. `order` names operators that
    move first, in this order; the rest follows in execution order.

    Raises RunError when an unfinished journal is met with neither `resume` nor `fresh`, or one of another run, target or version
    with `resume`; UsageError for names in `order` that do not exist; UnavailableError when the device is not there or is lost
    again and again. What was journalled until then can be resumed.
    """
    started = time.monotonic()
    names = _in_order(run, order)
    with opened(run, target, device, inject) as tester:
        header = header_of(tester, f"tokens={max_tokens} order={_hash(names) if order else 'default'}")
        injected = tester.bench.rewrite is not None
        if injected:  # before there is a journal, which a fault that changes nothing would leave unfinished
            tester.bench.compile(run.operators, progress)
        path = target_folder(run, str(tester.bench.choice)) / file_name("migration", injected)
        with Journal.open(path, header, resume, fresh) as journal:
            try:
                return _Migration(run, tester, journal, names, max_tokens, progress).carry_out(started)
            except UnavailableError as error:
                if not isinstance(error, AnotherDevice):
                    error.args = (f"{error} The results so far are kept: continue with --resume.",)
                raise


class _Migration:
    def __init__(
        self, run: RunFolder, tester: OperatorTester | DevicePool, journal: Journal, names: Sequence[str], max_tokens: int,
        progress: Progress | None,
    ) -> None:
        self.run = run
        self.tester = tester
        self.bench = tester.bench
        self.journal = journal
        self.names = names
        self.max_tokens = max_tokens
        self.progress = progress
        self.tell = self.bench.telling(progress)
        self.source = Hybrid(self.bench.model, self.bench.model.source)
        self.reference: Reference | None = None
        self.verdicts: dict[str, Verdict] = {}
        self.answers: dict[str, Answer] = {}
        self.decided: list[dict[str, Any]] = []
        self.prompts: dict[int, PromptResult] = {}
        self.finished = False
        for record in journal.replayed:
            self._replay(record)
        self.resumed = len(self.verdicts)

    def _replay(self, record: dict[str, Any]) -> None:
        kind = record["record"]
        if kind == "verdict":
            verdict = Verdict.from_json(record["verdict"])
            self.verdicts[verdict.operator] = verdict
            self.tester.remember(verdict)
        elif kind == "check":
            self.answers[record["set"]] = Answer.from_json(record["answer"])
        elif kind in ("moved", "kept"):
            self.decided.append(record)
        elif kind == "prompt":
            result = PromptResult.from_json(record["result"])
            self.prompts[result.index] = result
        elif kind == "done":
            self.finished = True

    def carry_out(self, started: float) -> MigrationResult:
        if not self.finished:
            self._compile()
            self._test()
        offloaded, kept = self._move()
        self._compare(offloaded)
        if not self.finished:
            self.journal.append({"record": "done"})
        verdicts = tuple(kept.get(o.name, self.verdicts[o.name]) for o in self.run.operators)
        return MigrationResult(
            target=str(self.bench.choice), device=self.bench.info, verdicts=verdicts,
            offloaded=tuple(o.name for o in self.run.operators if o.name in offloaded),
            kept_on_source=tuple(o.name for o in self.run.operators if o.name not in offloaded),
            end_to_end=EndToEnd(tuple(self.prompts[k] for k in sorted(self.prompts))),
            seconds=time.monotonic() - started, checks=len(self.answers), resumed=self.resumed,
            compiled=self.bench.compiled, devices=self._shares(), circumstances=Circumstances.of(self.bench),
            positions=self.run.positions,
        )

    def _shares(self) -> tuple[Share, ...]:
        if isinstance(self.tester, DevicePool):
            return self.tester.shares
        return (Share(self.bench.device_name, len(self.verdicts) - self.resumed, self.bench.info),)

    def _compile(self) -> None:
        """What is still to be tested, moved or compared needs its kernels; a cached kernel costs next to nothing."""
        self.bench.compile(self.run.operators, self.tell)

    def _test(self) -> None:
        left = [o for o in self.run.operators if o.name not in self.verdicts]
        for verdict in self._tested(left):
            operator = self.run.operator(verdict.operator)
            self._keep(operator, verdict)
            measures = [m.to_json() for m in self.tester.measures_of(operator.name)]
            self.journal.append({"record": "verdict", "verdict": verdict.to_json(), "measures": measures})
            self.verdicts[operator.name] = verdict
        self.bench.trim()

    def _tested(self, operators: Sequence[Operator]) -> Iterator[Verdict]:
        """In order by one device; as they come by several, of which one stays for what follows."""
        if isinstance(self.tester, DevicePool):
            yield from self.tester.test(operators, self.tell)
            self.tester.dismiss()
            self.bench = self.tester.bench
            self.tell = self.bench.telling(self.progress)
            return
        done, total = len(self.verdicts), len(self.run.operators)
        for index, operator in enumerate(operators):
            self.tell("test", done + index, total)
            yield self.tester.test(operator.name)
        self.tell("test", total, total)

    def _keep(self, operator: Operator, verdict: Verdict) -> None:
        """The kernels that a verdict is about, and what a wrong output looked like, go into the run before the verdict does."""
        program = self.bench.program(operator)
        if program is not None and program.digest == verdict.kernel:
            keep(self.journal.path.parent, program)
        drawn = self.tester.picture_of(operator.name)
        if drawn is not None and verdict.kernel is not None:
            keep_picture(self.journal.path.parent, operator.name, verdict.kernel, drawn, self.bench.rewrite is not None)

    def _move(self) -> tuple[frozenset[str], dict[str, Verdict]]:
        """The operators that moved, and the new verdicts of those that passed alone and stay."""
        candidates = [name for name in self.names if self.verdicts[name].status == "pass"]
        offloaded: frozenset[str] = frozenset()
        kept: dict[str, Verdict] = {}
        count = 0
        self.tell("move", 0, len(candidates))
        for index, step in enumerate(move(candidates, self._check, lambda answer: answer.passed)):
            record = self._decision(step, len(offloaded))
            if index < len(self.decided):
                record = self.decided[index]
            else:
                self.journal.append(record)
            if step.moved:
                offloaded |= set(step.operators)
            else:
                kept[step.operators[0]] = Verdict.from_json(record["verdict"])
            count += len(step.operators)
            self.tell("move", count, len(candidates))
        return offloaded, kept

    def _decision(self, step: Step[Answer], moved: int) -> dict[str, Any]:
        if step.moved:
            return {"record": "moved", "operators": list(step.operators)}
        name, answer = step.operators[0], step.answer
        reason = f"passes alone, but not in the model with {moved} other operators on the target: {answer.reason}"
        verdict = replace(
            self.verdicts[name], status=answer.status, stage=answer.stage, error=answer.error, bound=answer.bound,
            source_error=answer.source_error, reason=reason,
        )
        return {"record": "kept", "verdict": verdict.to_json()}

    def _check(self, names: frozenset[str]) -> Answer:
        """The whole model with these operators on the target, against the source."""
        key = _hash(sorted(names))
        if key not in self.answers:
            if self.reference is None:
                self.reference = Reference.of(self.run, self.source)
            reference = self.reference
            outcome = self.bench.attempt(lambda: reference.check(self._hybrid(names)))
            answer = outcome.value if isinstance(outcome, Ran) else answer_of(outcome)
            self.journal.append({"record": "check", "set": key, "size": len(names), "answer": answer.to_json()})
            self.answers[key] = answer
        return self.answers[key]

    def _compare(self, offloaded: frozenset[str]) -> None:
        """Every prompt, or every example of a module that is no decoder. A device that is lost here is tried once more."""
        oracle = Oracle(self.run)
        total = len(self.run.prompts) or len(self.run.examples)
        for index in range(total):
            self.tell("compare", index, total)
            if index in self.prompts:
                continue
            try:
                result = self._compare_one(index, offloaded, oracle)
            except DeviceLost:
                result = self._compare_one(index, offloaded, oracle)
            except Exception as error:
                if not isinstance(error, WrongValue) and not is_confined(error):
                    raise
                result = broken_off(index, self.run.prompts[index].generated if self.run.prompts else (), error)
            self.journal.append({"record": "prompt", "result": result.to_json()})
            self.prompts[index] = result
        self.tell("compare", total, total)

    def _compare_one(self, index: int, offloaded: frozenset[str], oracle: Oracle) -> PromptResult:
        run = self.run

        def compared() -> PromptResult:
            hybrid = self._hybrid(offloaded)
            return compare_one(run, self.source, hybrid, index, self.max_tokens, oracle)

        return self.bench.attempt(compared).get()

    def _hybrid(self, names: frozenset[str]) -> Hybrid:
        hybrid = self.bench.hybrid()
        if hybrid.offloaded != names:
            hybrid.offload(self.bench.programs(sorted(names)))
        return hybrid


def _in_order(run: RunFolder, order: Sequence[str] | None) -> list[str]:
    known = [o.name for o in run.operators]
    for name in order or ():
        if name not in known:
            raise UsageError(f"The order names operator {name!r}, which the run does not have. {nearest(name, known)}")
    first = list(dict.fromkeys(order or ()))
    return first + [name for name in known if name not in set(first)]


def _hash(names: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(names).encode(), digest_size=12).hexdigest()

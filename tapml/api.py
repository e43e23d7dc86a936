"""TapML from Python: what `import tapml` offers. Thin over the stages; the command line is thin over this.

    import tapml

    run = tapml.carve(model, inputs, out="run")                    a torch.nn.Module, or whatever `tapml carve` takes
    run = tapml.carve("./my-model", prompts=["…"], out="run")
    run = tapml.Run.open("run")

    result = run.test(target="opencl")                             result.passed, result.verdicts
    result = run.migrate(target="vulkan")                          result.passed, result.offloaded, result.end_to_end

Everything that can go wrong is a `tapml.TapmlError` (see `tapml.errors`). torch and the compiler are loaded by the call that
needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tapml.carving.case import Case
from tapml.carving.detokenizer import Detokenizer
from tapml.carving.folder import RunFolder
from tapml.carving.writer import refuse_taken
from tapml.errors import UsageError
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.tested import TestResult
from tapml.operators.graph import Operator

if TYPE_CHECKING:
    import torch

    from tapml.backends.interface import Backend
    from tapml.carving.export import Exported
    from tapml.diagnose.bisect.result import BisectResult
    from tapml.diagnose.check.result import CheckResult
    from tapml.diagnose.explain.result import Explanation
    from tapml.diagnose.health.result import Health
    from tapml.migrate.inject import Inject
    from tapml.migrate.migrate import MigrationResult
    from tapml.report.html.page import Written

Progress = Callable[[str, int, int], None]
"""What every stage reports to: (stage, done, total); total 0 when nobody knows."""


def carve(
    model: str | Path | torch.nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    *,
    out: str | Path,
    prompts: Sequence[str] = (),
    decode_steps: int | None = None,
    dtype: str | None = None,
    max_len: int | None = None,
    chunk: int | None = None,
    cases: int | None = None,
    device: str | None = None,
    tokenizer: Any | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Records what every operator of a model does, and keeps it in the folder `out`.

    `model` is a module, or the text of the command line's MODEL. `inputs` are example inputs (keyword arguments, or positional
    ones); a causal language model takes the rows of `input_ids` as prompts where no `prompts` are given. What None stands for is
    documented in `tapml.carving.carve`. Raises ModelError, PromptError, UsageError and RunError.
    """
    from tapml.carving.carve import carve as carve_loaded
    from tapml.source.load import load

    tell = progress or (lambda stage, done, total: None)
    refuse_taken(Path(out).resolve(), fresh)
    tell("load", 0, 0)
    started = time.perf_counter()
    loaded = load(model, dtype=dtype, device=device, example_inputs=inputs, tokenizer=tokenizer)
    given = {"decode_steps": decode_steps, "max_len": max_len, "chunk": chunk, "cases": cases}
    carve_loaded(
        loaded, prompts, Path(out), fresh=fresh, load_seconds=time.perf_counter() - started, progress=tell,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    return Run.open(out)


class Run:
    """A finished run: what was carved, and what can be done with it. Made by `carve` or `Run.open`."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @staticmethod
    def open(path: str | Path) -> Run:
        """Raises RunError when there is no run, or when it is damaged or has another version."""
        return Run(RunFolder.open(Path(path)))

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Of all graphs, in execution order."""
        return self.folder.operators

    @property
    def cases(self) -> tuple[Case, ...]:
        """The recorded calls that were kept."""
        return self.folder.cases

    @property
    def facts(self) -> dict[str, Any]:
        """What carving counted and measured; see `tapml.carving.carve.CarveResult`."""
        return dict(self.folder.manifest["result"])

    def test(
        self,
        target: str | Backend | None = None,
        device: str = "local",
        *,
        operator: str = "*",
        segment: str | None = None,
        mode: Literal["isolated", "cumulative"] = "isolated",
        inject: Inject | None = None,
        repeat: int | None = None,
        kernels: str | Path | None = None,
        progress: Progress | None = None,
    ) -> TestResult:
        """Compiles the operators whose name matches the glob `operator` and checks each against the recording. `target` is the
        text of the command line, or an opened backend (`tapml.backends.interface`), which stays the caller's. `device` is
        "local", "NAME@URL" for one at a hub, or "A,B@URL" or "all@URL" for several that share the work. `inject` is an injected
        fault: "FILE.py:FUNCTION", or the function itself. What was found is kept in the run, see `tapml.migrate.records`.

        `kernels` is a folder with kernels of your own (docs/own-kernels.md), which then are the only ones; without `target` they
        run where their language does. `segment` "A..B" tests the operators from A to B as one (`tapml.migrate.segment`), on one
        device, isolated; the one verdict is that of the segment, and is not kept. With `repeat` each recorded call also runs so
        many times, and its rows in other places and chunks, for the same bits (`tapml.diagnose.invariance`). Raises TargetError,
        UsageError, UnavailableError."""
        from tapml.backends.own import target_of
        from tapml.backends.own_folder import OwnFolder
        from tapml.diagnose.invariance.stage import invariance, require
        from tapml.migrate.device_pool import DevicePool, Share, opened
        from tapml.migrate.invariance import keep_invariance
        from tapml.migrate.operator_test import OperatorTester
        from tapml.migrate.records import keep_test
        from tapml.migrate.segment import judge_segment

        if repeat is not None:
            require(repeat, mode)
        started = time.monotonic()
        if segment is not None and (operator != "*" or mode != "isolated" or kernels is not None):
            raise UsageError("A segment is tested alone: give --segment without --operator, --mode and --kernels.")
        if segment is not None and repeat is not None:
            raise UsageError("--repeat runs single operators again: give --segment or --repeat.")
        own = None if kernels is None else OwnFolder.read(Path(kernels), self.folder.operators, self.folder.bodies)
        target = target_of(target, own)
        one = mode != "isolated" or segment is not None
        with (OperatorTester if one else opened)(self.folder, target, device, inject, own) as tester:
            found_segment = None
            if isinstance(tester, DevicePool):
                operators = tester.tester.select(operator)
                found = {verdict.operator: verdict for verdict in tester.test(operators, progress)}
                verdicts, shares = tuple(found[o.name] for o in operators), tester.shares
            else:
                if segment is not None:
                    found_segment = judge_segment(tester, segment, progress)
                    verdicts = (found_segment.verdict,)
                elif mode == "cumulative":
                    wanted = {o.name for o in tester.select(operator)}
                    verdicts = tuple(v for v in tester.test_cumulative(progress) if v.operator in wanted)
                else:
                    verdicts = tuple(tester.test_all(operator, progress))
                shares = (Share(tester.device_name, len(verdicts), tester.bench.info),)
            if found_segment is None:
                keep_test(tester, mode, verdicts, merge=operator != "*")
            bench, measures = tester.bench, tuple(m for v in verdicts for m in tester.measures_of(v.operator))
            lacking = set() if own is None else {v.operator for v in verdicts if own.lacks(v.signature, bench.target.language)}
            again = None
            if repeat is not None:
                runs = [self.folder.operator(v.operator) for v in verdicts if v.operator not in lacking]
                again = invariance(self.folder, bench, runs, repeat, progress)
                keep_invariance(self.folder, str(bench.choice), again, bench.rewrite is not None)
            return TestResult(
                str(bench.choice), bench.info, mode, verdicts, time.monotonic() - started, measures, shares,
                Circumstances.of(bench), self.folder.positions, found_segment, again, None if own is None else str(own.path),
                frozenset(lacking),
            )

    def migrate(
        self,
        target: str | Backend,
        device: str = "local",
        *,
        resume: bool = False,
        fresh: bool = False,
        order: Sequence[str] | None = None,
        tokens: int | None = None,
        inject: Inject | None = None,
        progress: Progress | None = None,
    ) -> MigrationResult:
        """Moves operator by operator to the target, and compares the whole model end to end on `tokens` greedy tokens a prompt.
        See `tapml.migrate.migrate.migrate` for the journal, `resume`, `fresh`, `order` and the errors raised."""
        from tapml.migrate.migrate import MAX_TOKENS, migrate

        return migrate(
            self.folder, target, device, resume=resume, fresh=fresh, inject=inject, order=order,
            max_tokens=MAX_TOKENS if tokens is None else tokens, progress=progress,
        )  # fmt: skip

    def bisect(
        self,
        target: str | Backend,
        device: str = "local",
        *,
        all_sets: bool = False,
        confidence: float | None = None,
        tokens: int | None = None,
        inject: Inject | None = None,
        progress: Progress | None = None,
    ) -> BisectResult:
        """The smallest set of operators that makes the model wrong on the target; with `all_sets` every such set, one after the
        other. `tokens` of each answer are compared where the short check is right. See `tapml.diagnose.bisect.stage.bisect`."""
        from tapml.diagnose.bisect.stage import CONFIDENCE, bisect

        return bisect(
            self.folder, target, device, inject, all_sets, CONFIDENCE if confidence is None else confidence, progress, tokens
        )

    def explain(
        self,
        operator: str,
        target: str | Backend,
        device: str = "local",
        *,
        out: str | Path | None = None,
        inject: Inject | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        """At which stage an operator goes wrong, with the evidence, the smallest input and a reproducer. See
        `tapml.diagnose.explain.stage.explain`."""
        from tapml.diagnose.explain.stage import explain

        return explain(self.folder, operator, target, device, inject, None if out is None else Path(out), progress)

    def health(
        self,
        target: str | Backend | None = None,
        device: str = "local",
        *,
        prompt: int = 0,
        inject: Inject | None = None,
        progress: Progress | None = None,
    ) -> Health:
        """The first operators that make an overflow, an underflow, NaN or Inf on the source and on the target, and the room
        that half precision leaves. See `tapml.diagnose.health.stage.health`."""
        from tapml.diagnose.health.stage import health

        return health(self.folder, target, device, inject, prompt, progress)

    def check(
        self,
        *,
        onnx: str | Path | None = None,
        outputs: str | Path | None = None,
        backend: str | None = None,
        provider: str | None = None,
        progress: Progress | None = None,
    ) -> CheckResult:
        """An existing deployment against the run: an ONNX file, a folder of arrays, or `FILE.py:FUNCTION`; one of them. See
        `tapml.diagnose.check.stage`. Raises UsageError and UnavailableError."""
        from tapml.diagnose.check.stage import check

        return check(self.folder, onnx, outputs, backend, provider, progress)

    def export_cases(self, out: str | Path, operator: str = "*") -> Exported:
        """The recorded calls of the operators whose name matches the glob as plain arrays in a new folder. See
        `tapml.carving.export.export_cases`."""
        from tapml.carving.export import export_cases

        return export_cases(self.folder, Path(out), operator)

    def report(
        self, out: str | Path, targets: Sequence[str] | None = None, against: Run | None = None, progress: Progress | None = None
    ) -> Written:
        """One HTML file of all that is known about the run. See `tapml.report.html.page.write_report`."""
        from tapml.report.html.page import write_report

        return write_report(self.folder, Path(out), targets, None if against is None else against.folder, progress)

    def prompt_text(self, index: int) -> str:
        """A prompt as it was given; "" for one that came as tokens."""
        return self.folder.prompts[index].text

    def text(self, tokens: Sequence[int]) -> str | None:
        """Tokens as text, without special tokens; None for a model that came without a tokenizer."""
        return self._detokenizer.text(tokens)

    @cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

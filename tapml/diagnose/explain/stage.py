"""`explain`: from one operator's name to the stage of its fault, the evidence, the smallest input and a reproducer.

    found = explain(run, "layers.0.mlp.down_proj", "opencl", inject="faults.py:broken")
    found.stage, found.triage.evidence, found.minimised, found.reproducer, found.advice

1. The operator runs on every recorded call; the first with which it is wrong is triaged (`triage.py`).
2. If it is right on all of them, the whole model is asked whether this operator makes it wrong (`in_model.py`).
3. The failing case is made smaller (`minimise/stage.py`) and written as a folder that runs without TapML.
4. What to try follows from the evidence (`advice.py`).

All of it goes to `RUN/targets/TARGET/explain/OPERATOR/`: `evidence.json`, the kernels' source text, `reproducer/`.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tapml.backends.interface import Backend, Compiled
from tapml.backends.on_device import kernels_of
from tapml.carving.folder import RunFolder
from tapml.carving.layout import operator_folder
from tapml.diagnose.explain.advice import Context, advise
from tapml.diagnose.explain.in_model import InModel, in_model
from tapml.diagnose.explain.result import Explanation
from tapml.diagnose.explain.triage import triage
from tapml.diagnose.minimise.smallest import smallest
from tapml.diagnose.probes.evidence import Evidence, Triage
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.diagnose.probes.running import AsItIs
from tapml.diagnose.probes.shots import fire
from tapml.diagnose.probes.trials import met, recorded
from tapml.errors import UsageError, nearest
from tapml.inside import path_in
from tapml.languages import LANGUAGES
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.inject import Inject, Injection
from tapml.migrate.operator_test import Trial, each_layout
from tapml.migrate.picture import keep_picture, picture
from tapml.migrate.records import target_folder
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.operators.stays import why_it_stays
from tapml.runtime.hybrid import Hybrid
from tapml.verdicts import finite
from tapml.words import place

# What a folder of results holds.
_EVIDENCE = "evidence.json"
_RESULTS = ("kernels", "reproducer")


def explain(
    run: RunFolder,
    operator: str,
    target: str | Backend,
    device: str = "local",
    inject: Inject | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explains one operator on the target of a text, or on an opened backend, which stays the caller's; `operator` is its name,
    or a part or pattern that fits one only. `out` replaces the folder of the results. Raises UsageError for a name that fits none
    or several, and for an operator that stays on the source; TargetError and UnavailableError as `Workbench` does."""
    started = time.monotonic()
    found = resolve_operator(run, operator)
    if why := why_it_stays(run.bodies[found.signature]):
        raise UsageError(f"{found.name} stays on the source: {why}. No target has a kernel for it: there is nothing to explain.")
    with Workbench.on(run, target, device, inject) as bench, ReferenceBackends(run, bench) as backends:
        bench.require_change([found])
        folder = out or path_in(target_folder(run, str(bench.choice)), f"explain/{operator_folder(found.name)}")
        return _Explaining(run, bench, backends, found, folder, progress).carry_out(started)


def resolve_operator(run: RunFolder, text: str) -> Operator:
    """The one operator whose name is `text`, or ends in it, or contains it, or matches it as a pattern: the first of these that
    fits any must fit one only. Raises UsageError, naming what is near or what else fits."""
    names = [o.name for o in run.operators]
    attempts = (
        lambda n: n == text,
        lambda n: n.endswith(("/" + text, "." + text)),
        lambda n: text in n,
        lambda n: fnmatch.fnmatchcase(n, text),
    )
    for fits in attempts if text else ():
        fitting = [name for name in names if fits(name)]
        if len(fitting) == 1:
            return run.operator(fitting[0])
        if fitting:
            more = f" and {len(fitting) - 6} more" if len(fitting) > 6 else ""
            raise UsageError(f"{text!r} fits {len(fitting)} operators: {', '.join(fitting[:6])}{more}. Give the name of one.")
    raise UsageError(f"No operator of {run.path} has {text!r} in its name. {nearest(text, names)}")


def _claim(folder: Path) -> None:
    """Makes the folder of the results, before any work is done. One that holds other things than an explanation is left alone."""
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= {_EVIDENCE, *_RESULTS}):
        raise UsageError(f"{folder} is not empty, and not a folder of `tapml explain`. Give --out a new folder.")
    for name in (_EVIDENCE, *_RESULTS):
        path_in(folder, name)  # raises where a link stands, through which something else would be written
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be created: {error.strerror}. Give --out a folder that can be written.") from error


class _Explaining:
    def __init__(
        self, run: RunFolder, bench: Workbench, backends: ReferenceBackends, operator: Operator, folder: Path,
        progress: Progress | None,
    ) -> None:
        self.run = run
        self.bench = bench
        self.backends = backends
        self.operator = operator
        self.folder = folder
        self.progress = progress

    def carry_out(self, started: float) -> Explanation:
        _claim(self.folder)
        trials = list(recorded(self.run, self.bench.model, self.operator))
        if self.bench.backend.keeps_layouts:
            trials = [each for trial in trials for each in each_layout(trial)]
        if not trials:
            trials = list(met(self.run, self.bench.model, Hybrid(self.bench.model, self.bench.model.source), self.operator))
        if not trials:
            raise UsageError(
                f"{self.operator.name} was never called while {self.run.path} was carved, so there is nothing to explain it "
                "with. Carve with a longer prompt or more --decode-steps."
            )
        trial = self._failing(trials)
        found = triage(self.bench, self.operator, trial, self.backends, self.progress)
        model: InModel | None = None
        if found.passed:
            model = in_model(self.run, self.bench, self.operator, self.progress)
            if model.trial is not None:
                trial = model.trial
                found = triage(self.bench, self.operator, trial, self.backends, self.progress)
        program = self.bench.program(self.operator)
        for old in _RESULTS:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        kernels = self._write_kernels(program)
        small = smallest(self.bench, self.operator, found, trial, program, self.folder / "reproducer", self.progress)
        if not found.passed and program is not None:
            self._draw(program, trial)
        explanation = Explanation(
            operator=self.operator, target=str(self.bench.choice), device=self.bench.info, triage=found, program=program,
            module_lines=self._lines(), cases=len(trials), elements=sum(a.size for a in trial.inputs), folder=self.folder,
            kernels_at=kernels, advice=advise(found, self._context(found, trial, program, len(trials), model)),
            seconds=time.monotonic() - started, model=model, minimised=small.case, actual=small.actual,
            not_minimised=small.why_not, reproducer=small.reproducer,
            circumstances=Circumstances.of(self.bench),
        )  # fmt: skip
        text = json.dumps(finite(explanation.to_json()), indent=1, allow_nan=False)
        (self.folder / _EVIDENCE).write_text(text + "\n", encoding="utf-8")
        return explanation

    def _draw(self, program: Compiled, trial: Trial) -> None:
        """Keeps what the wrong output looks like, for the report."""
        shot = fire(self.bench, self.operator, program, trial)
        if shot.comparison is None or shot.comparison.passed:
            return
        drawn = picture(shot.outputs[shot.output], trial.references[shot.output], shot.comparison.index)
        told = {"trial": trial.name, "output": shot.output, **drawn}
        folder = target_folder(self.run, str(self.bench.choice))
        keep_picture(folder, self.operator.name, program.digest, told, self.bench.rewrite is not None)

    def _failing(self, trials: Sequence[Trial]) -> Trial:
        """The first call with which the operator is wrong, or the first."""
        program = self.bench.program(self.operator)
        if program is not None:
            for number, trial in enumerate(trials):
                if self.progress is not None:
                    self.progress("test", number, len(trials))
                if fire(self.bench, self.operator, program, trial).outcome != "right":
                    return trial
        return trials[0]

    def _context(
        self, found: Triage, trial: Trial, program: Compiled | None, cases: int, model: InModel | None
    ) -> Context:
        keys = self.bench.model.weight_keys(self.operator)
        values = [a for a, key in zip(trial.inputs, keys, strict=True) if key is None]
        return Context(
            place(self.run.path), str(self.bench.choice), self.operator.name, program, values, cases,
            self._wide(found, trial, program), None if model is None else model.stage, model is not None and model.wrong,
            self._own(),
        )  # fmt: skip

    def _own(self) -> str:
        """The function that rewrote this operator's kernels, as it was asked for; "" where none did."""
        rewrite = self.bench.rewrite
        changed = rewrite.changed.get(self.operator.name, (0, 0)) if isinstance(rewrite, Injection) else (0, 0)
        return rewrite.text if rewrite is not None and changed[0] else ""

    def _wide(self, found: Triage, trial: Trial, program: Compiled | None) -> Evidence | None:
        """The same target with float16 computed in float32, where the operator is wrong and float16 plays a part."""
        here = self.bench.backend.has_kernels and not found.passed
        if not here or program is None or not any(s.dtype == "float16" for s in (*program.inputs, *program.outputs)):
            return None
        choice, wide = self.bench.variant(self.operator, f16="0")
        if wide is None:
            return None
        shot = fire(self.bench, self.operator, wide, trial, 3)
        return AsItIs().of_shot(shot, str(choice))

    def _lines(self) -> tuple[str, ...]:
        """The lines of the model's code that the operator comes from."""
        body = self.bench.model.bodies[self.operator.signature]
        return tuple(dict.fromkeys(node.source for node in body.nodes if node.source))

    def _write_kernels(self, program: Compiled | None) -> tuple[Path, ...]:
        paths: list[Path] = []
        for kernel in kernels_of(program):
            path = self.folder / "kernels" / f"{kernel.entry}.{LANGUAGES[kernel.language].suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(kernel.source, encoding="utf-8")
            paths.append(path)
        return tuple(paths)


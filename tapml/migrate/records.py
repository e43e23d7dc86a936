"""What testing and migrating found on a target, kept in the run: writing it after a test, and reading all of it back.

    records = Records.of(run, "opencl")
    records.isolated.verdicts["decode/layers.0.mlp.up_proj"]      the newer of the last test and the migration
    records.cumulative.at("decode/layers.0.mlp.up_proj", step=3)  one measured call: error, bound, the source's own error

The files, in `RUN/targets/TARGET/`, are JSON lines that begin with a header as that of the journal (`tapml.migrate.journal`):

    test.jsonl, cumulative.jsonl        of `tapml test` and `tapml test --mode cumulative`
    migrate.jsonl                       the journal of the migration, whose verdict records hold their measures
    test.injected.jsonl, …              of all three with `--inject`, so that a fault never mixes with what is true

Each operator has its measures, one a line, and then its verdict. A new test replaces a file as a whole, by a rename when it has
ended, so one that is killed leaves the old results; of two at the same time the later one stays. A test of some operators keeps
the results of the others if they are of the same run, target, device, compiler and fault. A folder that cannot be written
costs a warning and the records, never the test.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tapml
from tapml import strict
from tapml.carving.folder import RunFolder
from tapml.carving.layout import TARGET_FOLDER, folder_name
from tapml.compile.cache import toolchain
from tapml.errors import RunError, TapmlError
from tapml.inside import is_file, path_in
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.end_to_end import Answer, PromptResult
from tapml.migrate.journal import FORMAT, Header, read
from tapml.migrate.picture import keep_picture
from tapml.migrate.programs import keep
from tapml.verdicts import Measure, Verdict

if TYPE_CHECKING:
    from tapml.migrate.device_pool import DevicePool
    from tapml.migrate.operator_test import OperatorTester

logger = logging.getLogger(__name__)

FILES = {"isolated": "test", "cumulative": "cumulative", "migration": "migrate"}


@dataclass(frozen=True)
class Sheet:
    """One file. `records` are its lines as they are, the header first."""

    path: Path
    records: tuple[dict[str, Any], ...]

    @property
    def header(self) -> dict[str, Any]:
        return self.records[0]

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """In the order in which they were taken."""
        found: list[Measure] = []
        for record in self.records:
            if record["record"] == "measure":
                found.append(Measure.from_json(record))
            if "measures" in record:
                found += [Measure.from_json(m) for m in strict.items(record, "measures")]
        return tuple(found)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """By operator; of a migration the last word, also on one that passed alone and not in the model."""
        found = [Verdict.from_json(r["verdict"]) for r in self.records if r["record"] in ("verdict", "kept")]
        return {verdict.operator: verdict for verdict in found}

    @cached_property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({m.step for m in self.measures}))

    @cached_property
    def _by_operator(self) -> dict[str, list[Measure]]:
        found: dict[str, list[Measure]] = defaultdict(list)
        for measure in self.measures:
            found[measure.operator].append(measure)
        return found

    def of(self, operator: str) -> tuple[Measure, ...]:
        return tuple(self._by_operator.get(operator, ()))

    def at(self, operator: str, step: int) -> Measure | None:
        """The worst of an operator at a step, whatever the prompt: one that has no numbers or did not pass before any other."""
        found = [m for m in self.of(operator) if m.step == step]
        return max(found, key=lambda m: (m.status != "pass", m.ratio is None, m.ratio or 0.0), default=None)


@dataclass(frozen=True)
class Records:
    """All that is there for a target. `outdated` says which files were left out, because they are of another run or format, or
    have a fault where none is asked for."""

    target: str
    folder: Path
    test: Sheet | None
    cumulative: Sheet | None
    migration: Sheet | None
    outdated: tuple[str, ...] = ()

    @staticmethod
    def of(run: RunFolder, target: str, injected: bool = False) -> Records:
        """Reads the files of a target; those that do not exist are None. `injected` reads the results of injected faults instead.
        Raises RunError for a file with a damaged line, as the journal does; a torn last line is left out."""
        folder = target_folder(run, target)
        outdated: list[str] = []

        def sheet(name: str) -> Sheet | None:
            path = folder / name
            if not is_file(folder, name):
                return None
            records, _ = read(path, _advice(path))
            reason = _unfit(records, run, injected)
            if reason:
                outdated.append(f"{path.name}: {reason}")
                return None
            found = Sheet(path, tuple(records))
            _check(found, len(run.prompts))
            return found

        test, cumulative, migration = (sheet(file_name(kind, injected)) for kind in FILES)
        return Records(target, folder, test, cumulative, migration, tuple(outdated))

    @property
    def isolated(self) -> Sheet | None:
        """Operators tested alone: the last test's or the migration's, whichever is newer."""
        found = [s for s in (self.migration, self.test) if s is not None]
        return max(found, key=lambda s: s.header.get("time") or 0.0, default=None)


def target_folder(run: RunFolder, target: str) -> Path:
    """Where the results of a target lie. Raises RunError when a link leads there."""
    return path_in(run.path, f"{TARGET_FOLDER}/{folder_name(target)}")


def file_name(kind: str, injected: bool) -> str:
    """The file of a test ("isolated" or "cumulative") or a "migration"."""
    return f"{FILES[kind]}{'.injected' if injected else ''}.jsonl"


def header_of(tester: OperatorTester | DevicePool, settings: str) -> Header:
    """What is recorded by this tester belongs to. `settings` is whatever else changes the outcome."""
    bench = tester.bench
    found = Circumstances.of(bench)
    return Header(
        version=tapml.__version__, run=bench.folder.digest, target=str(bench.choice), target_key=bench.target.key,
        device=tester.device_name, inject=None if bench.rewrite is None else bench.rewrite.digest,
        compiler=toolchain(), settings=settings, device_info=bench.info.to_json(), time=time.time(),
        fault=found.inject, storage=found.storage, not_checked=found.not_checked,
    )


def keep_test(
    tester: OperatorTester | DevicePool, mode: str, verdicts: Sequence[Verdict], merge: bool = False
) -> None:
    """Writes what a test ("isolated" or "cumulative") found, and the kernels that it is about. `merge` keeps the results of other
    operators, where they are of the same run, target, device, compiler and fault. Warns where the folder cannot be written."""
    run, bench = tester.run, tester.bench
    header = header_of(tester, mode)
    try:
        folder = target_folder(run, header.target)
    except RunError as error:
        logger.warning("records of the test: %s The results are not kept", error)
        return
    path = folder / file_name(mode, bench.rewrite is not None)
    results = {v.operator: ([m.to_json() for m in tester.measures_of(v.operator)], v.to_json()) for v in verdicts}
    if merge:
        results = _results_of(path, header) | results
    lines: list[dict[str, Any]] = [header.to_json()]
    for operator in run.operators:
        if operator.name in results:
            measures, verdict = results[operator.name]
            lines += [*measures, {"record": "verdict", "verdict": verdict}]
    try:
        for found in verdicts:
            drawn = tester.picture_of(found.operator)
            if drawn is not None and found.kernel is not None:
                keep_picture(folder, found.operator, found.kernel, drawn, bench.rewrite is not None)
            program = None if found.kernel is None else bench.program(run.operator(found.operator))
            if program is not None and program.digest == found.kernel:
                keep(folder, program)
        _write(path, lines)
    except (OSError, TapmlError) as error:
        logger.warning("records of the test: %s cannot be written (%s); the results are not kept", path, error)


def _results_of(path: Path, header: Header) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Measures and verdict by operator, as JSON, of a file that belongs to the same; nothing of any other."""
    try:
        records, _ = read(path)
    except FileNotFoundError:
        return {}
    except (OSError, RunError) as error:
        logger.warning("records of the test: %s cannot be read (%s); it is replaced", path, error)
        return {}
    if not records or header.differences(records[0]):
        return {}
    found: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
    measures: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records[1:]:
        if record["record"] == "measure":
            measures[record["operator"]].append(record)
        elif record["record"] == "verdict":
            name = record["verdict"]["operator"]
            found[name] = (measures[name], record["verdict"])
    return found


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _unfit(records: Sequence[dict[str, Any]], run: RunFolder, injected: bool) -> str:
    """Why a file is not of this run, or not of the kind that is asked for; "" when it is."""
    if not records:
        return "it has no complete line"
    header = records[0]
    if header.get("format") != FORMAT:
        return f"it has format {header.get('format')!r}, not {FORMAT}"
    if header.get("run") != run.digest:
        return "it belongs to another run that was here before"
    if (header.get("inject") is not None) != injected:
        return "it belongs to an injected fault" if not injected else "it belongs to no injected fault"
    return ""


def _check(sheet: Sheet, prompts: int) -> None:
    """Raises RunError where a record is JSON and not what it says to be. `prompts` is how many the run has, 0 for examples."""
    try:
        _ = sheet.measures, sheet.verdicts
        _check_header(sheet.header)
        for record in sheet.records:
            _check_record(record, prompts)
    except strict.UNREADABLE as error:
        raise RunError(
            f"{sheet.path} is damaged ({type(error).__name__}: {error}). {_advice(sheet.path)}"
        ) from error


def _check_header(header: dict[str, Any]) -> None:
    for key in ("target", "version", "compiler", "device"):
        strict.text(header, key)
    for key in {"fault", "inject"} & header.keys():
        strict.maybe(strict.text, header, key)
    if "time" in header:
        strict.maybe(strict.real, header, "time")
    if "not_checked" in header:
        strict.several(strict.text, header, "not_checked")
    device = header.get("device_info")
    if device is not None:
        for key in ("platform", "name", "driver"):
            strict.text(device, key)
        strict.yes(device, "software")


def _check_record(record: dict[str, Any], prompts: int) -> None:
    """Raises ValueError and the like for a record that its readers could not read."""
    kind = record["record"]
    if kind == "check":
        strict.whole(record, "size")
        Answer.from_json(strict.inner(record, "answer"))
    elif kind == "moved":
        strict.several(strict.name, record, "operators")
    elif kind == "prompt":
        found = PromptResult.from_json(strict.inner(record, "result"))
        if prompts and found.index >= prompts:
            raise ValueError(f"there is no prompt {found.index}")


def _advice(path: Path) -> str:
    migration = path.name.startswith(FILES["migration"])
    return "Migrate again with --fresh." if migration else "Test the whole run again: that replaces it."

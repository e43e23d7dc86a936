"""Building a bundle from a run that was migrated.

    built = build(run, "opencl", Path("smollm2"))

What ships is what passed: the programs that the migration's verdicts name, byte for byte, and the weights as those programs store
them. An operator that stayed on the source, or has no passing verdict, is refused with its reason; one that is allowed by name
ships with the kernels that its verdict is about, and the bundle says so. The folder is written beside
its place and renamed, so that a build that fails or is stopped leaves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tapml
from tapml.cache.folder import file_digest
from tapml.carving import layout as of_run
from tapml.carving.folder import RunFolder
from tapml.deploy import layout
from tapml.deploy.bundle import BundleFolder, stored_of
from tapml.deploy.plan import make_plan, naive_bytes
from tapml.deploy.text import Text
from tapml.errors import BundleError, UsageError
from tapml.kernels import Program
from tapml.manifest import SEAL, digest, seal
from tapml.migrate.circumstances import now
from tapml.migrate.end_to_end import Reference
from tapml.migrate.model import Model
from tapml.migrate.programs import kept
from tapml.migrate.records import Records, Sheet
from tapml.operators.matching import matching
from tapml.runtime.buffers import as_bytes
from tapml.runtime.hybrid import Hybrid
from tapml.source.safetensors_file import write_file
from tapml.targets.parse import parse
from tapml.tensors import HostArray, convert
from tapml.verdicts import Verdict
from tapml.whole_file import whole_folder, why_not

LISTED = 5


@dataclass(frozen=True)
class Built:
    """What a build wrote: bytes of weights and of all files, how many operators share how many programs. `prompts_differ` counts
    the run's prompts whose text the bundle makes other tokens of than carving did. `planned_bytes` is the memory that values,
    constants and states take on the device, `naive_bytes` what they would take if none were used again. `allowed` names the
    operators that ship without having passed."""

    path: Path
    target: str
    operators: int
    programs: int
    weight_bytes: int
    nbytes: int
    planned_bytes: int
    naive_bytes: int
    prompts_differ: int
    allowed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.path), "target": self.target, "operators": self.operators, "programs": self.programs,
            "weight_bytes": self.weight_bytes, "bytes": self.nbytes,
            "planned_bytes": self.planned_bytes, "naive_bytes": self.naive_bytes, "prompts_differ": self.prompts_differ,
            "allowed": list(self.allowed),
        }  # fmt: skip


def build(run: RunFolder, target: str, out: Path, fresh: bool = False, allow: Sequence[str] = ()) -> Built:
    """`allow` has names or patterns of operators that ship although they did not pass. Raises TargetError for what is no target;
    BundleError where the run was not migrated to it wholly, or `out` is taken or cannot be written; UsageError for a pattern that
    no operator needs; RunError for a damaged run."""
    choice = parse(target)
    records = Records.of(run, str(choice))
    sheet = _finished(records, run, str(choice))
    allowed = _allowed(run, sheet, str(choice), allow)
    verdicts = sheet.verdicts
    programs = {name: _program(records.folder, verdicts[name]) for name in (o.name for o in run.operators)}
    out = out.resolve()
    _refuse_taken(out, fresh)
    try:
        with whole_folder(out) as partial:
            writer = _Writer(run, partial, programs, sheet, allowed)
            weight_bytes, nbytes = writer.write(str(choice))
            memory = writer.plan.planned_bytes, naive_bytes(writer.plan, programs)
            differ = _prompts_that_differ(BundleFolder.open(partial))
    except OSError as error:
        why = f"{out} cannot be written ({error.strerror}). Nothing was left behind. Make room, or choose another place with -o."
        raise BundleError(why) from error
    count = len({p.digest for p in programs.values()})
    return Built(out, str(choice), len(run.operators), count, weight_bytes, nbytes, *memory, differ, allowed)


def _prompts_that_differ(bundle: BundleFolder) -> int:
    text = Text(bundle)
    return sum(text.tokens(prompt["text"]) != prompt["tokens"] for prompt in bundle.prompts if prompt["text"])


def _finished(records: Records, run: RunFolder, target: str) -> Sheet:
    sheet = records.migration
    if sheet is None:
        left = f" ({records.outdated[0]})" if records.outdated else ""
        raise BundleError(f"{run.path} was not migrated to {target}{left}. First: tapml migrate {run.path} --target {target}")
    if sheet.records[-1]["record"] != "done":
        raise BundleError(f"The migration to {target} did not finish. Go on: tapml migrate {run.path} --target {target} --resume")
    return sheet


def _allowed(run: RunFolder, sheet: Sheet, target: str, allow: Sequence[str]) -> tuple[str, ...]:
    """The operators that did not move, or have no passing verdict. Raises BundleError unless each of them is allowed and has
    kernels, UsageError for a pattern without any of them."""
    moved = {name for r in sheet.records if r["record"] == "moved" for name in r["operators"]}
    stayed = [o.name for o in run.operators if o.name not in moved or sheet.verdicts[o.name].status != "pass"]
    chosen = {pattern: {o.name for o in matching(run.operators, pattern)}.intersection(stayed) for pattern in allow}
    if idle := [pattern for pattern, names in chosen.items() if not names]:
        raise UsageError(f"--allow {idle[0]}: each operator of that name passed on {target}. Leave it out.")
    allowed = set().union(*chosen.values())
    if refused := [name for name in stayed if name not in allowed]:
        first = (sheet.verdicts[name] for name in refused[:LISTED])
        reasons = "; ".join(f"{v.operator} ({v.status}: {v.reason[:120]})" for v in first)
        more = f" and {len(refused) - LISTED} more" if len(refused) > LISTED else ""
        raise BundleError(
            f"{len(refused)} of {len(run.operators)} operators stayed on the source and cannot ship: {reasons}{more}. Look into "
            f"the first: tapml explain {run.path} {refused[0]} --target {target}"
        )
    if bare := [name for name in stayed if sheet.verdicts[name].kernel is None]:
        verdict = sheet.verdicts[bare[0]]
        raise BundleError(f"{bare[0]} has no kernels to ship, allowed or not ({verdict.status}: {verdict.reason[:120]}).")
    return tuple(stayed)


def _program(folder: Path, verdict: Verdict) -> Program:
    program = None if verdict.kernel is None else kept(folder, verdict.kernel)
    if program is None:
        raise BundleError(f"The kernels of {verdict.operator} are not in {folder}. Migrate again with --fresh.")
    return program


def _refuse_taken(out: Path, fresh: bool) -> None:
    if out.exists() and (out.is_file() or any(out.iterdir())):
        if not (out / layout.MANIFEST).is_file():
            raise BundleError(f"{out} exists and is no bundle, so it was left as it is. Choose another place with -o.")
        if not fresh:
            raise BundleError(f"{out} already holds a bundle. Replace it with --fresh, or choose another place with -o.")
    above = out.parent
    while not above.exists():
        above = above.parent
    if reason := "that is a file" if not above.is_dir() else why_not(above):
        raise BundleError(f"Cannot write a bundle at {out}: {above} cannot be written ({reason}). Choose another place with -o.")


class _Writer:
    def __init__(
        self, run: RunFolder, folder: Path, programs: Mapping[str, Program], sheet: Sheet, allowed: Sequence[str]
    ) -> None:
        self.run = run
        self.allowed = allowed
        self.model = Model.of(run)
        self.folder = folder
        self.programs = programs
        self.sheet = sheet
        self.plan = make_plan(self.model, programs)
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, target: str) -> tuple[int, int]:
        """Bytes of weights, and of all files."""
        run = self.run
        self._lines(layout.GRAPHS, (g.to_json() for g in run.graphs))
        self._lines(layout.OPERATORS, (
            {"operator": o.to_json(), "program": self.programs[o.name].digest} for o in run.operators
        ))  # fmt: skip
        self._text(layout.PLAN, json.dumps(self.plan.to_json(), separators=(",", ":")))
        self._lines(layout.VERDICTS, (self.sheet.verdicts[o.name].to_json() for o in run.operators))
        self._lines(layout.PROMPTS, ({"text": p.text, "tokens": p.tokens, "generated": p.generated} for p in run.prompts))
        for program in {p.digest: p for p in self.programs.values()}.values():
            self._text(f"{layout.KERNEL_FOLDER}/{program.digest}.json", json.dumps(program.to_json(), separators=(",", ":")))
        if run.examples:
            self._example()
        states = {key: array for key, array in run.initial_states.items() if array.view(np.uint8).any()}
        if states:
            self._arrays(layout.STATES, states)
        weight_bytes = self._weights()
        for name in (of_run.TOKENIZER, of_run.CHAT):
            if name in run.manifest["files"]:
                self._text(name, run.content(name).decode())
        header = self.sheet.header
        manifest = {
            "format": layout.FORMAT, "format_version": layout.FORMAT_VERSION, "version": tapml.__version__, "date": now(),
            "model": run.manifest["model"]["name"], "kind": run.kind, "calls": run.protocol.to_json(), "run": run.digest,
            "target": target, "target_key": header["target_key"], "device": header.get("device_info"),
            "compiler": header.get("compiler"), "licence": run.manifest["model"]["licence"],
            "generation": run.manifest["generation"], "allowed": list(self.allowed), "files": self.files,
        }  # fmt: skip
        manifest[SEAL] = seal(manifest)
        (self.folder / layout.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return weight_bytes, sum(facts["bytes"] for facts in self.files.values())

    def _example(self) -> None:
        """The first one, what the source makes of it now, and how exact it is there."""
        inputs = self.run.examples[0]
        (judges,) = Reference.of(self.run, Hybrid(self.model, self.model.source)).judges()
        arrays = {f"0 input {key}": array for key, array in inputs.items()}
        self._arrays(layout.EXAMPLES, arrays | {f"0 output {key}": judge.values for key, judge in judges.items()})
        self._lines(layout.ACCURACY, [{
            key: {"error": judge.accuracy.error, "straddling": judge.straddling, "spread": judge.spread}
            for key, judge in judges.items()
        }])  # fmt: skip

    def _weights(self) -> int:
        """Each content once, as the programs store it; in shards."""
        lines: list[dict[str, Any]] = []
        shard: dict[str, HostArray] = {}
        where: dict[str, tuple[str, str]] = {}
        written = count = total = 0

        def finish() -> None:
            nonlocal shard, written
            if shard:
                self._arrays(f"{layout.SHARD_FOLDER}/{count:05}.safetensors", shard)
            shard, written = {}, 0

        for key, dtype in stored_of(self.programs, self.model):
            array = np.ascontiguousarray(convert(self.model.weight(key), dtype))
            content = digest(as_bytes(array))
            name = f"{content} {dtype} {list(array.shape)}"
            if name not in where:
                if written and written + array.nbytes > layout.SHARD_BYTES:
                    finish()
                    count += 1
                tensor = key if key not in shard else f"{key} as {dtype}"
                shard[tensor] = array
                written += array.nbytes
                total += array.nbytes
                where[name] = f"{layout.SHARD_FOLDER}/{count:05}.safetensors", tensor
            file, tensor = where[name]
            lines.append({"key": key, "dtype": dtype, "file": file, "tensor": tensor, "digest": content})
        finish()
        self._lines(layout.WEIGHTS, lines)
        return total

    def _lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        self._text(name, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))

    def _text(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
        self._note(name)

    def _arrays(self, name: str, arrays: Mapping[str, HostArray]) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_file(path, arrays)
        self._note(name)

    def _note(self, name: str) -> None:
        path = self.folder / name
        self.files[name] = {"bytes": path.stat().st_size, "digest": file_digest(path)}

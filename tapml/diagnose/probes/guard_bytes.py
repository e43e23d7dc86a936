"""Whether a kernel keeps to its own memory: runs with known bytes in and around every buffer.

    found = watch(bench, program, trial)
    found.shot, found.findings

Every buffer is allocated with `GUARD` bytes more than asked, and these bytes hold a pattern. Outputs and scratch hold poison
before the launch. The run is repeated with other patterns and other poison:

- the pattern is no longer there after the run: a write behind the end of a buffer;
- the result changes with the pattern: a read behind the end of a buffer;
- the result changes with the poison: a read of memory that nobody wrote, or, where the element *is* the poison, an output that
  nobody wrote;
- the result changes with nothing: a race.

What this cannot see: reads and writes before the start of a buffer or farther than `GUARD` bytes behind its end (a driver may
end the process for them, which is seen); workgroup and private memory, which no caller can fill; on WGSL platforms an index
behind the binding is clamped or dropped by the platform, so of those only what falls into the guard bytes shows. A kernel that
races may do so in no run of these few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tapml.backends.interface import Compiled
from tapml.diagnose.probes.evidence import Evidence, Finding
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.shots import Shot, judge
from tapml.migrate.operator_test import Trial
from tapml.migrate.outcome import Attempted, Ran
from tapml.migrate.workbench import Workbench
from tapml.runtime.buffers import as_bytes
from tapml.tensors import NUMPY, HostArray, as_read, convert, spec_of
from tapml.words import plural

# Bytes behind the end of every buffer that are watched.
GUARD = 4096

# Bytes that memory is filled with: NaN and -1; zeros; 1.3e19 in float32, 58.2 in float16, a large integer.
NAN, ZERO, LARGE = 0xFF, 0x00, 0x5F


@dataclass(frozen=True)
class Filling:
    """What memory holds before a run: `poison` in outputs and scratch, `around` behind every buffer."""

    poison: int = NAN
    around: int = NAN


@dataclass(frozen=True)
class GuardedRun:
    """What one run did: its outputs as stored, and the buffers ("output 0") whose guard bytes it wrote to."""

    outputs: tuple[HostArray, ...]
    overwritten: tuple[str, ...]


@dataclass(frozen=True)
class Watched:
    """`shot` judges all runs together."""

    shot: Shot
    findings: tuple[Finding, ...]

    @property
    def writes_beyond(self) -> bool:
        return any(f.kind == "out-of-bounds write" for f in self.findings)


PLAIN = Filling()
RUNS: tuple[Filling, ...] = (PLAIN, PLAIN, Filling(ZERO), Filling(LARGE), Filling(around=ZERO), Filling(around=LARGE))


class KeepsToItsMemory(Probe):
    name = "memory"
    question = "Does the result depend on nothing but the inputs, and does nothing else get written?"
    right = "It reads and writes nothing but its own memory, and none of it before writing it."
    wrong = "It accesses memory in a way that it should not."
    refused = "The device refused or died during the runs with watched memory."
    always = True

    def run(self, subject: Subject) -> Evidence:
        watched = subject.watched
        if watched is None:
            return self.not_run("there was no run to watch", subject.here)
        if watched.shot.failed is not None:
            return self.gave("refused", watched.shot.detail, subject.here)
        subject.findings += watched.findings
        if watched.findings:
            return self.gave("wrong", "; ".join(f"{f.kind}: {f.text}" for f in watched.findings), subject.here)
        runs = plural(watched.shot.runs, "run")
        detail = f"the same bits in {runs} with other contents of memory, in and around the buffers"
        return self.gave("right", detail, subject.here)


def watch(bench: Workbench, program: Compiled, trial: Trial) -> Watched:
    """Runs a program once with each of `RUNS`, every input uploaded as given. Raises UnavailableError only when the device
    cannot be opened again after it died."""
    made: list[GuardedRun] = []
    shot = judge(trial, [partial(answer, bench, program, trial, filling, made=made) for filling in RUNS])
    return Watched(shot, tuple(findings_of(made)))


def answer(
    bench: Workbench, program: Compiled, trial: Trial, filling: Filling = PLAIN, guard: int = GUARD,
    made: list[GuardedRun] | None = None,
) -> Attempted[Sequence[HostArray]]:
    """The outputs of one run in buffers with guard bytes, in the graph's dtypes. What else it did goes into `made`."""
    outcome = bench.attempt(lambda: run_guarded(bench, program, trial.inputs, filling, guard))
    if not isinstance(outcome, Ran):
        return outcome
    if made is not None:
        made.append(outcome.value)
    pairs = zip(outcome.value.outputs, trial.expected, strict=True)
    return Ran([as_read(a.reshape(r.shape), spec_of(r).dtype) for a, r in pairs])


def run_guarded(
    bench: Workbench, program: Compiled, inputs: Sequence[HostArray], filling: Filling, guard: int
) -> GuardedRun:
    """Raises DeviceError, DeviceLost and ConnectionLost."""
    backend = bench.backend
    with backend.pool.borrowed() as borrow:

        def take(nbytes: int) -> int:
            buffer = borrow(nbytes + guard)
            backend.write(buffer, bytes([filling.around]) * guard, nbytes)
            return buffer

        buffers: dict[str, list[int]] = {"input": [], "output": [], "scratch": []}
        sizes: dict[str, list[int]] = {
            "input": [s.nbytes for s in program.inputs], "output": [s.nbytes for s in program.outputs],
            "scratch": list(program.scratch),
        }  # fmt: skip
        for spec, value in zip(program.inputs, inputs, strict=True):
            buffers["input"].append(take(spec.nbytes))
            backend.write(buffers["input"][-1], as_bytes(convert(value, spec.dtype)))
        for role in ("output", "scratch"):
            for nbytes in sizes[role]:
                buffers[role].append(take(nbytes))
                backend.write(buffers[role][-1], bytes([filling.poison]) * nbytes)
        backend.submit(backend.record(program, buffers["input"], buffers["output"], buffers["scratch"]))
        sources = dict(enumerate(buffers["output"])) | {o: buffers["input"][i] for o, i in program.forwards}
        ends = [
            (f"{role} {k}", buffer, nbytes)
            for role in buffers for k, (buffer, nbytes) in enumerate(zip(buffers[role], sizes[role], strict=True))
        ]  # fmt: skip
        made = backend.read_many(
            [(sources[k], spec.nbytes, 0) for k, spec in enumerate(program.outputs)]
            + [(buffer, guard, nbytes) for _, buffer, nbytes in ends]
        )
        outputs = tuple(
            np.frombuffer(data, NUMPY[spec.dtype]).reshape(spec.shape)
            for data, spec in zip(made, program.outputs, strict=False)
        )
        pattern = bytes([filling.around]) * guard
        after = made[len(outputs) :]
        return GuardedRun(outputs, tuple(name for (name, _, _), end in zip(ends, after, strict=True) if end != pattern))


def findings_of(held: Sequence[GuardedRun], runs: Sequence[Filling] = RUNS) -> list[Finding]:
    """What the differences between these runs say; `held[k]` is what `runs[k]` gave. Pure."""
    found: list[Finding] = []
    if not held:
        return found
    overwritten = sorted({name for h in held for name in h.overwritten})
    if overwritten:
        found.append(Finding("out-of-bounds write", f"bytes behind the end of {', '.join(overwritten)} were written to"))
    steady = [_bits(h) for h, m in zip(held, runs, strict=False) if m == PLAIN]
    if len(set(steady)) > 1:
        text = (
            f"{len(set(steady))} different results in {len(steady)} runs with the same memory, so what else it depends on is "
            f"unknown"
        )
        return [*found, Finding("race", text)]
    first = held[0]
    poisoned = [(h, m) for h, m in zip(held, runs, strict=False) if m.poison != PLAIN.poison]
    unwritten = sum(_unwritten([(first, PLAIN), *poisoned], k) for k in range(len(first.outputs))) if poisoned else 0
    depends = sum(_differing(first, [h for h, _ in poisoned], k) for k in range(len(first.outputs)))
    total = sum(a.size for a in first.outputs)
    if unwritten:
        found.append(Finding("unwritten output", f"{unwritten} of {total} output elements hold what was in memory before: no "
            f"thread writes them"))
    if depends > unwritten:
        found.append(Finding(
            "uninitialised read", f"{depends - unwritten} of {total} output elements change with what outputs and scratch held "
            f"before the launch"
        ))  # fmt: skip
    moved = [h for h, m in zip(held, runs, strict=False) if m.around != PLAIN.around]
    beyond = sum(_differing(first, moved, k) for k in range(len(first.outputs)))
    if beyond:
        found.append(Finding("out-of-bounds read", f"{beyond} of {total} output elements change with the bytes behind the end "
            f"of the buffers"))
    return found


def _bits(held: GuardedRun) -> bytes:
    return b"".join(a.tobytes() for a in held.outputs)


def _raw(array: HostArray) -> HostArray:
    """Bits of each element, so that NaN equals itself."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def _differing(first: GuardedRun, others: Sequence[GuardedRun], k: int) -> int:
    differs = np.zeros(first.outputs[k].size, bool)
    for other in others:
        differs |= _raw(first.outputs[k]) != _raw(other.outputs[k])
    return int(differs.sum())


def _unwritten(runs: Sequence[tuple[GuardedRun, Filling]], k: int) -> int:
    """Elements that are the poison in every run: a value that is computed cannot be three different ones."""
    same = np.ones(runs[0][0].outputs[k].size, bool)
    for held, filling in runs:
        raw = _raw(held.outputs[k])
        same &= raw == np.frombuffer(bytes([filling.poison]) * raw.dtype.itemsize, raw.dtype)[0]
    return int(same.sum())

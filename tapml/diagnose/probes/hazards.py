"""Hazards that can be read in a kernel's text: what is wrong there on every platform, though many a platform lets it pass.

    for hazard in hazards(kernel): ...         Hazard("uninitialised", "acc[0] is read before anything is written to acc")

A platform may run such a text correctly by luck: it zero-fills memory (WGSL must), or runs a workgroup's threads one after the
other (drivers on a processor do). So a right result elsewhere does not clear a text; the hazard itself, in the texts of two
targets, shows that the schedule brought it.

Three kinds, by reading statements in their order, without following loops back:
- "uninitialised": a private or shared array of the kernel is read before any statement has written to it;
- "no barrier": a shared array is written at one index and read at another (or the other way round), with no barrier in between;
- "early return": a thread may leave before a barrier that the others wait at.

The text is that of TVM's generators (one statement a line), in a language that says what declares an array; others give none. An
array that is handed to a function, or reached through a pointer, is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tapml.backends.on_device import kernels_of
from tapml.diagnose.probes.evidence import Evidence, Finding, FindingKind
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.reference_backends import ANOTHER_TARGET
from tapml.kernels import Kernel
from tapml.languages import LANGUAGES, Language

Kind = Literal["uninitialised", "no barrier", "early return"]

_RETURN = re.compile(r"\breturn\b\s*;")


@dataclass(frozen=True)
class Hazard:
    """`text` is a sentence without a capital."""

    kind: Kind
    text: str


_FINDING: dict[Kind, FindingKind] = {
    "uninitialised": "uninitialised read", "no barrier": "race", "early return": "early return",
}  # fmt: skip


class Text(Probe):
    name = "text"
    question = "Is the text free of hazards: reads before writes, threads that do not wait for each other?"
    right = "The text has no hazard: no read before a write, no missing barrier."
    wrong = "The text has a hazard."
    always = True
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        language = subject.bench.target.language
        if not is_read(language):
            return self.not_run(f"{language} is not searched for hazards", subject.here)
        found = of_program(kernels_of(subject.program))
        subject.findings += [Finding(_FINDING[h.kind], h.text) for h in found]
        return self.gave("wrong" if found else "right", "; ".join(h.text for h in found), subject.here)


class TextElsewhere(Probe):
    """Wrong where the other text has a hazard of the same kind."""

    name = "text elsewhere"
    question = "Is the same schedule's text for another target free of them?"
    right = "The same schedule's text for another target has no such hazard."
    wrong = "The same schedule's text for another target has the same hazard."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        bench = subject.backends.get(ANOTHER_TARGET)
        if isinstance(bench, str):
            return self.not_run(bench)
        schedule = subject.program.schedule
        where = f"{bench.choice}, {schedule}"
        made = bench.prepared(subject.operator, (schedule,))
        if made.compiled is None or not is_read(bench.target.language):
            return self.not_run(made.message or f"{bench.target.language} is not searched for hazards", where)
        kinds = {h.kind for h in of_program(kernels_of(subject.program))}
        found = [h.text for h in of_program(kernels_of(made.compiled)) if h.kind in kinds]
        return self.gave("wrong" if found else "right", "; ".join(found), where)


@dataclass
class _Access:
    """Since the last barrier: the indices at which a shared array was written and read."""

    written: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)


def hazards(kernel: Kernel) -> tuple[Hazard, ...]:
    """Each array and kind once."""
    language = LANGUAGES[kernel.language]
    if not is_read(kernel.language):
        return ()
    lines = [_plain(line) for line in kernel.source.splitlines()]
    private, shared = _declared(lines, language.private_array), _declared(lines, language.shared_array)
    found = [
        *_uninitialised(lines, private | shared), *_no_barrier(lines, shared, language), *_early_return(lines, language),
    ]  # fmt: skip
    return tuple(dict.fromkeys(found))


def is_read(language: str) -> bool:
    """Whether texts of a language are read for hazards."""
    return LANGUAGES[language].private_array is not None


def of_program(kernels: Iterable[Kernel]) -> tuple[Hazard, ...]:
    """Those of all kernels."""
    return tuple(dict.fromkeys(h for kernel in kernels for h in hazards(kernel)))


def _plain(line: str) -> str:
    """Without the casts by which shared memory is reached: `((volatile __local float*)buf)[i]` is `buf[i]`."""
    return re.sub(r"\(\(\w*\s*__local \w+\*\)(\w+)\)\[", r"\1[", line)


def _declared(lines: Iterable[str], pattern: re.Pattern[str] | None) -> frozenset[str]:
    return frozenset(m.group(1) for line in lines if pattern is not None and (m := pattern.match(line)))


def _uninitialised(lines: Iterable[str], arrays: frozenset[str]) -> list[Hazard]:
    found: list[Hazard] = []
    unwritten = set(arrays)
    for line in lines:
        writes, reads = _accesses(line, unwritten)
        for name, index in reads:
            if name in unwritten:
                found.append(Hazard("uninitialised", f"{name}[{index}] is read before anything is written to {name}"))
                unwritten.discard(name)
        unwritten -= {name for name, _ in writes}
        # Vector stores and functions that write through a pointer count as writes.
        unwritten -= {name for name in unwritten if re.search(rf"vstore\d*\(.*\b{name}\b|&\s*{name}\b", line)}
    return found


def _no_barrier(lines: Iterable[str], shared: frozenset[str], language: Language) -> list[Hazard]:
    found: list[Hazard] = []
    since = {name: _Access() for name in shared}
    for line in lines:
        if language.waits(line):
            since = {name: _Access() for name in shared}
            continue
        writes, reads = _accesses(line, shared)
        for name, index in reads:
            if since[name].written - {index}:
                other = sorted(since[name].written - {index})[0]
                found.append(Hazard("no barrier", f"{name} is written at [{other}] and read at [{index}] with no barrier in "
                    f"between"))
                shared = shared - {name}
        for name, index in writes:
            if name in shared and since[name].read - {index}:
                other = sorted(since[name].read - {index})[0]
                found.append(Hazard("no barrier", f"{name} is read at [{other}] and written at [{index}] with no barrier in "
                    f"between"))
                shared = shared - {name}
        for name, index in reads:
            since[name].read.add(index)
        for name, index in writes:
            since[name].written.add(index)
    return found


def _early_return(lines: list[str], language: Language) -> list[Hazard]:
    last = max((k for k, line in enumerate(lines) if language.waits(line)), default=-1)
    for k, line in enumerate(lines[: last + 1]):
        if not _RETURN.search(line):
            continue
        condition = line if "if" in line else next((before for before in reversed(lines[:k]) if "if" in before), "")
        if re.search(language.lane, condition):
            return [Hazard("early return", f"threads leave before a barrier: {condition.strip()}")]
    return []


def _accesses(line: str, arrays: Iterable[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(what a statement writes, what it reads), each as (array, index)."""
    writes: list[tuple[str, str]] = []
    reads: list[tuple[str, str]] = []
    for name in arrays:
        for match in re.finditer(rf"\b{re.escape(name)}\[", line):
            index, end = _bracketed(line, match.end())
            if re.match(r"(\.\w+)?\s*=(?!=)", line[end:]) and not line[: match.start()].strip():
                writes.append((name, index))
            elif not re.match(r"\s*;\s*$", line[end:]) or "=" in line[: match.start()]:
                reads.append((name, index))
    return writes, reads


def _bracketed(line: str, start: int) -> tuple[str, int]:
    """The text from `start` to the bracket that closes, and where it ends."""
    depth = 1
    for k in range(start, len(line)):
        depth += (line[k] == "[") - (line[k] == "]")
        if depth == 0:
            return line[start:k], k + 1
    return line[start:], len(line)

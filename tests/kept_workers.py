"""Compile workers that outlive their compiler, for the tests: loading the compiler takes a worker some six seconds, and almost
every test that compiles makes a `Compiler` of its own.

A worker that is stopped between two jobs is kept, and the next compiler that would start one takes it. One that is stopped in
the middle of a job, or that crashed, or was killed, is gone as always. Workers have no state of their own from job to job: one
compiler gives hundreds of bodies to the same one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest

from tapml.compile import compiler
from tapml.compile.process import COMMAND, Answer, WorkerProcess, resident_bytes

MOST_KEPT = 2
LARGEST_KEPT = 2**30

_kept: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []


class KeptWorker(WorkerProcess):
    """A `WorkerProcess` that takes a kept process in place of starting one, and leaves its own when it is stopped."""

    _busy = False

    def _start(self, memory_limit: int) -> Answer | None:
        kept = _taken() if self._command == COMMAND else None
        if kept is None:
            return super()._start(memory_limit)
        self._close()
        self._buffer = b""
        self._process, self._errors = kept
        return None

    def _job(self, job: dict[str, Any], time_limit: float, memory_limit: int) -> Answer:
        self._busy = True
        answer = super()._job(job, time_limit, memory_limit)
        self._busy = False
        return answer

    def stop(self) -> None:
        process, errors = self._process, self._errors
        fit = process is not None and errors is not None and process.poll() is None and not self._buffer
        if fit and not self._busy and self._command == COMMAND and len(_kept) < MOST_KEPT:
            assert process is not None and errors is not None
            if resident_bytes(process.pid) < LARGEST_KEPT:
                self._stopped, self._process, self._errors = True, None, None
                _kept.append((process, errors))
        super().stop()


def _taken() -> tuple[subprocess.Popen[bytes], IO[bytes]] | None:
    """A kept process that still runs; several threads may ask."""
    while True:
        try:
            process, errors = _kept.pop()
        except IndexError:
            return None
        if process.poll() is None:
            return process, errors
        _end(process, errors)


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    errors.close()


@contextmanager
def kept_workers() -> Iterator[None]:
    """While it lasts, compilers of this process keep their workers; at its end these are ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "WorkerProcess", KeptWorker)
        yield
    while _kept:
        _end(*_kept.pop())

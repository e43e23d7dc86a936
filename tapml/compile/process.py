"""One worker process and the watch over it: time, memory, crashes.

    worker = WorkerProcess(command)
    answer = worker.compile(job, time_limit, memory_limit)      # starts it if need be
    worker.stop()

The time limit counts from when the worker is ready, since loading the compiler takes seconds. Memory is what the process has
resident, read twice a second; the compiler's libraries reserve far more than they touch. After a crash or a limit the process is
gone, and the next call starts a new one.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tapml.compile.result import Outcome
from tapml.kernels import Program
from tapml.verdicts import Stage

COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "tapml.compile.worker")
START_LIMIT = 300.0
_GLANCE = 0.5


@dataclass(frozen=True)
class Answer:
    """What came of one job; one that was to be evaluated gives no program. `stage` is the last one reported, None before the
    first; `seconds` do not count the start."""

    program: Program | None
    status: Outcome
    stage: Stage | None
    message: str
    seconds: float = 0.0


class WorkerProcess:
    """Not thread-safe, but for `stop`, which any thread may call."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._buffer = b""
        self._stopped = False

    def compile(self, job: dict[str, Any], time_limit: float, memory_limit: int) -> Answer:
        """Runs one job. Never raises for what the worker does."""
        if self._process is None or self._process.poll() is not None:
            failure = self._start(memory_limit)
            if failure is not None:
                return failure
        began = time.monotonic()
        return replace(self._job(job, time_limit, memory_limit), seconds=time.monotonic() - began)

    def _job(self, job: dict[str, Any], time_limit: float, memory_limit: int) -> Answer:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job, separators=(",", ":")).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return self._died(None)
        stage: Stage | None = None
        deadline = time.monotonic() + time_limit
        while True:
            message = self._message(deadline, memory_limit)
            if isinstance(message, str):
                return self._killed(stage, f"{message.format(limit=f'{time_limit:g} s')}, in {_where(stage)}")
            if message is None:
                return self._died(stage)
            if "stage" in message:
                stage = message["stage"]
            elif "program" in message:
                return Answer(Program.from_json(message["program"]), "ok", None, "; ".join(message.get("notes", ())))
            elif "evaluated" in message:
                return Answer(None, "ok", None, "")
            else:
                return Answer(None, "error", stage, str(message.get("error")))

    def stop(self) -> None:
        """Ends the process at once. May be called twice."""
        self._stopped = True
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        self._close()

    def _start(self, memory_limit: int) -> Answer | None:
        self._close()
        self._buffer = b""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (root, environment.get("PYTHONPATH")) if p)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        message = self._message(time.monotonic() + START_LIMIT, memory_limit)
        if isinstance(message, dict) and "ready" in message:
            return None
        if isinstance(message, str):
            return self._killed(None, message.format(limit=f"{START_LIMIT:g} s") + ", while it started")
        return self._died(None, "while it started")

    def _message(self, deadline: float, memory_limit: int) -> dict[str, Any] | str | None:
        """The next message; None when the process is gone; a text when it went over a limit and must be killed."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0:
                    return "the compiler did not finish within {limit} and was stopped"
                if selector.select(min(left, _GLANCE)):
                    data = os.read(self._process.stdout.fileno(), 1 << 20)
                    if not data:
                        return None
                    self._buffer += data
                    continue
                resident = resident_bytes(self._process.pid)
                if resident > memory_limit:
                    taken, limit = resident // 2**20, memory_limit // 2**20
                    return f"the compiler took {taken} MiB of memory (limit {limit}) and was stopped"
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _killed(self, stage: Stage | None, message: str) -> Answer:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._close()
        return Answer(None, "crash", stage, message)

    def _died(self, stage: Stage | None, where: str = "") -> Answer:
        assert self._process is not None
        code = self._process.wait()
        how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        last = self._last_words()
        self._close()
        if self._stopped:
            return Answer(None, "crash", stage, "stopped")
        return Answer(None, "crash", stage, f"the compiler {how} {where or 'in ' + _where(stage)}{': ' + last if last else ''}")

    def _last_words(self) -> str:
        """The end of what the process wrote to stderr."""
        if self._errors is None:
            return ""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-3:])[:400]

    def _close(self) -> None:
        process, self._process = self._process, None
        errors, self._errors = self._errors, None
        for stream in (process.stdin, process.stdout) if process is not None else ():
            if stream is not None:
                try:
                    stream.close()
                except OSError as error:
                    assert error.errno is not None  # unsent bytes to a process that is gone
        if errors is not None:
            errors.close()


def _where(stage: Stage | None) -> str:
    return f"stage {stage}" if stage else "no stage yet"


def resident_bytes(pid: int) -> int:
    """Memory that a process has in use, 0 where /proc does not tell (macOS: the time limit alone then guards)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0

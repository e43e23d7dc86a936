"""Compiling operators: a pool of worker processes over the cores, and the kernel cache before it.

    with Compiler(target) as compiler:
        results = compiler.compile(bodies, on_result)       # {signature: Result}

Each signature is compiled once. For each the target's schedules are tried in order until one gives a program; a schedule
that crashes the compiler, or takes too long, costs one worker process and counts as failed. Workers are started only when
something is not in the cache, and live until the compiler is closed. Imports neither tvm nor torch.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from tapml.cache.folder import cache_folder
from tapml.compile.cache import KernelCache
from tapml.compile.exchange import read, write
from tapml.compile.process import COMMAND, WorkerProcess
from tapml.compile.result import Attempt, Result, concluded
from tapml.operators.graph import Body
from tapml.targets.target import Target
from tapml.tensors import HostArray

__all__ = ["Attempt", "Compiler", "Result"]

# Stages before any schedule is looked at: a failure there is the same with the next one.
_BEFORE_SCHEDULES = ("convert", "lower")


class Compiler:
    """For one target. `cache_dir` replaces `$TAPML_CACHE/kernels`; `workers` is the number of processes (default: of cores);
    `time_limit` in seconds and `memory_limit` in bytes are for one attempt; `command` starts a worker."""

    def __init__(
        self,
        target: Target,
        cache_dir: Path | None = None,
        workers: int | None = None,
        time_limit: float = 120.0,
        memory_limit: int = 3 * 2**30,
        command: Sequence[str] = COMMAND,
    ) -> None:
        if not target.schedules:
            raise ValueError(f"target {target.name} has no schedules")
        self.target = target
        self.folder = cache_dir if cache_dir is not None else cache_folder() / "kernels"
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self._workers = max(1, workers if workers is not None else os.cpu_count() or 1)
        self._command = tuple(command)
        self._pool: list[WorkerProcess] = []

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers. May be called twice."""
        pool, self._pool = self._pool, []
        for worker in pool:
            worker.stop()

    def compile(
        self,
        bodies: Mapping[str, Body],
        on_result: Callable[[str, Result], None] | None = None,
        schedules: Sequence[str] | None = None,
        mutation: str | None = None,
    ) -> dict[str, Result]:
        """A result for each signature, cached ones first. `on_result` is called in this thread as each is there. `schedules` are
        tried instead of the target's; `mutation` is a fault to put in (`tapml.compile.mutations`). Never raises for
        a body that does not compile; after an exception (Ctrl-C) the workers are stopped."""
        target = self.target if schedules is None else replace(self.target, schedules=tuple(schedules))
        make = _Order(target, mutation, KernelCache(self.folder, target, mutation))
        results: dict[str, Result] = {}
        tell = on_result or (lambda signature, result: None)
        missing: list[tuple[str, Body]] = []
        for signature, body in bodies.items():
            found = make.cache.get(body)
            if found is None:
                missing.append((signature, body))
            else:
                results[signature] = found
                tell(signature, found)
        try:
            for signature, result in self._compiled(missing, make):
                results[signature] = result
                tell(signature, result)
        except BaseException:
            self.close()
            raise
        return {signature: results[signature] for signature in bodies}

    def evaluate(self, body: Body, inputs: Sequence[HostArray], mutation: str | None = None) -> list[HostArray] | str:
        """What the body gives as it was converted, before it is lowered (`tapml.compile.evaluate`): its outputs, or why it could
        not be run. Says nothing of this compiler's target."""
        if not self._pool:
            self._pool.append(WorkerProcess(self._command))
        with tempfile.TemporaryDirectory(prefix="tapml-") as name:
            folder = Path(name)
            write(folder, "input", inputs)
            job = {"body": body.to_json(), "evaluate": name, "mutation": mutation}
            answer = self._pool[0].compile(job, self.time_limit, self.memory_limit)
            return answer.message if answer.status != "ok" else read(folder, "output", body.output_specs)

    def _compiled(self, missing: list[tuple[str, Body]], make: _Order) -> list[tuple[str, Result]] | _Results:
        if not missing:
            return []
        jobs: queue.SimpleQueue[tuple[str, Body]] = queue.SimpleQueue()
        # The largest first, so that none is left over for one worker at the end.
        for job in sorted(missing, key=lambda j: -len(j[1].nodes)):
            jobs.put(job)
        count = min(self._workers, len(missing))
        while len(self._pool) < count:
            self._pool.append(WorkerProcess(self._command))
        done: queue.SimpleQueue[tuple[str, Result] | BaseException] = queue.SimpleQueue()
        for worker in self._pool[:count]:
            threading.Thread(target=self._serve, args=(worker, make, jobs, done), daemon=True).start()
        return _Results(done, len(missing))

    def _serve(
        self,
        worker: WorkerProcess,
        make: _Order,
        jobs: queue.SimpleQueue[tuple[str, Body]],
        done: queue.SimpleQueue[tuple[str, Result] | BaseException],
    ) -> None:
        """A thread's work: jobs for one worker, until there are none."""
        try:
            while True:
                try:
                    signature, body = jobs.get_nowait()
                except queue.Empty:
                    return
                result = self._compile_one(worker, make, signature, body)
                make.cache.put(body, result)
                done.put((signature, result))
        except BaseException as error:
            done.put(error)

    def _compile_one(self, worker: WorkerProcess, make: _Order, signature: str, body: Body) -> Result:
        attempts: list[Attempt] = []
        for schedule in make.target.schedules:
            job = {"body": body.to_json(), "target": make.target.to_json(), "schedule": schedule, "mutation": make.mutation}
            answer = worker.compile(job, self.time_limit, self.memory_limit)
            attempts.append(Attempt(schedule, answer.status, answer.stage, answer.message, answer.seconds))
            if answer.program is not None:
                return concluded(signature, answer.program, tuple(attempts))
            if answer.status == "error" and answer.stage in _BEFORE_SCHEDULES:
                break
        return concluded(signature, None, tuple(attempts))


@dataclass(frozen=True)
class _Order:
    """What one call of `compile` asks for."""

    target: Target
    mutation: str | None
    cache: KernelCache


class _Results:
    """Iterates over results as they come; raises what a thread raised."""

    def __init__(self, done: queue.SimpleQueue[tuple[str, Result] | BaseException], count: int) -> None:
        self._done, self._left = done, count

    def __iter__(self) -> _Results:
        return self

    def __next__(self) -> tuple[str, Result]:
        if self._left == 0:
            raise StopIteration
        self._left -= 1
        item = self._done.get()
        if isinstance(item, BaseException):
            raise item
        return item

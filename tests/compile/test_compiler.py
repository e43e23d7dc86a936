"""The pool and the cache: crashes, limits, fallbacks, what is kept and what is not. Real workers where it matters."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tapml.compile.compiler import Compiler, Result
from tapml.compile.process import WorkerProcess
from tapml.operators.graph import Body
from tapml.targets.known import TARGETS
from tapml.targets.target import Target
from tapml.tensors import TensorSpec
from tests.compile.bodies import call, run
from tests.compile.test_conversions import floats

FAKE = Path(__file__).parent / "fake_worker.py"
TARGET: Target = replace(TARGETS["opencl"], schedules=("first", "second"))


def body(kind: str, size: int = 4) -> Body:
    return Body(kind, (TensorSpec((size,), "float32"),), ("value",), (), ("i0",))


class Fakes:
    """Compilers whose workers are fakes, and what these were asked."""

    def __init__(self, folder: Path) -> None:
        self.cache, self._log = folder / "cache", folder / "log"

    def compile(self, *bodies: Body, target: Target = TARGET, **settings: float) -> list[Result]:
        command = (sys.executable, str(FAKE), str(self._log))
        with Compiler(target, self.cache, workers=1, command=command, **settings) as compiler:  # type: ignore[arg-type]
            results = compiler.compile({b.signature: b for b in bodies})
        return [results[b.signature] for b in bodies]

    @property
    def asked(self) -> list[str]:
        return self._log.read_text().split("\n")[:-1] if self._log.exists() else []


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


def test_the_first_schedule_that_compiles_is_taken(fakes: Fakes) -> None:
    plain, picky = fakes.compile(body("plain"), body("picky"))
    assert plain.program is not None and plain.program.schedule == "first" and plain.message == ""
    assert picky.program is not None and picky.program.schedule == "second"
    assert picky.status == "ok" and "first failed in schedule: cannot" in picky.message


def test_a_crash_costs_one_worker_and_the_next_schedule_is_tried(fakes: Fakes) -> None:
    (result,) = fakes.compile(body("crash"))
    assert result.status == "ok" and result.program is not None and result.program.schedule == "second"
    assert [a.status for a in result.attempts] == ["crash", "ok"]
    assert "SIGSEGV" in result.attempts[0].message and "something broke" in result.attempts[0].message
    assert result.attempts[0].stage == "schedule"
    assert fakes.asked == ["start", "crash first", "start", "crash second"]


def test_a_compiler_that_hangs_is_stopped(fakes: Fakes) -> None:
    began = time.monotonic()
    (result,) = fakes.compile(body("hang"), time_limit=1.0)
    assert time.monotonic() - began < 20
    assert result.status == "ok" and result.attempts[0].status == "crash"
    assert "did not finish within 1 s" in result.attempts[0].message and result.attempts[0].stage == "schedule"


def test_a_compiler_that_takes_too_much_memory_is_stopped(fakes: Fakes) -> None:
    (result,) = fakes.compile(body("greedy"), memory_limit=300 * 2**20)
    assert result.status == "crash" and result.program is None and "MiB of memory (limit 300)" in result.message


def test_all_schedules_failing_tells_each_reason(fakes: Fakes) -> None:
    (result,) = fakes.compile(body("hopeless"))
    assert (result.status, result.stage, result.program) == ("error", "codegen", None)
    assert "second is not enough" in result.message and "first is not enough" in result.message


def test_what_cannot_be_converted_is_not_tried_again_with_another_schedule(fakes: Fakes) -> None:
    (result,) = fakes.compile(body("unknown"))
    assert (result.status, result.stage) == ("error", "convert") and fakes.asked == ["start", "unknown first"]


def test_results_are_kept_and_workers_not_started_for_them(fakes: Fakes) -> None:
    first = fakes.compile(body("plain"), body("hopeless"))
    asked = fakes.asked
    second = fakes.compile(body("plain"), body("hopeless"))
    assert [r.cached for r in first] == [False, False] and [r.cached for r in second] == [True, True]
    assert [r.program for r in first] == [r.program for r in second] and fakes.asked == asked


def test_a_crash_is_not_kept(fakes: Fakes) -> None:
    fakes.compile(body("crash"))
    (again,) = fakes.compile(body("crash"))
    assert not again.cached


def test_another_target_or_another_body_is_another_entry(fakes: Fakes) -> None:
    fakes.compile(body("plain"))
    assert not fakes.compile(body("plain", 5))[0].cached
    other = replace(TARGET, limits=replace(TARGET.limits, max_storage_buffers=3))
    assert not fakes.compile(body("plain"), target=other)[0].cached


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_entry_is_compiled_again(fakes: Fakes, damage: bytes | None) -> None:
    fakes.compile(body("plain"))
    (entry,) = fakes.cache.rglob("*.json")
    entry.write_bytes(entry.read_bytes()[:-9] if damage is None else damage)
    assert [r.cached for r in fakes.compile(body("plain"))] == [False]
    assert [r.cached for r in fakes.compile(body("plain"))] == [True]


def test_a_folder_that_cannot_be_written_costs_no_result(fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    fakes.cache.write_text("a file where the folder should be")
    assert fakes.compile(body("plain"))[0].status == "ok"
    assert "cannot be" in caplog.text


def test_two_compilers_share_a_cache(fakes: Fakes) -> None:
    done: list[Result] = []
    threads = [threading.Thread(target=lambda: done.extend(fakes.compile(body("plain"), body("picky")))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 6 and all(r.status == "ok" for r in done)


def test_results_are_told_in_the_callers_thread(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    command = (sys.executable, str(FAKE), str(tmp_path / "log"))
    with Compiler(TARGET, tmp_path / "cache", workers=2, command=command) as compiler:
        bodies = {b.signature: b for b in (body("plain", n) for n in range(1, 6))}
        compiler.compile(bodies, lambda signature, result: told.append((signature, threading.get_ident())))
    assert {s for s, _ in told} == set(bodies) and {t for _, t in told} == {threading.get_ident()}


def test_an_exception_in_the_callback_stops_the_workers(tmp_path: Path) -> None:
    command = (sys.executable, str(FAKE), str(tmp_path / "log"))
    compiler = Compiler(TARGET, tmp_path / "cache", workers=1, command=command)

    def interrupt(signature: str, result: Result) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiler.compile({b.signature: b for b in (body("plain"), body("hang"))}, interrupt)
    assert compiler._pool == []


WARM = """
import sys, time
from pathlib import Path
from tapml.compile.compiler import Compiler
from tapml.operators.graph import Body
from tapml.targets.known import TARGETS
from tapml.tensors import TensorSpec
bodies = [Body("relu", (TensorSpec((n,), "float32"),), ("value",), (), ("i0",)) for n in range(1, 41)]
began = time.perf_counter()
with Compiler(TARGETS["opencl"], Path(sys.argv[1]), command=(sys.executable, "-c", "raise SystemExit(1)")) as compiler:
    results = compiler.compile({b.signature: b for b in bodies})
seconds = time.perf_counter() - began
assert all(r.cached for r in results.values()), "not warm"
assert "tvm" not in sys.modules and "torch" not in sys.modules, "imported the compiler"
print(seconds)
"""


def test_a_warm_start_needs_no_compiler(tmp_path: Path) -> None:
    command = (sys.executable, str(FAKE), str(tmp_path / "log"))
    with Compiler(TARGETS["opencl"], tmp_path / "cache", workers=1, command=command) as compiler:
        bodies = [body("relu", n) for n in range(1, 41)]
        compiler.compile({b.signature: b for b in bodies})
    done = subprocess.run([sys.executable, "-c", WARM, str(tmp_path / "cache")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_a_real_worker_compiles_and_ends_with_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapml.compile.compiler.WorkerProcess", WorkerProcess)  # none that the tests keep
    made = call("aten.linear.default", floats(1, 4, 16), floats(8, 16))
    odd = replace(made.body, kind="odd", nodes=(replace(made.body.nodes[0], target="aten.cholesky.default"),))
    with Compiler(TARGETS["opencl"], tmp_path / "cache", workers=1) as compiler:
        results = compiler.compile({b.signature: b for b in (made.body, odd)})
        process = compiler._pool[0]._process
        assert process is not None
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert process.poll() is not None
    assert resident < 600 * 2**20
    good, bad = results[made.body.signature], results[odd.signature]
    assert good.status == "ok" and good.program is not None
    assert abs(run(good.program, made, "opencl")[0] - made.outputs[0]).max() < 1e-5
    assert (bad.status, bad.stage) == ("error", "convert") and "aten.cholesky.default" in bad.message
    assert "Traceback" not in bad.message and len(bad.message) < 600

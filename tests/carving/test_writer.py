"""Writing a run: whole or not at all, whatever goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tapml.carving import layout
from tapml.carving.arrays import pack, unpack
from tapml.carving.writer import RunWriter
from tapml.errors import RunError


def fill(run: RunWriter) -> None:
    for name in layout.TABLES:
        run.lines(name, [])


def finished(path: Path, fresh: bool = False, mark: int = 0) -> None:
    with RunWriter.create(path, fresh) as run:
        fill(run)
        run.arrays("cases/a.safetensors", {"i0": np.full(3, mark)})
        run.finish({"kind": "module", "decoder": None})


def mark_of(path: Path) -> int:
    file = path / "cases/a.safetensors"
    return int(unpack(file.read_bytes(), file)["i0"][0])


def test_arrays_of_every_dtype_come_back(tmp_path: Path) -> None:
    arrays = {
        "f64": np.arange(3.0), "f32": np.ones((2, 3), np.float32), "f16": np.ones((), np.float16),
        "bf16": np.array([1.5, -2.0], ml_dtypes.bfloat16), "i64": np.array([[2**40]]), "i32": np.zeros((0, 4), np.int32),
        "u8": np.array([255], np.uint8), "bool": np.array([True, False]), "strided": np.arange(6).reshape(2, 3).T,
    }  # fmt: skip
    back = unpack(pack(arrays), tmp_path / "x")
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape and (back[name] == array).all()


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = pack({"a": np.arange(100)})
    for broken in (b"", data[:50], data[:-8], b"\xff" * 100):
        with pytest.raises(RunError, match=r"x\.safetensors is damaged"):
            unpack(broken, path)


def test_a_run_appears_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with RunWriter.create(path) as run:
        fill(run)
        assert not path.exists()
        run.finish({"kind": "module", "decoder": None})
    assert (path / "run.json").is_file()
    assert [p.name for p in path.parent.iterdir()] == ["run"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunWriter.create(tmp_path / "run") as run:
        fill(run)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    finished(path, mark=1)
    with pytest.raises(RunError, match="--fresh"):
        RunWriter.create(path)
    with pytest.raises(ZeroDivisionError), RunWriter.create(path, fresh=True):
        raise ZeroDivisionError
    assert mark_of(path) == 1, "a failed carve keeps the old run"
    finished(path, fresh=True, mark=2)
    assert mark_of(path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_other_peoples_folders_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not a run of TapML"):
        RunWriter.create(tmp_path, fresh=True)
    file = tmp_path / "thesis.txt"
    for path in (file, file / "run"):
        with pytest.raises(RunError, match="-o"):
            RunWriter.create(path, fresh=True)
    assert file.read_text() == "years of work"


def test_one_carve_at_a_time(tmp_path: Path) -> None:
    with (
        RunWriter.create(tmp_path / "run"),
        pytest.raises(RunError, match="Another process"),
    ):
        RunWriter.create(tmp_path / "run")
    finished(tmp_path / "run")


KILLED = """
import sys, time
from pathlib import Path
from tapml.carving.writer import RunWriter
with RunWriter.create(Path(sys.argv[1])) as run:
    run.lines("graphs.jsonl", [1, 2])
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_carve_left_is_no_run_and_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not path.exists() and (tmp_path / "run.partial").exists()
    finished(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


# A limit on file size stands in for a full disk: the system refuses the same write with a neighbouring error number.
LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from tapml.carving.writer import RunWriter
from tapml.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with RunWriter.create(Path(sys.argv[1])) as run:
        run.arrays("cases/small.safetensors", {"i0": np.zeros(10)})
        run.arrays("cases/large.safetensors", {"i0": np.zeros(1 << 16)})
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "may not be that large" in done.stdout and "MiB free" in done.stdout
    assert list(tmp_path.iterdir()) == []


FULL = """
mount -t tmpfs -o size=256k tapml "$1" || exit 77
"$2" -c '
import sys
from pathlib import Path
import numpy as np
from tapml.carving.writer import RunWriter
from tapml.errors import RunError
try:
    with RunWriter.create(Path(sys.argv[1]) / "run") as run:
        for k in range(100):
            run.arrays(f"cases/{k}.safetensors", {"i0": np.zeros(1 << 12)})
except RunError as error:
    print(error, [p.name for p in Path(sys.argv[1]).iterdir()])
    sys.exit(error.exit_code)
' "$1"
"""


def test_a_full_disk(tmp_path: Path) -> None:
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", FULL, "sh", str(tmp_path), sys.executable]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare program here, so no small disk can be mounted")
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stdout and done.stdout.rstrip().endswith("[]")

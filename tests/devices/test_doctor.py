"""`tapml doctor` tells the truth: ready only where a kernel ran and was right."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.cli import doctor
from tapml.devices import landlock, seccomp
from tapml.devices.faulty import Fault, FaultyDevice
from tapml.devices.null import NullDevice
from tapml.devices.open import open_here
from tapml.devices.trial import try_device, try_target
from tapml.errors import DeviceLost, TargetError, UnavailableError
from tapml.languages import LANGUAGES
from tapml.languages.plain_c import LANGUAGE as plain_c
from tapml.report.doctor import draw


@pytest.mark.parametrize(("name", "language"), [("opencl", "opencl-c"), ("vulkan", "wgsl"), ("webgpu", "wgsl"), ("cpu", "c")])
def test_a_device_that_computes_is_fine(name: str, language: Any) -> None:
    try:
        device = open_here(name, None)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    assert try_device(device, language) == ""
    device.close()


def test_a_device_that_does_not_compute_is_found_out() -> None:
    assert "numbers are wrong: number 0 is 0.0, not -1997.0" in try_device(NullDevice(), "c")
    real = open_here("cpu", None)
    assert "1000 of 1000 numbers are wrong" in try_device(FaultyDevice(real, [Fault("corrupt", "read")]), "c")
    with pytest.raises(DeviceLost):
        try_device(FaultyDevice(real, [Fault("lose", "run")]), "c")
    real.close()


def test_wrong_numbers_mean_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is broken on purpose, so an honest trial cannot call the target ready."""
    good = try_target("cpu")
    if not good.ready:
        pytest.skip(f"not run: {good.reason}")
    monkeypatch.setitem(LANGUAGES, "c", replace(plain_c, trial=plain_c.trial.replace("+ 1.0f", "+ 1.5f")))
    bad = try_target("cpu")
    assert not bad.ready and bad.info is not None and "numbers are wrong" in bad.reason
    monkeypatch.setitem(LANGUAGES, "c", replace(plain_c, trial=plain_c.trial.replace("2.0f", "nonsense")))
    refused = try_target("cpu")
    assert not refused.ready and "nonsense" in refused.reason


def test_everything_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPML_CACHE", str(tmp_path))
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    outcome = doctor.run(parser.parse_args([]))
    data = json.loads(json.dumps(outcome.data))
    states = {t["target"]: t for t in data["targets"]}
    assert set(states) == {"cpu", "opencl", "vulkan", "webgpu", "cuda", "metal", "rocm", "torch", "ort"}
    assert outcome.code == (0 if any(t["ready"] for t in states.values()) else 3)
    assert not states["cuda"]["ready"] and "cannot run them" in states["cuda"]["reason"]
    assert data["versions"]["python"] == platform.python_version()
    assert data["versions"]["numpy"] == np.__version__
    assert data["cache"]["folder"] == str(tmp_path)
    text = "\n".join(map(str, outcome.view))
    for target in states.values():
        assert target["target"] in text
        assert not target["info"] or target["info"]["driver"] in text
        assert target["reason"] in text
    assert "Versions" in text and platform.python_version() in text
    assert [part["name"] for part in data["confinement"]][:2] == ["files", "network"]


def test_what_does_not_confine_is_not_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    monkeypatch.setattr(seccomp, "why_not", lambda: "no seccomp in this kernel")
    (text,) = draw(doctor.examine(["metal"]))
    assert "files       NOT CONFINED: no Landlock in this kernel" in text
    assert "network     NOT CONFINED: no seccomp in this kernel" in text and "cannot open a socket" not in text


def test_one_target_and_its_exit_code() -> None:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    outcome = doctor.run(parser.parse_args(["--target", "metal"]))
    assert outcome.code == 3 and [t["target"] for t in outcome.data["targets"]] == ["metal"]
    with pytest.raises(TargetError, match="Did you mean metal"):
        doctor.run(parser.parse_args(["--target", "metall"]))


def test_known_bad_versions_are_warned_about() -> None:
    versions = dict.fromkeys(("python", *doctor.PACKAGES))
    assert doctor.warnings_for(versions | {"apache-tvm-ffi": "0.1.14.post0"}, "/usr/bin/cc") == []
    assert "0.1.15.post2" in doctor.warnings_for(versions | {"apache-tvm-ffi": "0.1.15.post2"}, "/usr/bin/cc")[0]
    assert "no C compiler" in doctor.warnings_for(versions, None)[0]
    assert "not installed" in doctor.tvm_state(versions)


def test_reasons_of_several_lines_stay_in_the_block() -> None:
    data = {
        "targets": [{"target": "opencl", "ready": False, "info": None, "reason": "first\nsecond", "seconds": 0.0}],
        "engines": [],
        "versions": {"python": "3", "tapml": None},
        "compilers": {"tvm": "ready", "c": None},
        "cache": {"folder": "here", "files": 0, "bytes": 0, "free_bytes": 0},
        "machine": {"system": "s", "processor": "p", "cores": 1, "memory_bytes": 1},
        "warnings": ["mind the step"],
        "confinement": [{"name": "files", "what": "w", "missing": ""}],
    }
    (text,) = draw(data)
    assert "      first\n      second\n" in text and "tapml   not installed" in text and "! mind the step" in text

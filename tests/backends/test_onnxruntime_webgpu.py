"""ONNX Runtime's provider for WebGPU, on the software Vulkan driver that Chromium brings. The package is the same module as the
usual ONNX Runtime, so it lies in a folder of its own and runs in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeRun

FOLDER = Path(sys.prefix) / "ort-webgpu"
DRIVER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
TARGET = "ort:provider=webgpu"


def typed(*words: str, driver: Path = DRIVER) -> tuple[int, dict[str, Any]]:
    """The exit code of a command, and what it says as JSON."""
    for needed, way in ((FOLDER / "onnxruntime", "`make setup` installs it"), (DRIVER, "Debian's package chromium has it")):
        if not needed.exists():
            pytest.skip(f"not run: {needed} is not here; {way}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path]), "VK_ICD_FILENAMES": str(driver)}
    command = [sys.executable, "-m", "tapml", *words, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_a_model_moves_but_for_what_the_processor_would_compute(make_run: MakeRun) -> None:
    _, result = typed("migrate", str(make_run("llama").path), "--target", TARGET, "--fresh")
    assert "WebGpuExecutionProvider" in result["device"]["driver"]
    verdicts = {v["operator"]: v for v in result["verdicts"]}
    refused = {name: v for name, v in verdicts.items() if v["status"] != "pass"}
    assert len(verdicts) - len(refused) > 50 and set(result["kept_on_source"]) == set(refused)
    for verdict in refused.values():
        assert (verdict["status"], verdict["stage"], verdict["op"] in ("linear", "rms_norm")) == ("error", "backend", False)
        assert "on CPUExecutionProvider" in verdict["reason"]
    assert result["end_to_end"]["within_bound"] and result["end_to_end"]["tokens_match"]


def test_without_a_gpu_nothing_is_computed_on_the_processor_instead(make_run: MakeRun, tmp_path: Path) -> None:
    code, result = typed("test", str(make_run("llama").path), "--target", TARGET, driver=tmp_path / "none.json")
    assert code == 3 and "ort:provider=webgpu is not available" in json.dumps(result)

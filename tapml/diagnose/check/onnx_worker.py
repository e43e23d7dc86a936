"""Runs an ONNX file once: `python -m tapml.diagnose.check.onnx_worker FOLDER`.

FOLDER holds `model.onnx`, `feed.npz` and `job.json`; `outputs.npz` and `answer.json` come to it. What is left of nodes on another
provider than the one that was asked for is an error: ONNX Runtime would compute them on the processor, and say nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    absent = False
    names: list[str] = []
    try:
        import onnxruntime

        provider = _provider(onnxruntime, job["provider"])
        absent = provider is None
        if provider is None:
            here = ", ".join(_short(name) for name in onnxruntime.get_available_providers())
            raise RuntimeError(f"this installation has no provider {job['provider']!r}; it has {here}")
        names = _run(onnxruntime, folder, job, provider)
        error = ""
    except Exception as caught:
        error = str(caught).strip().splitlines()[0] if str(caught).strip() else type(caught).__name__
    (folder / "answer.json").write_text(json.dumps({"error": error, "absent": absent, "names": names}))
    return 0


def _run(onnxruntime: Any, folder: Path, job: dict[str, Any], provider: str) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if job["optimised"] else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", job["data"])
    if job["keep"] is not None:
        options.optimized_model_filepath = job["keep"]
    if provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes(), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"the provider {_short(provider)} took nothing: {', '.join(session.get_providers())} would run it")
    if job["keep"] is not None:
        np.savez(folder / "outputs.npz")
        return []
    with np.load(folder / "feed.npz") as arrays:
        feed = {name: arrays[str(k)] for k, name in enumerate(job["feed"])}
    names: list[str] = []
    made: dict[str, Any] = {}
    for name, array in zip(job["outputs"], session.run(job["outputs"], feed), strict=True):
        if isinstance(array, np.ndarray) and array.dtype != object:
            made[str(len(names))] = array
            names.append(name)
    np.savez(folder / "outputs.npz", **made)
    return names


def _provider(onnxruntime: Any, name: str) -> str | None:
    return next((p for p in onnxruntime.get_available_providers() if _short(p) == name.lower()), None)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


if __name__ == "__main__":
    sys.exit(main())

"""A minimised failure as a folder that runs without TapML, to be sent to the makers of a driver or a compiler.

    path = write_reproducer(Path("reproducer"), "vulkan", minimised, bench.info, note="codegen: …")
    $ python reproducer/run.py            exit code 1: the fault shows, 0: it does not, 2: it cannot be run here

    kernel_0.cl, …          the kernels as they ran (.wgsl, .c, .cu, .metal, .hip), for an engine the file that it reads as well
    launch.json             which kernel over which buffers, in which order; grids, blocks; specs; the bound of each output
    inputs.safetensors      "i0", …, as the device stores them
    expected.safetensors    "o0", …; "m0" marks elements that are excluded from comparison
    run.py                  needs numpy and the platform's binding (or a C compiler) only: a script of `languages/templates/`
    README.md               what is computed, what is expected, what comes out, where

An output that is an input handed on has no kernel, so it is not in `checks`. For CUDA, ROCm and Metal there is no `run.py`: the
folder holds kernels, launches and data, and the README says so.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np

from tapml import languages
from tapml.backends.on_device import with_kernels
from tapml.carving.arrays import pack
from tapml.carving.plain_reference import PlainReference
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.minimise.stage import Minimised
from tapml.kernels import Program
from tapml.languages import LANGUAGES
from tapml.launch_file import launches, packed_name
from tapml.operators.listing import calls
from tapml.tensors import HostArray, convert, dtype_name

TEMPLATES = Path(languages.__file__).parent / "templates"

# How many elements of an array the README shows.
_SHOWN = 16


def write_reproducer(folder: Path, target: str, minimised: Minimised, device: DeviceInfo, note: str = "") -> Path:
    """Writes the folder (made if need be, files in it replaced) and returns it. `target` is what the user called it, `note` a
    line for the README. Raises ValueError when there is no kernel, because compiling is what fails."""
    program = None if minimised.program is None else with_kernels(minimised.program)
    if program is None or not program.kernels:
        raise ValueError(f"{minimised.operator} has no kernel to reproduce the failure with")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, kernel in enumerate(program.kernels):
        language = LANGUAGES[kernel.language]
        files.append(f"kernel_{number}.{language.suffix}")
        (folder / files[-1]).write_text(kernel.source, encoding="utf-8")
        if language.packed is not None:
            (folder / packed_name(files[-1], language)).write_bytes(language.packed(kernel.source))
    given = zip(minimised.inputs, program.inputs, strict=True)
    inputs = {f"i{k}": _readable(convert(a, spec.dtype)) for k, (a, spec) in enumerate(given)}
    (folder / "inputs.safetensors").write_bytes(pack(inputs))
    (folder / "expected.safetensors").write_bytes(pack(_expected(minimised, program)))
    plan = {"target": target, **_plan(minimised, program, device, files)}
    (folder / "launch.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    runner = LANGUAGES[program.kernels[0].language].reproducer
    if runner is not None:
        (folder / "run.py").write_text((TEMPLATES / runner.template).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "README.md").write_text(_readme(target, minimised, program, device, files, note), encoding="utf-8")
    return folder


def _readable(array: HostArray) -> HostArray:
    """numpy alone has no bfloat16: such numbers are kept in float32, in which they are the same."""
    return array.astype(np.float32) if dtype_name(array) == "bfloat16" else array


def _expected(minimised: Minimised, program: Program) -> dict[str, HostArray]:
    arrays: dict[str, HostArray] = {}
    for k, (reference, spec) in enumerate(zip(minimised.references, program.outputs, strict=True)):
        plain = PlainReference.of(reference, spec.dtype)
        arrays[f"o{k}"] = _readable(convert(plain.expected, spec.dtype).reshape(spec.shape))
        if plain.left_out is not None:
            arrays[f"m{k}"] = plain.left_out.reshape(spec.shape)
    return arrays


def _plan(minimised: Minimised, program: Program, device: DeviceInfo, files: list[str]) -> dict[str, object]:
    handed_on = {output for output, _ in program.forwards}
    return {
        "device": device.name,
        "driver": device.driver,
        **launches(program, files),
        # [output, bound, mean of what is expected]: the unit of tapml.carving.tolerance
        "checks": [
            [k, plain.bound, plain.scale]
            for k, (reference, spec) in enumerate(zip(minimised.references, program.outputs, strict=True)) if k not in handed_on
            for plain in [PlainReference.of(reference, spec.dtype)]
        ],
        "schedule": program.schedule,
        "repeats": minimised.runs,
    }  # fmt: skip


def _readme(target: str, minimised: Minimised, program: Program, device: DeviceInfo, files: list[str], note: str) -> str:
    body, found = minimised.body, minimised.comparison
    runner = LANGUAGES[program.kernels[0].language].reproducer
    if found is None:
        happens = f"The platform refuses it: {minimised.message}"
    else:
        happens = (
            f"Output {minimised.wrong}: {found.over} of {found.elements} elements are wrong. The worst, "
            f"{list(found.index or ())}, is `{found.actual!r}` and should be `{found.expected!r}`.\n\n"
            f"Error {found.error:.3g}, allowed {found.bound:.3g}: "
            "|actual - expected| / (|expected| + mean |expected|). What is allowed follows from the error of PyTorch's own "
            f"answer against float64 ({found.source_error:.3g})."
        )
    if minimised.runs > 1:
        happens += f"\n\nIt is intermittent: any of {minimised.runs} runs may show it, and `run.py` makes as many."
    if runner is None:
        how = f"There is no `run.py` for {program.kernels[0].language}; `launch.json` says what to launch over which buffers."
    else:
        ends = "Exit code 1: the fault shows; 0: it does not; 2: the platform is not there."
        how = f"    python run.py\n\nneeds numpy and {runner.needs}. {ends}"
    launches = "\n".join(
        f"| {number + 1} | `{files[s.kernel]}` | `{program.kernels[s.kernel].entry}` | {list(program.kernels[s.kernel].grid)} | "
        f"{list(program.kernels[s.kernel].block)} | {', '.join(f'{a.role} {a.index}' for a in s.arguments)} |"
        for number, s in enumerate(program.steps)
    )
    listing = "\n".join(f"    {line}" for line in [*calls(body), f"outputs: {', '.join(body.outputs)}"])
    inputs = "\n".join(f"- input {k}: {s}{_shown(a)}" for k, (s, a) in enumerate(zip(body.inputs, minimised.inputs, strict=True)))
    outputs = "\n".join(f"- output {k}: {_shown(a).lstrip(', ')}" for k, a in enumerate(minimised.expected))
    return f"""# Wrong result of `{body.kind}` on {target}

{note + chr(10) + chr(10) if note else ""}The smallest failing case of operator `{minimised.operator}`:
{minimised.elements_after} input elements, where the model has {minimised.elements_before}.

## What it computes

{listing}

{inputs}

## Expected

{outputs}

## What happens

{happens}

## How to run it

{how}

| step | file | kernel | workgroups | workgroup size | buffers |
| --- | --- | --- | --- | --- | --- |
{launches}

## Where

- device: {device.name}{" (on the processor)" if device.software else ""}
- driver: {device.driver}
- {_made_by(program, device)}
- {f"{runner.package} {_version(runner.package)}, " if runner and runner.package else ""}numpy {np.__version__},
  PyTorch {_version("torch")} (expected values),
  Python {platform.python_version()}, {platform.system()} {platform.machine()}
"""


def _made_by(program: Program, device: DeviceInfo) -> str:
    language = LANGUAGES[program.kernels[0].language]
    if not language.generated:
        return f"run by {device.driver}, {program.schedule}; the {language.title} text is by TapML {_version('tapml')}"
    return (
        f"kernels generated by Apache TVM {_version('apache-tvm')} through TapML {_version('tapml')}, schedule "
        f"{program.schedule!r}"
    )


def _shown(array: HostArray) -> str:
    """The values, where they are few."""
    if not 0 < array.size <= _SHOWN:
        return f", {array.size} elements"
    return f", `{np.ma.getdata(array).tolist()}`"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(unknown)"

"""The import rule of ARCHITECTURE.md: stages import one way, torch and tvm stay where they belong, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tapml"

# A module may import its own level and those before it.
LEVELS = (
    {
        "errors", "inside", "limits", "manifest", "printable", "private", "strict", "tensors", "user_function", "verdicts",
        "whole_file", "words",
    },
    {"cache", "languages"},
    {"kernels", "launch_file"},
    {"operators"},
    {"runtime"},
    {"source"},
    {"targets"},
    {"carving", "compile", "devices"},
    {"remote"},
    {"backends"},
    {"testing"},
    {"migrate"},
    {"deploy", "diagnose"},
    {"report"},
    {"api"},
    {"cli", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# A folder of diagnosis may import itself and those before it.
WINGS = ("probes", "bisect", "minimise", "invariance", "explain", "health", "check", "faults", "bench")
# What runs on every user's model must not load a fault.
WITHOUT_FAULTS = ("probes", "bisect", "minimise", "invariance", "explain", "health", "check")

# Third-party packages and the only parts of TapML that may import them.
HOMES = {
    "torch": {"source", "operators", "carving"},
    "transformers": {"source"},
    "gguf": {"source"},
    "tvm": {"compile"},
    "tvm_ffi": {"compile"},
    "pyopencl": {"devices"},
    "wgpu": {"devices"},
    "onnxruntime": {"devices", "diagnose"},
    "onnx": {"languages", "devices", "diagnose"},
    "websockets": {"remote"},
    "segno": {"remote"},
    "cryptography": {"remote"},
    "llguidance": {"deploy"},
    "rich": {"report", "cli"},
    "bokeh": {"report"},
    "matplotlib": {"report"},
}

# A platform's binding is imported by its device's file, when it is opened. PyTorch is one, too.
THE_TORCH_DEVICE = PACKAGE / "devices" / "torch_device.py"

# Parts of torch-using stages that a run is read with, so that migrate/ and devices can do without torch.
WITHOUT_TORCH = ("operators/graph.py", "carving/case.py", "carving/tolerance.py", "carving/folder.py", "source/weights.py")

# It names the public functions, and loads what is behind them only when they are used (`test_importing_tapml_is_cheap`).
FRONT_DOOR = PACKAGE / "__init__.py"


# Scripts that are copied into reproducers and run outside of TapML: they are text to the package.
TEMPLATES = PACKAGE / "languages" / "templates"


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if TEMPLATES not in path.parents)


def part_of(path: Path) -> str:
    """The stage that a file belongs to: "carving", "errors", …; "" for tapml/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, inside functions too, except for those of types of third parties."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
        if not (isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("tapml"))
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            assert node.module is not None
            if node.module == "tapml":
                for name in node.names:
                    yield node.lineno, f"tapml.{name.name}"
            else:
                yield node.lineno, node.module


def test_every_part_has_a_level() -> None:
    parts = {part_of(path) for path in sources()} - {""}
    assert parts == set(LEVEL), "a new part of the package needs a level in tests/test_imports.py and in ARCHITECTURE.md"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    if path == FRONT_DOOR:
        return
    part = part_of(path)
    for line, module in imports(path):
        pieces = module.split(".")
        if pieces[0] == "tapml":
            other = pieces[1] if len(pieces) > 1 else ""
            if other in LEVEL:
                assert LEVEL[other] <= LEVEL[part], f"{path}:{line}: {part} imports {module}, which comes after it"
        elif pieces[0] in HOMES and path != THE_TORCH_DEVICE:
            assert part in HOMES[pieces[0]], f"{path}:{line}: {pieces[0]} is imported in {sorted(HOMES[pieces[0]])} only"


def test_diagnosis_is_a_row_of_folders_that_import_one_way() -> None:
    root = PACKAGE / "diagnose"
    assert {path.name for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(WINGS)
    assert [path.name for path in root.glob("*.py")] == ["__init__.py"]
    arrows = set()
    for path in sources():
        if root not in path.parents or path.parent == root:
            continue
        wing = path.relative_to(root).parts[0]
        for line, module in imports(path):
            if module.startswith("tapml.diagnose."):
                other = module.split(".")[2]
                assert WINGS.index(other) <= WINGS.index(wing), f"{path}:{line}: {wing} imports {module}, which comes after it"
                assert other != "faults" or wing not in WITHOUT_FAULTS, f"{path}:{line}: {wing} imports a fault"
                arrows.add((wing, other))
    assert len({(wing, other) for wing, other in arrows if wing != other}) <= 10


def test_folders_form_no_circle() -> None:
    """The front door hands on to what comes after it; everything else imports one way."""
    arrows: dict[str, set[str]] = {}
    for path in sources():
        if path != FRONT_DOOR:
            there = {module.split(".")[1] for _, module in imports(path) if module.startswith("tapml.")}
            arrows.setdefault(part_of(path), set()).update(there - {part_of(path)})
    assert tuple(TopologicalSorter(arrows).static_order())[-1] == "__main__"  # CycleError names a circle


def test_a_device_knows_nothing_of_where_a_model_comes_from() -> None:
    for path in sources():
        if part_of(path) in ("languages", "kernels", "targets", "compile", "devices", "remote"):
            for line, module in imports(path):
                assert not module.startswith("tapml.source"), f"{path}:{line}: {part_of(path)} imports {module}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_reading_a_run_needs_no_torch(name: str) -> None:
    for line, module in imports(PACKAGE / name):
        assert module.split(".")[0] != "torch", f"{name}:{line} imports torch"


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    script = f"{code}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}), file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


def modules_below(*parts: str) -> list[str]:
    """Dotted names of all modules of these parts."""
    found = []
    for path in sources():
        if part_of(path) in parts:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.append(name)
    return found


def test_devices_and_targets_load_neither_torch_nor_tvm() -> None:
    names = modules_below("errors", "tensors", "languages", "kernels", "verdicts", "runtime", "targets", "devices")
    assert len(names) > 15
    assert not {"torch", "tvm", "transformers"} & loaded_after(f"import {', '.join(names)}")


def test_a_model_runs_where_torch_and_tvm_are_not_installed() -> None:
    """Whatever a shipped model needs, `tapml.runtime`, does not even try to import them."""
    refuse = "import sys\nsys.modules.update(torch=None, tvm=None)\n"  # None: importing it is an ImportError
    names = modules_below("runtime")
    assert len(names) > 5
    loaded_after(f"{refuse}import {', '.join(names)}")


def test_a_run_is_read_without_torch() -> None:
    names = [f"tapml.{name.removesuffix('.py').replace('/', '.')}" for name in WITHOUT_TORCH]
    assert not {"torch", "tvm", "transformers"} & loaded_after(f"import {', '.join(names)}")


def test_importing_tapml_is_cheap() -> None:
    assert not {"torch", "tvm", "numpy", "rich", "transformers"} & loaded_after("import tapml; dir(tapml); tapml.__version__")


def test_help_is_cheap() -> None:
    code = "from tapml.cli.main import main\nfor argv in (['--help'], ['carve', '--help'], ['tets']): main(argv)"
    assert not {"torch", "tvm", "numpy", "transformers", "pyopencl", "wgpu"} & loaded_after(code)

"""TapML: carve operator tests out of a working PyTorch model and migrate it, operator by operator, to young platforms.

    run = tapml.carve(model, inputs, out="run")
    result = run.test(target="opencl")
    result = run.migrate(target="vulkan")

    with tapml.Bundle.open("bundle") as bundle:             of tapml build; needs neither PyTorch nor a compiler
        print(bundle.generate("Why is the sky blue?").text)

Everything public is named in `__all__` and told in `tapml.api` and `tapml.deploy.api`. It is loaded when first used, so that
`import tapml` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapml.api import Run, carve
    from tapml.deploy.api import Bundle
    from tapml.errors import TapmlError
    from tapml.migrate.migrate import MigrationResult
    from tapml.migrate.tested import TestResult
    from tapml.verdicts import Verdict

__version__ = "0.1.0"

_HOMES = {
    "carve": "tapml.api",
    "Run": "tapml.api",
    "Bundle": "tapml.deploy.api",
    "TestResult": "tapml.migrate.tested",
    "MigrationResult": "tapml.migrate.migrate",
    "Verdict": "tapml.verdicts",
    "TapmlError": "tapml.errors",
}

__all__ = ["Bundle", "MigrationResult", "Run", "TapmlError", "TestResult", "Verdict", "__version__", "carve"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tapml' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

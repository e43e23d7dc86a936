"""Recording what operators do, choosing which calls to keep, storing them, and judging numbers against them.

The package bears the name of the function that people call, `tapml.carve(model, …)`. So it can be called itself, and hands on to
`tapml.api.carve`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Stage(ModuleType):
    """This package's own type: a module that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from tapml.api import carve

        return carve(*args, **kwargs)


sys.modules[__name__].__class__ = _Stage

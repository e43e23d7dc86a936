"""An engine as a function of the user's: `--backend FILE.py:FUNCTION`.

    def values(inputs: dict[str, numpy.ndarray], wanted: list[str]) -> dict[str, numpy.ndarray]

`inputs` are the model's, by name; `wanted` names the run's operators. It returns arrays under those names, or under any of its
own: values are recognised as those of an ONNX file are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapml.diagnose.check.seen import Seen
from tapml.errors import UsageError
from tapml.operators.graph import Operator
from tapml.tensors import NUMPY, HostArray
from tapml.user_function import user_function


@dataclass(frozen=True)
class Engine:
    text: str
    function: Callable[..., Any]

    @staticmethod
    def load(text: str) -> Engine:
        return Engine(text, user_function("--backend", text)[2])

    def seen(self, feed: Mapping[str, HostArray], operators: tuple[Operator, ...]) -> Seen:
        """Raises UsageError where the function fails, or returns something else than arrays by name."""
        try:
            given = self.function(dict(feed), [operator.name for operator in operators])
        except Exception as error:
            raise UsageError(f"--backend {self.text!r} raised {type(error).__name__}: {error}") from error
        if not isinstance(given, Mapping):
            raise UsageError(f"--backend {self.text!r} returned {type(given).__name__}; it must return a dict of arrays by name.")
        return named({str(name): value for name, value in given.items()}, operators, f"--backend {self.text!r}")


def named(arrays: Mapping[str, Any], operators: tuple[Operator, ...], whose: str) -> Seen:
    """Arrays whose names may be those of operators, or module paths. Raises UsageError for what is not an array of numbers."""
    modules = {operator.name: operator.module for operator in operators}
    values: dict[str, HostArray] = {}
    for name, value in arrays.items():
        try:
            array = np.asarray(value)
        except Exception as error:
            raise UsageError(f"{whose}: {name} is not an array: {error}") from error
        if not any(array.dtype == dtype for dtype in NUMPY.values()):
            raise UsageError(f"{whose}: {name} has the dtype {array.dtype}, which is none of {', '.join(NUMPY)}.")
        values[name] = array
    return Seen(values, {name: modules.get(name) or name.replace("/", ".") for name in values})

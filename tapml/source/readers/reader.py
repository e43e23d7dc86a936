"""One form of MODEL: which texts it means, and how the model is loaded.

A reader gives a `LoadedModel` on the CPU, in the dtype that was asked for, or in its own. What holds for every model (the
device, evaluation mode, example inputs and a tokenizer given by the caller) is `tapml.source.load`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tapml.source.model import LoadedModel


@dataclass(frozen=True)
class Request:
    """What the user asked for: the text, the dtype (None: the model's own) and example inputs that replace the model's own."""

    text: str
    dtype: str | None = None
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Reader:
    """`form` is its name in messages, with an article. `means` says whether a text has this form; the first reader of
    `tapml.source.readers.known` that says so gets it. `read` raises ModelError."""

    form: str
    means: Callable[[str], bool]
    read: Callable[[Request], LoadedModel]

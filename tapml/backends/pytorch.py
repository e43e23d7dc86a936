"""PyTorch as a backend: each operator is a function of Python (`tapml.operators.to_text`) that PyTorch runs, on any of its
devices, compiled or not."""

from __future__ import annotations

from collections.abc import Sequence

from tapml.backends.one_text import NotWritten, OneText
from tapml.errors import ModelError
from tapml.operators.graph import Body
from tapml.operators.to_text import python_text
from tapml.targets.pytorch import PROCESSOR
from tapml.tensors import Layout


class PyTorch(OneText):
    """Implements `tapml.backends.interface.Backend`."""

    keeps_layouts = True

    def _text(self, body: Body, entry: str, lying: Sequence[Layout | None]) -> tuple[str, str]:
        try:
            return python_text(body, entry, self.choice.device or PROCESSOR, self.target.stored, lying), ""
        except ModelError as error:
            raise NotWritten("backend", str(error)) from error

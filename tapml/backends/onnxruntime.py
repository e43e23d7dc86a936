"""ONNX Runtime as a backend: each operator is a model in ONNX, written from its body (`tapml.operators.onnx`)."""

from __future__ import annotations

from collections.abc import Sequence

from tapml.backends.one_text import NotWritten, OneText
from tapml.operators.graph import Body
from tapml.operators.onnx.to_onnx import NoConversion, onnx_text
from tapml.tensors import Layout


class OnnxRuntime(OneText):
    """Implements `tapml.backends.interface.Backend`."""

    def _text(self, body: Body, entry: str, lying: Sequence[Layout | None]) -> tuple[str, str]:
        notes: list[str] = []
        try:
            return onnx_text(body, entry, notes.append), "; ".join(dict.fromkeys(notes))
        except NoConversion as error:
            raise NotWritten("convert", str(error)) from error

"""ONNX Runtime as a backend: each operator is a model in ONNX, written from its body (`tapml.operators.onnx`).

Weights are constants of the model, as in the files that people ship: what the engine packs and folds then is under test too.
"""

from __future__ import annotations

from collections.abc import Sequence

from tapml.backends.one_text import NotWritten, OneText
from tapml.operators.graph import Body
from tapml.operators.onnx.to_onnx import NoConversion, onnx_text
from tapml.targets.onnxruntime import CONSTANT
from tapml.tensors import Layout


class OnnxRuntime(OneText):
    """Implements `tapml.backends.interface.Backend`."""

    def _text(self, body: Body, entry: str, lying: Sequence[Layout | None]) -> tuple[str, str]:
        notes: list[str] = []
        weights = [k for k, role in enumerate(body.roles) if role == "weight" and body.inputs[k].elements]
        constant = weights if self.choice.options.get("weights", CONSTANT) == CONSTANT else ()
        try:
            return onnx_text(body, entry, notes.append, constant), "; ".join(dict.fromkeys(notes))
        except NoConversion as error:
            raise NotWritten("convert", str(error)) from error

"""ONNX Runtime as a backend, for tests of what has nothing to do with its process."""

from __future__ import annotations

from tapml.backends.onnxruntime import OnnxRuntime
from tapml.devices.interface import Device
from tapml.devices.open import open_here


class Here(OnnxRuntime):
    """With its device in this process, without a pipe to a child."""

    def _opened(self) -> Device:
        return open_here(self.choice.name, self.choice.opened_with)

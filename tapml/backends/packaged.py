"""An engine of somebody else's as a backend: each operator is its body (`tapml.languages.body`), which the engine takes whole.

The engine of a package is found by its target's name and runs in a child process; one that is handed in runs in this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tapml.backends.one_text import OneText
from tapml.devices.interface import Device, DeviceInfo
from tapml.devices.packaged_device import EngineDevice
from tapml.errors import UsageError
from tapml.languages.body import LANGUAGE
from tapml.operators.engine import OperatorEngine
from tapml.operators.graph import Body
from tapml.operators.to_json import json_text
from tapml.targets.packaged import target_of, why_no_engine
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import Layout


class Packaged(OneText):
    """Implements `tapml.backends.interface.Backend`. The engine gets bodies without the outputs that are inputs unchanged."""

    def _text(self, body: Body, entry: str, lying: Sequence[Layout | None]) -> tuple[str, str]:
        given = {f"i{k}" for k in range(len(body.inputs))}
        return json_text(replace(body, outputs=tuple(name for name in body.outputs if name not in given))), ""


class HandedIn(Packaged):
    """An engine that is open, in this process. Raises UsageError for what is none."""

    def __init__(self, engine: OperatorEngine) -> None:
        name = type(engine).__name__.lower()
        if why := why_no_engine(engine):
            raise UsageError(f"{type(engine).__name__} is no engine: {why}.")
        self._engine = engine
        self._whole = target_of(engine, name, str(engine.version))
        super().__init__(TargetChoice(name))

    def _opened(self) -> Device:
        return EngineDevice(self._engine, self._whole.name, LANGUAGE.name, str(self._engine.version))

    def _narrowed(self, info: DeviceInfo) -> Target:
        return self._whole

"""The kinds of models, by the name that a run has of them. A new kind is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapml.runtime.decoder import Decoder
from tapml.runtime.module import Module
from tapml.runtime.protocol import ModelProtocol

KINDS: dict[str, Callable[[Any], ModelProtocol]] = {Decoder.kind: Decoder.from_json, Module.kind: Module.from_json}

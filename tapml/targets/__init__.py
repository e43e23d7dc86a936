"""What can be compiled for, one file a target."""

from __future__ import annotations

from tapml.targets.known import TARGETS, WITHOUT_RUNTIME
from tapml.targets.parse import TargetChoice, parse
from tapml.targets.resolve import resolve
from tapml.targets.target import Limits, Target

__all__ = ["TARGETS", "WITHOUT_RUNTIME", "Limits", "Target", "TargetChoice", "parse", "resolve"]

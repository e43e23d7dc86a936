"""What can be compiled for, one file a target."""

from __future__ import annotations

from tapml.targets.known import TARGETS
from tapml.targets.parse import TargetChoice, parse
from tapml.targets.resolve import resolve
from tapml.targets.target import Target

__all__ = ["TARGETS", "Target", "TargetChoice", "parse", "resolve"]

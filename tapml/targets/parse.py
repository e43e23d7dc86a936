"""The text of `--target`, parsed once: `name` or `name:option=value,option=value`.

    parse("vulkan")               TargetChoice("vulkan", {})
    parse("opencl:f16=0,device=1")

Options: `f16=0` computes float16 models in float32, `f16=1` insists on float16; `schedule=NAME` tries only that
schedule; `device=N` or `device=TEXT` picks among several devices of the platform, by index or by a part of the name.
What a choice means on a given device is `tapml.targets.resolve`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tapml.errors import TargetError, nearest
from tapml.targets.known import TARGETS
from tapml.targets.packaged import names, target_named
from tapml.targets.pytorch import DTYPES
from tapml.targets.schedules import SCHEDULES
from tapml.targets.target import Target

OPTIONS = {"f16": "0 or 1", "schedule": ", ".join(SCHEDULES), "device": "an index, or a part of the device's name"}


@dataclass(frozen=True)
class TargetChoice:
    """A target as the user named it. `str()` gives the canonical text, options sorted."""

    name: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def f16(self) -> bool | None:
        """True or False when the user said so, None to follow the device."""
        return None if "f16" not in self.options else self.options["f16"] == "1"

    @property
    def schedule(self) -> str | None:
        return self.options.get("schedule")

    @property
    def device(self) -> str | None:
        """Which of the platform's devices: an index, or a part of its name."""
        return self.options.get("device")

    @property
    def way(self) -> str | None:
        """How an engine that is not TapML makes what it runs: what compiles, or what the engine calls its level."""
        if "optimise" in self.options:
            return self.target.levels[self.options["optimise"]]
        return self.options.get("compile")

    @property
    def dtype(self) -> str | None:
        """The dtype that every floating point number is computed in; None: its own."""
        return self.options.get("dtype")

    @property
    def opened_with(self) -> str | None:
        """What the platform's device is opened with: the options that it takes, between them a plus; None for none of them."""
        return "+".join(self.options.get(key, "") for key in self.target.opens).rstrip("+") or None

    @property
    def target(self) -> Target:
        """What it names, with no option applied."""
        found = target_named(self.name)
        if found is None:
            raise ValueError(f"there is no target {self.name!r}")
        return found

    def __str__(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return f"{self.name}:{options}" if options else self.name


def parse(text: str) -> TargetChoice:
    """Raises TargetError for a target, option or value that does not exist, naming those that do; UnavailableError for the
    target of another package that cannot be used."""
    name, colon, rest = text.strip().partition(":")
    name = name.strip()
    target = target_named(name)
    if target is None:
        raise TargetError(f"There is no target {name!r}. {nearest(name, (*TARGETS, *names()))}")
    takes = OPTIONS if target.takes is None else target.takes
    if rest and not takes:
        raise TargetError(f"Target {text!r}: {name} takes no options.")
    explained = "Options: " + "; ".join(f"{k}= {v}" for k, v in takes.items()) + "."
    options: dict[str, str] = {}
    if colon and not rest.strip():
        raise TargetError(f"Target {text!r} ends in a colon without options. {explained}")
    for item in rest.split(",") if rest else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in takes:
            raise TargetError(f"Target {text!r}: there is no option {key!r}. {nearest(key, takes)} {explained}")
        if not equals or not value:
            raise TargetError(f"Target {text!r}: option {key} has no value; write {key}=VALUE. {explained}")
        if key in options:
            raise TargetError(f"Target {text!r}: option {key} is given twice.")
        if key == "f16" and value not in ("0", "1"):
            raise TargetError(f"Target {text!r}: f16={value!r} is neither 0 nor 1.")
        if key == "schedule" and value not in SCHEDULES:
            raise TargetError(f"Target {text!r}: there is no schedule {value!r}. {nearest(value, SCHEDULES)}")
        if key == "dtype" and value not in DTYPES:
            raise TargetError(f"Target {text!r}: dtype={value!r} is not a floating point dtype. {nearest(value, DTYPES)}")
        if value not in target.values.get(key, (value,)):
            raise TargetError(f"Target {text!r}: there is no {key} {value!r}. {nearest(value, target.values[key])}")
        if "+" in value and len(target.opens) > 1:
            raise TargetError(f"Target {text!r}: the value of {key} has a '+', which stands between options. Leave it out.")
        options[key] = value
    return TargetChoice(name, options)

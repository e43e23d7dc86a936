"""The engines that could execute operators here, for `tapml doctor`: TapML's kernels, PyTorch, ONNX Runtime, those of packages.

An engine has targets: a device, a provider each. One that is ready computed just now; of one that is not here it is said how to
have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tapml.devices.trial import Trial
from tapml.languages import LANGUAGES
from tapml.targets.known import TARGETS
from tapml.targets.packaged import Entry, entries

KERNELS = "kernels"


@dataclass(frozen=True)
class Engine:
    """`name` is its target's, or `KERNELS`. `package` is the one that it is of, `entry_point` how that names it (both "" for what
    is TapML's own). `targets` are those that were tried, with whether they are ready and why not, and those that would need
    something else to be installed; `reason` is why there are none at all."""

    name: str
    package: str
    version: str
    entry_point: str
    targets: tuple[dict[str, Any], ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "targets": list(self.targets), "ready": any(target["ready"] for target in self.targets)}


def engines(trials: Sequence[Trial], everything: bool) -> list[Engine]:
    """What was tried, by engine. With `everything` also what was not: providers and devices that are not here, and packages whose
    entry point is not used."""
    offered = {entry.name: entry for entry in entries()}
    by_engine: dict[str, list[Trial]] = {}
    for trial in trials:
        name = trial.target.partition(":")[0]
        ours = name in TARGETS and LANGUAGES[TARGETS[name].language].generated
        by_engine.setdefault(KERNELS if ours else name, []).append(trial)
    found = [_tried(name, tried, everything, offered.get(name)) for name, tried in by_engine.items()]
    if everything:
        found += [Engine(e.name, e.package, e.version, e.value, (), f"{e.unused}.") for e in offered.values() if e.unused]
    return found


def _tried(name: str, trials: Sequence[Trial], everything: bool, entry: Entry | None) -> Engine:
    targets = [{"target": trial.target, "ready": trial.ready, "reason": trial.reason} for trial in trials]
    info = next((trial.info for trial in trials if trial.info is not None), None)
    version = "" if info is None or name == KERNELS else info.driver
    if name in TARGETS and info is not None and everything:
        option = TARGETS[name].opens[0]
        there = {text for trial in trials if trial.info is not None for text in (trial.target, *trial.info.features)}
        targets += [
            {"target": f"{name}:{option}={value}", "ready": False, "reason": f"not here. {advice}"}
            for value, advice in TARGETS[name].elsewhere.items() if value not in there
        ]
    if entry is None or entry.unused:
        return Engine(name, "", version, "", tuple(targets), "")
    return Engine(name, entry.package, entry.version, entry.value, tuple(targets), "")

"""Engines of other packages as targets: what a package names by an entry point of the group `tapml.backends`.

    [project.entry-points."tapml.backends"]
    my-engine = "my_package.engine:MyEngine"

`--target my-engine:threads=4` then opens `MyEngine`, which is a `tapml.operators.engine.OperatorEngine`. Packages are looked up
only for a name that no target of TapML has, and a package is imported only when its engine is asked for: one that is broken is
told where it is asked for, and concerns nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tapml.errors import UnavailableError, message_of
from tapml.languages import body
from tapml.limits import Limits
from tapml.targets.known import TARGETS
from tapml.targets.target import Target

GROUP = "tapml.backends"
# What an engine was written for; it is counted up when one that was written for the number before would not work any more.
INTERFACE = 1
# The name in `tapml.devices.known` of the device that runs them.
DEVICE = "packaged"

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,40}", re.ASCII)
# Options that mean the same with every target that takes them.
_RESERVED = ("f16", "schedule", "dtype", "compile", "optimise")


@dataclass(frozen=True)
class Entry:
    """One entry point: `name` is the target's, `value` the class ("my_package.engine:MyEngine"). `unused` says why no target
    is made of it although it may be whole; "" for the others."""

    name: str
    value: str
    package: str
    version: str
    unused: str = ""

    def __str__(self) -> str:
        return f"entry point {self.name} = {self.value} of the package {self.package} {self.version}"


def entries() -> tuple[Entry, ...]:
    """All that the packages here offer, by name. Imports none of them."""
    from importlib import metadata

    found: dict[tuple[str, str, str], Entry] = {}
    for point in metadata.entry_points(group=GROUP):
        package, version = ("of no name", "") if point.dist is None else (point.dist.name, point.dist.version)
        # The same package may be found twice: in its own folder, and as it is installed.
        found.setdefault((point.name, point.value, package), Entry(point.name, point.value, package, version))
    return tuple(_judged(entry, found.values()) for _, entry in sorted(found.items()))


def _judged(entry: Entry, all_of_them: Iterable[Entry]) -> Entry:
    others = [other.package for other in all_of_them if other.name == entry.name and other != entry]
    unused = ""
    if entry.name in TARGETS:
        unused = f"TapML has a target {entry.name} of its own, which is the one that is used"
    elif not _NAME.fullmatch(entry.name):
        unused = "a target's name has small letters, digits, '.', '_' and '-' only, and begins with a letter or digit"
    elif others:
        unused = f"the package {', '.join(others)} offers a target of this name, too. Uninstall one of them"
    return Entry(entry.name, entry.value, entry.package, entry.version, unused)


def entry_of(name: str) -> Entry | None:
    """The one that offers this target; None where none does. Raises UnavailableError where two do."""
    offering = [entry for entry in entries() if entry.name == name]
    if offering and offering[0].unused:
        raise UnavailableError(f"Target {name} is not available: {offering[0]}: {offering[0].unused}.")
    return offering[0] if offering else None


def engine_class(entry: Entry) -> Any:
    """The class, as an engine must have it. Imports the package. Raises UnavailableError for what is none, in one line."""
    from importlib import metadata

    try:
        found = metadata.EntryPoint(entry.name, entry.value, GROUP).load()
    except (Exception, SystemExit) as error:
        raise _broken(entry, f"importing it fails with {type(error).__name__}: {message_of(error)}") from error
    if not isinstance(found, type):
        raise _broken(entry, f"it is no class, but {type(found).__name__}")
    if why := why_no_engine(found):
        raise _broken(entry, why)
    return found


def why_no_engine(made: Any) -> str:
    """What is wrong with a class, or an object, that is to be an engine; "" where nothing is."""
    from tapml.tensors import NUMPY

    version = getattr(made, "interface", None)
    options, storage = getattr(made, "options", {}), getattr(made, "storage", {})
    if not callable(getattr(made, "compile", None)):
        return "it has no method compile"
    if version is None:
        return f"it has no interface, the number of what it was written for; this TapML has interface = {INTERFACE}"
    if version != INTERFACE:
        return f"it was written for interface {version!r}, and this TapML has {INTERFACE}"
    for what, table in (("options", options), ("storage", storage)):
        if not isinstance(table, Mapping) or not all(isinstance(text, str) for pair in table.items() for text in pair):
            return f"its {what} are no dictionary of texts"
    if taken := [key for key in options if key in _RESERVED or not _NAME.fullmatch(key)]:
        return f"it has an option {taken[0]!r}, which no engine can have. Give it another name"
    if wrong := [dtype for pair in storage.items() for dtype in pair if dtype not in NUMPY]:
        return f"its storage names {wrong[0]!r}, which is no dtype. Known: {', '.join(NUMPY)}"
    return ""


def _broken(entry: Entry, why: str) -> UnavailableError:
    return UnavailableError(
        f"Target {entry.name} is not available: the {entry} is broken: {why}. Install another version of it."
    )


def target_of(made: Any, name: str, made_by: str) -> Target:
    """Of an engine, or its class, that is whole. `made_by` is what verdicts say of how an operator was made."""
    options = dict(getattr(made, "options", {}))
    return Target(
        name=name, language=body.LANGUAGE.name, device=DEVICE, tvm={}, storage=dict(getattr(made, "storage", {})),
        schedules=(made_by,), limits=Limits(), takes=options, opens=tuple(options),
    )  # fmt: skip


_opened: dict[str, Target] = {}


def target_named(name: str) -> Target | None:
    """The target of this name, TapML's or a package's; None where there is none. Raises UnavailableError for a package's that
    cannot be used."""
    if name in TARGETS:
        return TARGETS[name]
    if name not in _opened and (entry := entry_of(name)) is not None:
        _opened[name] = target_of(engine_class(entry), name, f"{entry.package} {entry.version}")
    return _opened.get(name)


def names() -> tuple[str, ...]:
    """The targets that packages offer, whether they work or not. Imports none of them."""
    return tuple(entry.name for entry in entries() if not entry.unused)

"""Draws what `tapml doctor` found: plain text, one block, so that it can be pasted into a bug report as it is."""

from __future__ import annotations

from typing import Any

from tapml.devices.known import on_processor
from tapml.languages.plain_c import LANGUAGE
from tapml.report.console import amount
from tapml.targets.known import TARGETS
from tapml.words import plural

PLAIN_C = LANGUAGE.name
BYTES = ("max_buffer_bytes", "max_binding_bytes", "max_workgroup_memory_bytes", "memory_bytes")


def draw(data: dict[str, Any]) -> tuple[str, ...]:
    """`data` is what `tapml.cli.doctor.examine` returns."""
    lines = ["Targets (ready: a small kernel ran on it just now, and every number was right)"]
    for target in data["targets"]:
        lines += _target(target)
    shown = {target["target"] for target in data["targets"]}
    lines += ["", "Engines (what executes operators; a package may bring one of its own, see docs/new-backend.md)"]
    for engine in data["engines"]:
        lines += _engine(engine, shown)
    lines += ["", "Versions", *_pairs({k: v or "not installed" for k, v in data["versions"].items()})]
    compilers, cache, machine = data["compilers"], data["cache"], data["machine"]
    lines += ["", "Compilers", *_pairs({"tvm": compilers["tvm"], PLAIN_C: compilers[PLAIN_C] or "none found"})]
    lines += ["", "Machine", *_pairs({
        "system": machine["system"],
        "processor": f"{machine['processor']}, {machine['cores']} cores usable",
        "memory": amount(machine["memory_bytes"]),
        "cache": f"{cache['folder']}: {amount(cache['bytes'])} in {plural(cache['files'], 'file')}, "
        f"{amount(cache['free_bytes'])} free",
    })]
    lines += ["", "Confinement (of the process in which tapml agent runs kernels of others; nothing else is confined)"]
    lines += _pairs({
        measure["name"]: f"NOT CONFINED: {measure['missing']}" if measure["missing"] else measure["what"]
        for measure in data["confinement"]
    })
    if data["warnings"]:
        lines += ["", "Warnings", *(f"  ! {text}" for text in data["warnings"])]
    return ("\n".join(lines),)


def _target(target: dict[str, Any]) -> list[str]:
    name, info = target["target"], target["info"]
    state = "ready" if target["ready"] else "not available" if info is None else "broken"
    lines = [f"  {name:<10} {state}" + (f" ({target['seconds']:.1f} s to open and run)" if info else "")]
    if target["reason"]:
        lines += [f"      {line}" for line in target["reason"].splitlines()]
    if info is None:
        return lines
    kind = "software driver on the processor" if info["software"] else "hardware"
    kind = "processor" if on_processor(info["platform"]) else kind if info["platform"] in TARGETS else "as its engine says"
    lines.append(f"      device    {info['name']} ({kind})")
    lines.append(f"      driver    {info['driver']}")
    limits = ", ".join(f"{_short(k)} {_limit(k, v)}" for k, v in info["limits"].items())
    lines.append(f"      limits    {limits}")
    lines.append(f"      features  {', '.join(info['features']) or 'none'}")
    return lines


def _engine(engine: dict[str, Any], shown: set[str]) -> list[str]:
    """`shown` are targets whose reasons were told already."""
    of = f"package {engine['package']} {engine['version']} ({engine['entry_point']})" if engine["package"] else engine["version"]
    lines = [f"  {engine['name']:<10} {of}".rstrip()]
    if engine["reason"]:
        lines.append(f"      not used: {engine['reason']}")
    width = max((len(target["target"]) for target in engine["targets"]), default=0)
    for target in engine["targets"]:
        state = "ready" if target["ready"] else "not ready, see above" if target["target"] in shown else target["reason"]
        lines.append(f"      {target['target']:<{width}}  {state}")
    return lines


def _short(name: str) -> str:
    return name.removeprefix("max_").removesuffix("_bytes").replace("_", " ")


def _limit(name: str, value: int) -> str:
    return amount(value) if name in BYTES else str(value)


def _pairs(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {key:<{width}}  {value}" for key, value in rows.items()]

"""Draws what `tapml devices` lists: one block a device, with what it is at and what it offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from tapml.report.console import amount
from tapml.report.progress import seconds
from tapml.words import plural

STYLE = {"idle": "green", "busy": "bold cyan", "away": "yellow", "retired": "dim"}
SAID = {"idle": "free", "busy": "busy", "away": "away", "retired": "takes no more work"}
REASON = 100


def draw(devices: Sequence[dict[str, Any]], hub: str) -> tuple[Text | str, ...]:
    """`devices` are the maps of docs/wire.md, `hub` the hub's address without its token."""
    if not devices:
        return (
            f"No device is connected to the hub at {hub}.",
            "Run tapml agent URL on a machine that has one, or open the hub's page in a browser there.",
        )
    parts: list[Text | str] = [f"{plural(len(devices), 'device')} at {hub}"]
    for device in devices:
        parts += ["", _heading(device), *_offers(device["offers"])]
    return tuple(parts)


def _heading(device: dict[str, Any]) -> Text:
    state = device["state"]
    heading = Text.assemble((device["name"], "bold"), "  ", (SAID[state], STYLE[state]))
    if state == "busy":
        heading.append(f" with {device['label'] or 'a client'} on {device['target']}, {seconds(device['seconds'])}")
        if device["doing"]:
            heading.append(f": {device['doing']}")
    if device["launches_per_s"] or device["bytes_per_s"]:
        heading.append(f", {device['launches_per_s']:,.0f} launches/s, {amount(device['bytes_per_s'])}/s")
    if device["waiting"]:
        heading.append(f", {plural(device['waiting'], 'client')} waiting", "yellow")
    heading.append(f"  ({device['kind']}, {device['system']})", "dim")
    if device["note"]:
        heading.append(f"\n  {device['note']}", "yellow")
    return heading


def _offers(offers: dict[str, dict[str, Any]]) -> list[Text]:
    """Those that are ready first, each with its adapter and the limits that decide what runs on it."""
    width = max(map(len, offers), default=0)
    lines = []
    for target, offer in sorted(offers.items(), key=lambda item: (item[1]["state"] != "ready", item[0])):
        info = offer["info"]
        if offer["state"] == "ready" and info is not None:
            text = Text.assemble(("  ✓ ", "green"), f"{target:<{width}}  {_adapter(info)}", (f"  {_limits(info)}", "dim"))
        else:
            said = "still looking" if offer["state"] == "looking" else _first_sentence(offer["reason"]) or offer["state"]
            text = Text.assemble(("  – ", "dim"), (f"{target:<{width}}  {said}", "dim"))
        lines.append(text)
    return lines


def _adapter(info: dict[str, Any]) -> str:
    return f"{info['name']} (a software driver on the processor)" if info["software"] else str(info["name"])


def _limits(info: dict[str, Any]) -> str:
    limits = info["limits"]
    words = []
    if "max_buffer_bytes" in limits:
        words.append(f"buffers of {amount(limits['max_buffer_bytes'])}")
    if "max_workgroup_invocations" in limits:
        words.append(f"{limits['max_workgroup_invocations']} invocations")
    if "max_workgroup_memory_bytes" in limits:
        words.append(f"{amount(limits['max_workgroup_memory_bytes'])} shared")
    words += sorted(set(info["features"]) & {"float16", "subgroups"})
    return ", ".join(words if "float16" in words else [*words, "no float16: computed in float32"])


def _first_sentence(reason: str) -> str:
    sentence = reason.partition(". ")[0]
    return sentence if len(sentence) <= REASON else f"{sentence[: REASON - 1]}…"

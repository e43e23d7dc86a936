"""Every probe, in the order in which they are made: same kernels first (seconds), then other schedules, then other targets, whose
kernels must be compiled. A new probe is one class in a file beside this one, and one line here."""

from __future__ import annotations

from tapml.diagnose.probes.elsewhere import Cpu, OtherDriver, OtherScheduleElsewhere, SameScheduleElsewhere
from tapml.diagnose.probes.guard_bytes import KeepsToItsMemory
from tapml.diagnose.probes.hazards import Text, TextElsewhere
from tapml.diagnose.probes.launches import Grid, Limits
from tapml.diagnose.probes.other_schedules import OtherSchedule
from tapml.diagnose.probes.probe import Probe
from tapml.diagnose.probes.running import AsItIs, Compile, Converted, Load, Uploads
from tapml.diagnose.probes.source import Float64, Graph

PROBES: tuple[Probe, ...] = (
    Compile(),
    Limits(),
    Load(),
    AsItIs(),
    Float64(),
    Graph(),
    Uploads(),
    KeepsToItsMemory(),
    Text(),
    Grid(),
    Cpu(),
    Converted(),
    OtherSchedule(),
    TextElsewhere(),
    SameScheduleElsewhere(),
    OtherScheduleElsewhere(),
    OtherDriver(),
)

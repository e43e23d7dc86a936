"""The names of schedules. What they do is in `tapml.compile.schedules`."""

from __future__ import annotations

# Without tiling and barriers, so that a fault of a schedule is not in them: one thread an element of the result, and one thread
# for all. The first stands in for a schedule that cannot do a piece, on what has threads.
ONE_EACH, ONE_FOR_ALL = FALLBACKS = ("simple", "serial")

# What needs threads that wait for each other, and what suits a driver that emulates a GPU on the processor.
WAITING, ON_PROCESSOR = "dlight", "blocked"

SCHEDULES = (WAITING, ON_PROCESSOR, *FALLBACKS)

"""What a search may spend: seconds, and calls of its predicate.

    budget = Budget(seconds=60.0)
    while budget.take(): ...            counts a call; False once it is spent
    part = budget.part(calls=100)       of the same seconds, so many calls
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Budget:
    """`tell` is told ("minimise", seconds spent, seconds in all) at every call."""

    def __init__(
        self, seconds: float = math.inf, calls: float = math.inf, tell: Callable[[str, int, int], None] | None = None,
        whole: Budget | None = None,
    ) -> None:
        self.seconds = seconds
        self.calls = calls
        self.used = 0
        self._tell = tell
        self._whole = whole
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._started

    @property
    def spent(self) -> bool:
        return self.used >= self.calls or self.elapsed > self.seconds or (self._whole is not None and self._whole.spent)

    def take(self) -> bool:
        """Whether one more call may be made."""
        if self.spent:
            return False
        self.used += 1
        if self._tell is not None:
            self._tell("minimise", int(self.elapsed), max(1, int(self.seconds)))
        return True

    def part(self, calls: int) -> Budget:
        return Budget(calls=calls, whole=self)

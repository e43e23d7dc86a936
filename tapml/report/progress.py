"""Progress on stderr: one calm line at a terminal, almost nothing elsewhere.

    with Progress("carve") as progress:
        progress("export")                     a stage without a count
        progress("record", 3, 40)              3 of 40 done in this stage

Every stage of TapML takes such a callable, `(stage, done, total)`, and knows nothing else about people. At a terminal there is
a bar with rate and time left, and each finished stage leaves a line with its seconds. Where stderr is no terminal (a log, CI),
a line appears only when work has gone on for a while, at most one every `PLAIN_EVERY` seconds. Meanwhile, what devices on other
machines have to say (the logger "tapml.remote": what is waited for, connections that broke) appears as lines of its own.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from tapml.printable import cut, guard

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_EVERY = 10.0
WORTH_A_LINE = 0.1
# A time left is told when a tenth is done or this many seconds have gone; until then nobody knows.
WORTH_SHARE = 0.1
WORTH_SECONDS = 20.0
MEMORY_SECONDS = 30.0


def seconds(value: float) -> str:
    """A duration as people write it: "0.4 s", "41 s", "3 min 05 s"."""
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 119.5:
        return f"{value:.0f} s"
    whole = round(value)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """See the module's docstring. `title` is the verb."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._stage = ""
        self._started = self._said = time.monotonic()
        self._done = self._first = 0
        self._moved = self._started
        self._gained = self._weight = 0.0
        self._total = 0
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._notes = _Notes(self)

    def __enter__(self) -> Progress:
        _REMOTE.addHandler(self._notes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _REMOTE.removeHandler(self._notes)
        self._finish(whole=kind is None)
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """`done` of `total` things of a stage are finished; total 0: nobody knows how many there are."""
        if stage != self._stage:
            self._finish(whole=True)
            self._stage, self._started, self._first, self._done = stage, time.monotonic(), done, done
            if self._terminal:
                self._open()
            self._moved, self._gained, self._weight = self._started, 0.0, 0.0
        self._learn(done)
        self._done, self._total = done, total
        if self._terminal:
            if self._bars is not None and self._task is not None:
                self._bars.update(self._task, completed=done, total=total or None)
        else:
            self._say()

    def note(self, text: str) -> None:
        """A line of its own."""
        line = cut(f"{self._title}: {text}")
        if self._bars is not None:
            self._bars.console.print(line, markup=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def _open(self) -> None:
        from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.text import Text

        from tapml.report.terminal import Terminal

        pace = self._pace

        class Pace(ProgressColumn):
            def render(self, task: object) -> Text:
                return Text(pace(), style="dim")

        if self._bars is None:
            self._bars = Bars(
                SpinnerColumn(style="cyan"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20, complete_style="cyan", finished_style="cyan"),
                Pace(),
                console=Terminal(self._stream),
                transient=True,
                refresh_per_second=6,
            )
            self._bars.start()
            # While it runs, rich takes what others print, and makes styles of the codes in it: it is to find none.
            sys.stdout, sys.stderr = guard(sys.stdout), guard(sys.stderr)
        self._task = self._bars.add_task(f"{self._title}: {self._stage}", total=None)

    def _learn(self, done: int) -> None:
        """Averages the pace so that what is older than `MEMORY_SECONDS` counts little: things of a stage come in easy and hard
        stretches, and the first ones wait for what later ones find ready."""
        now = time.monotonic()
        if done > self._done and now > self._moved:
            spent = now - self._moved
            fade = math.exp(-spent / MEMORY_SECONDS)
            self._gained = self._gained * fade + done - self._done
            self._weight = self._weight * fade + spent
            self._moved = now
        elif done > self._done:
            self._gained += done - self._done

    def _pace(self) -> str:
        """What is known of the speed: "12/40, 3.1/s, 9 s left", or the seconds since the stage began."""
        spent, count = time.monotonic() - self._started, self._done - self._first
        if not self._total:
            return seconds(spent)
        parts = [f"{self._done}/{self._total}"]
        if count > 2 and spent > 0.5 and self._weight > 0:  # the first ones wait for processes to start
            rate = self._gained / self._weight
            parts.append(f"{rate:.1f}/s" if rate < 99.5 else f"{rate:.0f}/s")
            known = spent >= WORTH_SECONDS or (spent >= 2.0 and count >= WORTH_SHARE * (self._total - self._first))
            if self._total > self._done and known and rate > 0:
                parts.append(f"{seconds((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said >= PLAIN_EVERY:
            self._said = now
            print(f"{self._title}: {self._stage} ({self._pace()})", file=self._stream, flush=True)

    def _finish(self, whole: bool) -> None:
        """Closes the stage; at a terminal it leaves its name, count and seconds."""
        if not self._stage:
            return
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
            if whole and (self._total or time.monotonic() - self._started >= WORTH_A_LINE):
                from rich.text import Text

                spent = seconds(time.monotonic() - self._started)
                self._bars.console.print(Text.assemble(("  ✓ ", "green"), f"{self._stage:<28}", (f"{spent:>12}", "dim")))
        self._stage = ""


_REMOTE = logging.getLogger("tapml.remote")


class _Notes(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.note(record.getMessage())

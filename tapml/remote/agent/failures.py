"""Why a request failed, as it is told to the client: an error's kind, its stage and its text.

    failure_of(error).answer(number)         ["error", number, kind, stage, text], as docs/wire.md has it
    raise Failed(Failure("memory", …))       an error that is one already
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tapml.devices.replies import told
from tapml.remote.agent.store import NoRoom

MOST_TEXT = 2**16


@dataclass(frozen=True)
class Failure:
    """Why a request failed, as it is answered. It also stands in for a handle that could not be made."""

    kind: str
    text: str
    stage: str = ""

    def answer(self, number: int) -> list[Any]:
        return ["error", number, self.kind, self.stage, self.text]


CANCELLED = Failure("cancelled", "The request was cancelled.")


class Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def failure_of(error: Exception) -> Failure:
    """An error by its kind, as `tapml.devices.replies` has it."""
    if isinstance(error, Failed):
        return error.failure
    if isinstance(error, MemoryError | NoRoom):
        return Failure("memory", cut(str(error)) or "The device's process has no memory left.")
    kind, stage, text = told(error)
    if kind == "device":
        return Failure(kind, cut(text), stage if stage in ("driver", "launch") else "launch")
    return Failure(kind, cut(text))


def cut(text: str) -> str:
    """Fit to be sent: what UTF-8 holds, and not endless."""
    whole = text.encode(errors="replace").decode()
    return whole if len(whole) <= MOST_TEXT else f"{whole[: MOST_TEXT // 2]}\n…\n{whole[-MOST_TEXT // 3 :]}"

"""The circumstances of a result, which say what it is worth: version, run, time, the injected fault, what was not checked.

    found = Circumstances.of(bench)          after the work is done; goes into the result
    found.to_json()                          keys that the JSON of every verb on a run has

A result with a fault, or in wider arithmetic than the model's, looks like any other unless it says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import tapml
from tapml.targets.storage import changes, not_checked

if TYPE_CHECKING:
    from tapml.migrate.workbench import Workbench


def now() -> str:
    """The time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Circumstances:
    """`run_digest` is that of the run, `inject` the fault as it was asked for (None: none). Of a function that rewrites kernels,
    `kernels_changed` counts those that it changed and `kernels` all that it was shown, each once an operator; None for any other
    fault. `storage` has the model's dtypes that the target computes as others, `not_checked` sentences on them. `date` is ISO
    8601 in UTC."""

    run_digest: str = ""
    inject: str | None = None
    kernels_changed: int | None = None
    kernels: int | None = None
    storage: dict[str, str] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()
    date: str = field(default_factory=now)

    @staticmethod
    def of(bench: Workbench) -> Circumstances:
        """As they are on this bench now."""
        rewrite, dtypes = bench.rewrite, bench.model.dtypes
        changed = None if rewrite is None else rewrite.kernels_changed
        return Circumstances(
            run_digest=bench.folder.digest, inject=None if rewrite is None else rewrite.text,
            kernels_changed=None if changed is None else changed[0], kernels=None if changed is None else changed[1],
            storage=changes(bench.target, dtypes),
            not_checked=not_checked(bench.choice, bench.target, bench.info, dtypes),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "version": tapml.__version__, "date": self.date, "run_digest": self.run_digest, "inject": self.inject,
            "kernels_changed": self.kernels_changed, "kernels_seen": self.kernels, "storage": self.storage,
            "not_checked": list(self.not_checked),
        }

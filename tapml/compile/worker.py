"""The worker process: compiles bodies that come as JSON lines, until its input ends. `python -m tapml.compile.worker`

In: {"body", "target", "schedule", "mutation"} (the last for faults put in on purpose, else null), or {"body", "evaluate",
"mutation"} for a body that is run as it was converted: "evaluate" is the folder with its inputs, to which its outputs go. Out:
{"ready"} once; then for each line in: {"stage"} as each stage begins, and at last {"program", "notes"}, {"evaluated"} or
{"error"}. What the compiler itself prints goes to stderr. The worker ends when its parent is gone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

_NOISE = re.compile(r"^\s*(\[\d\d:\d\d:\d\d\]|File |Traceback|~|\^|\d+: |Stack trace|raise |$)")
_LONGEST = 1500


def main() -> None:
    """Serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    from tapml.compile.build import build
    from tapml.compile.evaluate import evaluate
    from tapml.compile.exchange import read, write
    from tapml.operators.graph import Body
    from tapml.targets.target import Target

    _say(answers, {"ready": os.getpid()})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            body = Body.from_json(job["body"])
            if "evaluate" in job:
                folder = Path(job["evaluate"])
                write(folder, "output", evaluate(body, read(folder, "input", body.inputs), job["mutation"]))
                _say(answers, {"evaluated": True})
                continue
            notes: list[str] = []
            program = build(
                body, Target.from_json(job["target"]), job["schedule"],
                lambda stage: _say(answers, {"stage": stage}), notes.append,
                job.get("mutation"),
            )
            _say(answers, {"program": program.to_json(), "notes": notes})
        except Exception as error:
            _say(answers, {"error": trimmed(error)})


def trimmed(error: BaseException) -> str:
    """The meaningful lines of an error: its type and message without the compiler's own stack, and where in TapML it arose."""
    lines = [line.rstrip() for line in str(error).splitlines()]
    kept = [line for line in lines if not _NOISE.match(line)] or lines[-1:]
    text = "\n".join(kept)[:_LONGEST] or "no message"
    name = type(error).__name__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tapml/" in frame.filename]
    place = f" (in {own[-1].name})" if own and name not in ("ConversionError", "LimitError", "ScheduleFailure") else ""
    return text if name in ("ConversionError", "LimitError", "ScheduleFailure") else f"{name}: {text}{place}"


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message, separators=(",", ":")) + "\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    """Leaves when the parent has died, even while the compiler is busy."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    main()

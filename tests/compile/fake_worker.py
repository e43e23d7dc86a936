"""A worker that behaves as the body's kind says: fast, without the compiler. Speaks the protocol of `tapml.compile.worker`.

    python fake_worker.py LOG          appends a line to LOG at each start and each job
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from tapml.kernels import Program


def main() -> None:
    log = Path(sys.argv[1])

    def say(message: dict[str, object]) -> None:
        print(json.dumps(message), flush=True)

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    note("start")
    say({"ready": os.getpid()})
    for line in sys.stdin:
        job = json.loads(line)
        kind, schedule = job["body"]["kind"], job["schedule"]
        note(f"{kind} {schedule}")
        say({"stage": "convert"})
        if kind == "unknown":
            say({"error": "no conversion of aten.foo.default"})
            continue
        say({"stage": "schedule"})
        if kind == "picky" and schedule == "first":
            say({"error": "cannot"})
            continue
        if kind == "crash" and schedule == "first":
            print("something broke", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang" and schedule == "first":
            time.sleep(100)
        if kind == "greedy":
            hoard = bytearray(400 * 2**20)
            hoard[::4096] = b"x" * len(hoard[::4096])
            time.sleep(100)
        if kind == "hopeless":
            say({"stage": "codegen"})
            say({"error": f"{schedule} is not enough"})
            continue
        say({"program": Program((), (), (), (), (), schedule).to_json(), "notes": []})


if __name__ == "__main__":
    main()

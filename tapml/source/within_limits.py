"""Work on a text of a stranger's making, with an end: so many seconds, so much memory, so long a result.

    text = bounded(lambda: tokenizer.apply_chat_template(…), seconds=10.0)

A chat template is a program. transformers renders it in jinja2's sandbox, where it reaches no file and no code, but it may loop
without end or ask for any amount of memory. So it runs in a fork of this process, which is ended. The fork runs nothing but
`work`, which must use no tensors and start no threads.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SECONDS = 10.0
MEMORY_BYTES = 2**30
MOST_BYTES = 2**23

_DONE, _FAILED = b"\0", b"\1"


class Unbounded(Exception):
    """The work failed, or came to no end within its bounds; says which."""


def bounded(
    work: Callable[[], str], seconds: float = SECONDS, memory: int = MEMORY_BYTES, most: int = MOST_BYTES
) -> str:
    """What `work` returns. Raises Unbounded when it raises anything, takes longer than `seconds`, more than `memory` bytes on
    top of what this process has, or returns more than `most` bytes of UTF-8."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: none of theirs is wanted in the child
        child = os.fork()
    if child == 0:
        _carry_out(work, writing, seconds, memory, most)
    os.close(writing)
    try:
        data = _all_of(reading, time.monotonic() + seconds, most + 1)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if data is None:
        raise Unbounded(f"it did not finish within {seconds:.0f} s")
    if data[:1] not in (_DONE, _FAILED):
        raise Unbounded("its process ended without an answer")
    text = data[1:].decode(errors="replace")
    if data[:1] == _FAILED:
        raise Unbounded(text)
    return text


def _carry_out(work: Callable[[], str], writing: int, seconds: float, memory: int, most: int) -> None:
    """In the child, which ends in here."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        held = _held_bytes()
        if held:
            resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
        try:
            data = work().encode()
            data = _DONE + data if len(data) <= most else _FAILED + f"its result has {len(data):,} bytes".encode()
        except (MemoryError, OverflowError):
            data = _FAILED + f"it asks for more than {memory // 2**20:,} MiB of memory".encode()
        except BaseException as error:
            data = _FAILED + f"{type(error).__name__}: {str(error)[:500]}".encode(errors="replace")
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _all_of(reading: int, until: float, most: int) -> bytes | None:
    """Everything up to the end, at most so many bytes; None when the time was up before."""
    parts: list[bytes] = []
    size = 0
    while size <= most:
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        part = os.read(reading, 2**16)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _held_bytes() -> int:
    """The address space that this process has; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

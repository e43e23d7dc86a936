"""The token of a hub, without a place in the address: by environment, file or prompt, and out of others' sight.

    token_for("127.0.0.1:8765")       what `HubAddress.parse` takes for an address without a token; "" where there is none
    conceal(sys.argv)                 no other process reads a token from this one's command line or environment any more

`TAPML_HUB_TOKEN` holds the token, or the whole address with it; `TAPML_HUB_TOKEN_FILE` names a file that does, which only its
owner may read. Where neither is set and there is a terminal, it is asked for, once for each hub. A command line can be read by
every user of a machine and is remembered by shells; a program that was started with a token there blots it out (on Linux) and
warns.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tapml.errors import UsageError
from tapml.private import TOKEN_VARIABLE, not_private

VARIABLE = TOKEN_VARIABLE
FILE = "TAPML_HUB_TOKEN_FILE"

WARNING = (
    "The token is on the command line, where other users of this machine could read it (ps) and your shell keeps it. Give the "
    f"address without it, and the token by {VARIABLE}, in a file that {FILE} names, or when you are asked."
)

_IN_ADDRESS = re.compile(r"[?&]token=([^&\s#]+)")
_typed: dict[str, str] = {}
_taken: list[str] = []


def token_for(place: str) -> str:
    """`place` is for the question. Raises UsageError for a file that cannot be used."""
    given = _taken[-1] if _taken else os.environ.get(VARIABLE, "")
    if given.strip():
        return _token_in(given)
    name = os.environ.get(FILE, "")
    if name:
        return _token_in(_read(Path(name).expanduser()))
    if place not in _typed and _terminal():
        import getpass

        with contextlib.suppress(EOFError):
            _typed[place] = _token_in(getpass.getpass(f"Token of the hub at {place}: "))
    return _typed.get(place, "")


def conceal(arguments: Sequence[str]) -> bool:
    """Blots tokens out of what other processes can read of this one, and takes the variable out of what children inherit. True if
    a token was on the command line."""
    on_line = [found.group(1) for argument in arguments for found in _IN_ADDRESS.finditer(argument)]
    given = os.environ.get(VARIABLE, "")
    secrets = [*on_line, *([given] if given.strip() else [])]
    if secrets and sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            _blot([os.fsencode(secret) for secret in secrets])
    if given.strip():
        _taken[:] = [given]
    os.environ.pop(VARIABLE, None)
    return bool(on_line)


def guard() -> None:
    """Other processes of this user that have no rights of their own cannot look into this one's memory (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _token_in(text: str) -> str:
    """Of a token, or of an address that holds one."""
    found = _IN_ADDRESS.search(text)
    return (found.group(1) if found else text).strip()


def _read(path: Path) -> str:
    try:
        wrong = not_private(path)
        if wrong:
            raise UsageError(f"The file {path} of {FILE} {wrong}. Fix it with chmod 600 {path}.")
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"The file {path} of {FILE} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The file {path} of {FILE} contains no token: it is not text.") from error
    if not text.strip():
        raise UsageError(f"The file {path} of {FILE} is empty. Put the token there, or the whole address that tapml hub prints.")
    return text


def _terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _blot(secrets: Sequence[bytes]) -> None:
    """In the memory where the system put the command line and the environment when this process began: /proc shows that."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    bounds = [int(field) for field in fields[45:49]]  # arg_start, arg_end, env_start, env_end; see proc(5)
    for start, end in (bounds[:2], bounds[2:]):
        if not 0 < start < end:
            continue
        before = ctypes.string_at(start, end - start)
        after = before
        for secret in secrets:
            after = after.replace(secret, b"*" * len(secret))
        if after != before:
            ctypes.memmove(start, after, len(after))

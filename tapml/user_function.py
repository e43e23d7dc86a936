"""Functions of the user's own that a flag names: `FILE.py:FUNCTION`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tapml.errors import UsageError, nearest


def user_function(flag: str, text: str) -> tuple[Path, str, Callable[..., Any]]:
    """The file, the function's name and the function. The file is run as a program of the user's, like a model's file. Raises
    UsageError when there is no such file or function, or the file fails; `flag` is named in the error."""
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name:
        raise UsageError(f"{flag} {text!r} is not of the form FILE.py:FUNCTION.")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"{flag} {text!r}: there is no file {file}.")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        found = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise UsageError(f"{flag} {text!r}: running {file} failed with {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    function = found.get(name)
    if not callable(function):
        functions = [n for n, value in found.items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{flag} {text!r}: {file} has no function {name!r}. {nearest(name, functions)}")
    return path, name, function

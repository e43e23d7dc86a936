"""Reading JSON that somebody else wrote: every field is what it has to be, or an error says which one is not.

    data = parse(line)                       JSON without NaN, infinities and endless nesting
    name = text(data, "name")                a string, not too long
    step = whole(data, "step", most=1000)    an int, never a bool or a float

The errors are those of `UNREADABLE`; readers of runs and of models' files turn them into a RunError or ModelError with the file
and the line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# What reading damaged or hostile data can raise. RecursionError and OverflowError are what deep nesting and huge numbers end in.
UNREADABLE = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError, ZeroDivisionError, AssertionError,
)  # fmt: skip

LONGEST_TEXT = 1_000_000
LONGEST_NAME = 1000
MOST = 2**53
DEEPEST = 60

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


def parse(data: str | bytes, unique: bool = False) -> Any:
    """Raises ValueError for what is not JSON, for NaN and infinities, for numbers beyond a double, and for endless nesting; with
    `unique` for an object that has a key twice."""
    try:
        pairs = _unique if unique else None
        return json.loads(data, parse_constant=_constant, parse_float=_float, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_small(data: str | bytes) -> Any:
    """The same for data that is handed on as it is: nesting is bounded so that whoever writes it again can."""
    found = parse(data)
    refuse_deep(found)
    return found


def refuse_deep(found: Any) -> None:
    level = [found]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _children(item: Any) -> list[Any]:
    held = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [child for child in held if isinstance(child, dict | list)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _float(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{digits[:40]} is too large for a number")
    return found


def text(data: Any, key: str | int, most: int = LONGEST_TEXT) -> str:
    found = data[key]
    if not isinstance(found, str) or len(found) > most:
        raise ValueError(_not(key, found, "a text" if not isinstance(found, str) else f"a text of at most {most:,} characters"))
    return found


def name(data: Any, key: str | int) -> str:
    """A text that names something: not empty, not endless, no NUL in it."""
    found = text(data, key, LONGEST_NAME)
    if not found or "\0" in found:
        raise ValueError(_not(key, found, "a name"))
    return found


def word(data: Any, key: str | int) -> str:
    """A name that programs can have: letters, digits and underscores."""
    found = text(data, key, LONGEST_NAME)
    if _NAME.fullmatch(found) is None:
        raise ValueError(_not(key, found, "a name of letters, digits and underscores"))
    return found


def hexadecimal(data: Any, key: str | int) -> str:
    """A digest, as it may stand in the name of a file."""
    found = text(data, key)
    if _DIGEST.fullmatch(found) is None:
        raise ValueError(_not(key, found, "a digest"))
    return found


def whole(data: Any, key: str | int, least: int = 0, most: int = MOST) -> int:
    found = data[key]
    if type(found) is not int or not least <= found <= most:
        raise ValueError(_not(key, found, f"an integer from {least:,} to {most:,}"))
    return found


def real(data: Any, key: str | int) -> float:
    """A number, as it stands in the JSON; a result may hold an infinity or NaN."""
    found = data[key]
    if type(found) not in (int, float) or (type(found) is int and abs(found) > MOST):
        raise ValueError(_not(key, found, "a number"))
    return found  # type: ignore[no-any-return]


def distance(data: Any, key: str | int) -> float:
    """A number that is finite and not negative."""
    found = real(data, key)
    if not 0 <= found < math.inf:
        raise ValueError(_not(key, found, "a distance"))
    return found


def yes(data: Any, key: str | int) -> bool:
    found = data[key]
    if type(found) is not bool:
        raise ValueError(_not(key, found, "true or false"))
    return found


def one_of(data: Any, key: str | int, known: tuple[Any, ...]) -> Any:
    found = data[key]
    if not isinstance(found, str) or found not in known:
        raise ValueError(_not(key, found, f"one of {', '.join(map(str, known))}"))
    return found


def maybe(read: Callable[..., T], data: Any, key: str | int, *more: Any) -> T | None:
    """None, or what `read` says."""
    return None if data[key] is None else read(data, key, *more)


def items(data: Any, key: str | int, count: int | None = None) -> list[Any]:
    found = data[key]
    if not isinstance(found, list | tuple) or (count is not None and len(found) != count):
        raise ValueError(_not(key, found, "a list" if count is None else f"a list of {count}"))
    return list(found)


def fixed(data: Any, most: int) -> list[Any]:
    """A list of at most so many."""
    if not isinstance(data, list | tuple) or len(data) > most:
        raise ValueError(f"it is {_shown(data)}, not a list of at most {most}")
    return list(data)


def several(read: Callable[..., T], data: Any, key: str | int, *more: Any) -> tuple[T, ...]:
    """A list, each item read by `read`."""
    found = items(data, key)
    return tuple([read(found, k, *more) for k in range(len(found))])


def fields(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"it is {_shown(data)}, not an object")
    return data


def inner(data: Any, key: str | int) -> dict[str, Any]:
    """A field that is an object itself."""
    found = data[key]
    if not isinstance(found, dict):
        raise ValueError(_not(key, found, "an object"))
    return found


def _not(key: str | int, found: Any, what: str) -> str:
    place = f"{key!r}" if isinstance(key, str) else f"item {key}"
    return f"{place} is {_shown(found)}, not {what}"


def _shown(found: Any) -> str:
    """A few characters of a value, however large or deep it is."""
    if isinstance(found, dict | list):
        return f"{'an object' if isinstance(found, dict) else 'a list'} of {len(found):,}"
    if isinstance(found, int) and found.bit_length() > 200:
        return "a huge integer"
    shown = ascii(found[:60] if isinstance(found, str) else found)
    return shown if len(shown) <= 80 else shown[:80] + "…"

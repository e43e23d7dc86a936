"""What a device could say in place of what it should: packets changed in the ways that a client has to live with.

    tamper = Mutant(random.Random(7))        for `tests.remote.strange`; changes one list of packets, drawn at first
    tamper.how                               what it did

Used by `test_strange_device.py` and `benchmarks/fuzz_replies.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from tapml.remote.wire import LARGEST, MESSAGE_LIMIT
from tests.remote.messages import JUNK, Maker, spoil
from tests.remote.strange import items_of

# Lists of packets that go back in `strange.work`: one for the connection, and one for each time that the client waits.
ROUNDS = 7


class Mutant:
    """See the module's docstring."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._maker = Maker(rng)
        self._round = rng.randrange(ROUNDS)
        self._seen = 0
        self.how = "nothing"

    def __call__(self, messages: list[bytes]) -> Sequence[bytes]:
        self._seen += 1
        if self._seen - 1 != self._round:
            return messages
        way: Callable[[list[bytes]], Sequence[bytes]] = self._rng.choice(_WAYS).__get__(self)
        self.how = way.__name__.strip("_")
        return way(messages)

    def _spoil(self, messages: list[bytes]) -> list[bytes]:
        return [spoil(self._rng, data) for data in messages]

    def _drop(self, messages: list[bytes]) -> list[bytes]:
        return messages[: self._rng.randrange(len(messages))]

    def _double(self, messages: list[bytes]) -> list[bytes]:
        return messages * self._rng.choice((2, 3, 40))

    def _swap(self, messages: list[bytes]) -> list[bytes]:
        return messages[::-1]

    def _values(self, messages: list[bytes]) -> list[bytes]:
        """Another value somewhere in an answer, of any type, size and depth."""
        return self._items(messages, self._value)

    def _value(self, items: list[Any]) -> None:
        item = self._rng.choice(items)
        if item[0] != "ok":
            item[1:] = [self._rng.choice(JUNK)]
        elif type(item[2]) is dict and self._rng.random() < 0.8:
            inside = item[2]
            while type(inside) is dict and inside:
                key = self._rng.choice(list(inside))
                if type(inside[key]) is dict and self._rng.random() < 0.7:
                    inside = inside[key]
                    continue
                how = self._rng.randrange(3)
                if how == 0:
                    del inside[key]
                elif how == 1:
                    inside[self._rng.choice(("", "extra", "x" * 400))] = inside.pop(key)
                else:
                    inside[key] = self._any(inside[key])
                return
        else:
            item[2] = self._any(item[2])

    def _any(self, value: Any) -> Any:
        """Something else, now and then of the same type."""
        rng = self._rng
        if type(value) is bytes and rng.random() < 0.5:
            return rng.choice((b"", value[:-1], value + b"\0", bytes(2**20), bytes(len(value))))
        if type(value) is list and rng.random() < 0.5:
            return rng.choice((value * 2, [None], [b""], [bytes(32)] * 300, [bytes(33)], [[bytes(32)]]))
        if type(value) is int and rng.random() < 0.5:
            return rng.choice((0, 1, -1, LARGEST, LARGEST + 1, 2**63))
        if type(value) is str and rng.random() < 0.5:
            return rng.choice(("", "\x1b]0;x\x07", "\u202e", "x" * 400, "x" * 401, "x" * 200_000))
        return rng.choice((*JUNK, self._maker.plain()))

    def _ids(self, messages: list[bytes]) -> list[bytes]:
        def change(items: list[Any]) -> None:
            item = self._rng.choice(items)
            item[1:2] = [self._rng.choice((0, -1, 1, 2, 3, 10**6, LARGEST, LARGEST + 1, None, "1", 1.0, True))]

        return self._items(messages, change)

    def _errors(self, messages: list[bytes]) -> list[bytes]:
        """An answer becomes an error of any kind, with any text."""
        def change(items: list[Any]) -> None:
            item = self._rng.choice(items)
            kinds = ("device", "memory", "lost", "unavailable", "target", "value", "cancelled", "other", "none", "")
            texts = ("", "no", "Traceback (most recent call last):\n  x\nOdd: no", "\x1b[2J", "x" * 200_000, None)
            number = item[1] if len(item) > 1 else 1
            stage = self._rng.choice(("", "driver", "x"))
            item[:] = ["error", number, self._rng.choice(kinds), stage, self._rng.choice(texts)]

        return self._items(messages, change)

    def _counts(self, messages: list[bytes]) -> list[bytes]:
        """Too few answers, or more than was asked for."""
        def change(items: list[Any]) -> None:
            how = self._rng.randrange(3)
            if how == 0:
                del items[self._rng.randrange(len(items)) :]
            elif how == 1:
                items += items
            else:
                items += [["ok", self._rng.randrange(1, 2**31), None] for _ in range(self._rng.choice((1, 8000, 9000)))]

        return self._items(messages, change)

    def _numbers(self, messages: list[bytes]) -> list[bytes]:
        """Other packet numbers, acknowledgements and sessions."""
        body = items_of(messages[-1])
        place = self._rng.randrange(3)
        body[place] = self._rng.choice((0, 1, 2, 5, 10**6, LARGEST, bytes(16), b"", None))
        return [*messages[:-1], _packed(body)]

    def _requests(self, messages: list[bytes]) -> list[bytes]:
        """What only a client may say, or other things about the channel."""
        body = items_of(messages[-1])
        made = items_of(self._maker.packet())
        body[3] = self._rng.choice((made[3], body[3] + made[3]))
        body[1] = self._rng.choice((body[1], made[1], 0))
        return [*messages[:-1], _packed(body)]

    def _flood(self, messages: list[bytes]) -> list[bytes]:
        """The same again and again, before what was asked for: bare, doubled, out of order, of another session, large."""
        session, seq, ack, _ = items_of(messages[-1])
        what: Any = self._rng.choice((
            [session, 0, ack, []], [session, 0, ack, [["resumed"]]], [session, 0, ack, [["resend"]]],
            [session, seq + 9, ack, [["ok", 1, None]]], [bytes(16), 0, 0, []], [session, 1, ack, [["ok", 1, bytes(2**19)]]],
            [session, 0, 0, [["lost", "x" * 250_000]]],
        ))  # fmt: skip
        data = _packed(what)
        return [data] * self._rng.choice((3, 50, 2000 if len(data) < 1000 else 50)) + messages

    def _items(self, messages: list[bytes], change: Callable[[list[Any]], None]) -> list[bytes]:
        body = items_of(messages[-1])
        if body[3]:
            change(body[3])
        return [*messages[:-1], _packed(body)]


def _packed(body: list[Any]) -> bytes:
    """As it is, whatever it is; nothing where MessagePack itself, or the hub, would not carry it."""
    try:
        data: bytes = b"\1" + msgpack.packb(body)
    except (ValueError, OverflowError, TypeError):
        return b""
    return data if len(data) <= MESSAGE_LIMIT else b""


_WAYS = (
    Mutant._spoil, Mutant._spoil, Mutant._drop, Mutant._double, Mutant._swap, Mutant._values, Mutant._values, Mutant._values,
    Mutant._values, Mutant._ids, Mutant._errors, Mutant._errors, Mutant._counts, Mutant._numbers, Mutant._requests, Mutant._flood,
)  # fmt: skip

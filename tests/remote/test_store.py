"""What a device remembers by digest: only what is right, within its budget, and for the whole of a session."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapml.remote.agent import store as stores
from tapml.remote.agent.store import NoRoom, Shelf, Store


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def put_in(shelf: Shelf, data: bytes, piece: int = 2**20) -> bytes:
    digest = digest_of(data)
    for offset in range(0, max(1, len(data)), piece):
        shelf.keep(digest, len(data), offset, data[offset : offset + piece])
    return digest


def test_what_was_kept_comes_back_in_this_session_and_the_next() -> None:
    store = Store(1000)
    shelf = store.begin()
    assert (shelf.listed, shelf.room) == ((), 1000)
    digest = put_in(shelf, b"weights")
    assert b"".join(shelf.pieces(digest)) == b"weights"
    assert (shelf.room, store.used) == (993, 7)
    shelf.end()
    again = store.begin()
    assert (again.listed, again.room) == ((digest,), 993)
    assert b"".join(again.pieces(digest)) == b"weights"


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=8))
def test_pieces_of_any_size_make_the_whole(data: bytes, cuts: list[int]) -> None:
    store = Store(300)
    shelf = store.begin()
    ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
    start = 0
    for end in ends:
        shelf.keep(digest_of(data), len(data), start, data[start:end])
        start = end
    assert b"".join(shelf.pieces(digest_of(data))) == data
    assert store.used == len(data)


def test_a_thing_sent_byte_by_byte_costs_about_its_size() -> None:
    shelf = Store(2**20).begin()
    digest = put_in(shelf, bytes(20_000), piece=1)
    assert len(shelf.pieces(digest)) == 1


def test_another_digest_is_refused_and_leaves_nothing() -> None:
    store = Store(100)
    shelf = store.begin()
    with pytest.raises(ValueError, match="another digest"):
        shelf.keep(digest_of(b"other"), 5, 0, b"thing")
    with pytest.raises(ValueError, match="nothing is stored"):
        shelf.pieces(digest_of(b"other"))
    assert (store.used, shelf.room) == (0, 100)


@pytest.mark.parametrize("second", [(8, 3, b"d"), (8, 5, b"e"), (7, 4, b"efg"), (8, 4, b"efghi")])
def test_pieces_out_of_order_are_refused(second: tuple[int, int, bytes]) -> None:
    shelf = Store(100).begin()
    digest = digest_of(b"abcdefgh")
    shelf.keep(digest, 8, 0, b"abcd")
    with pytest.raises(ValueError):
        shelf.keep(digest, *second)
    with pytest.raises(ValueError, match="does not follow"):
        shelf.keep(digest, 8, 4, b"efgh")
    assert b"".join(shelf.pieces(put_in(shelf, b"abcdefgh"))) == b"abcdefgh"


def test_one_thing_at_a_time() -> None:
    shelf = Store(100).begin()
    shelf.keep(digest_of(b"first"), 5, 0, b"fir")
    put_in(shelf, b"second")
    with pytest.raises(ValueError, match="does not follow"):
        shelf.keep(digest_of(b"first"), 5, 3, b"st")


def test_room_is_the_budget_and_a_claim_allocates_nothing() -> None:
    shelf = Store(10).begin()
    put_in(shelf, b"123456")
    for total in (5, 2**53 - 1):
        with pytest.raises(NoRoom, match="room for 4"):
            shelf.keep(digest_of(b"x"), total, 0, b"x")
    put_in(shelf, b"abcd")
    assert shelf.room == 0
    put_in(shelf, b"abcd")  # it is there: no room is needed


def test_the_number_of_things_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST_THINGS", 2)
    shelf = Store(100).begin()
    put_in(shelf, b"a")
    put_in(shelf, b"b")
    with pytest.raises(NoRoom, match="accepts no more"):
        put_in(shelf, b"c")


def test_what_was_not_used_for_longest_is_forgotten_first_and_between_sessions_only() -> None:
    store = Store(100)
    shelf = store.begin()
    old, middle, new = (put_in(shelf, bytes([n]) * 25) for n in range(3))
    shelf.end()
    shelf = store.begin()
    assert shelf.listed == (old, middle, new)  # all of it was used by the session that ended
    shelf.pieces(old)
    put_in(shelf, b"x" * 10)
    assert b"".join(shelf.pieces(middle)) == bytes([1]) * 25  # still there: only the end of a session forgets
    shelf.end()
    shelf = store.begin()
    assert set(shelf.listed) == {old, middle, digest_of(b"x" * 10)}
    assert shelf.room == 40
    shelf.end()
    assert store.used <= 50


def test_a_session_finds_some_room_though_the_one_before_used_all_there_is() -> None:
    """For kernels, which come by way of the store only: of a model that is larger than the store, weights go."""
    store = Store(100)
    for _ in range(4):
        shelf = store.begin()
        assert shelf.room >= 25
        for number in range(20):
            with suppress(NoRoom):
                put_in(shelf, bytes([number]) * 10)
        assert shelf.room < 10
        shelf.end()


def test_using_a_thing_makes_it_young_again() -> None:
    store = Store(200)
    shelf = store.begin()
    old, *_ = [put_in(shelf, bytes([n]) * 30) for n in range(3)]
    shelf = store.begin()
    shelf.pieces(old)
    shelf = store.begin()
    young = put_in(shelf, bytes(60))
    assert store.begin().listed == (old, young)


def test_no_more_things_stay_than_can_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LISTED", 4)
    store = Store(1000)
    shelf = store.begin()
    digests = [put_in(shelf, bytes([n])) for n in range(7)]
    shelf.end()
    assert set(store.begin().listed) == set(digests[3:])


def test_a_session_that_ended_cannot_touch_the_next_ones_store() -> None:
    store = Store(100)
    first = store.begin()
    first.keep(digest_of(b"abcd"), 4, 0, b"ab")
    second = store.begin()
    for call in (lambda: first.keep(digest_of(b"abcd"), 4, 2, b"cd"), lambda: first.pieces(digest_of(b"abcd"))):
        with pytest.raises(ValueError, match="has ended"):
            call()
    first.end()
    put_in(second, b"abcd")

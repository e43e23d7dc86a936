"""Which calls are kept: each slot holds what its name says, writes stay few, and everything is counted."""

from __future__ import annotations

import math

import pytest
import torch

from tapml.carving.select import HYSTERESIS, LAST, LATE, MAGNITUDE, NONFINITE, RANGE, Moment, Selection, extent
from tapml.errors import UsageError
from tapml.operators.graph import Body, Node, Operator
from tapml.tensors import HostArray, TensorSpec

SPEC = TensorSpec((4,), "float32")
PRODUCT = Node("n0", "aten.mul.Tensor", ({"ref": "i0"}, {"ref": "i1"}), {}, (SPEC,))
BODY = Body("multiply", (SPEC, SPEC), ("value", "weight"), (PRODUCT,), ("n0",))
WEIGHT = torch.ones(4)


def operators(count: int) -> list[Operator]:
    return [
        Operator(f"layers.{k}.mul", "decode", "multiply", BODY.signature, (f"x{k}", f"w{k}"), (f"y{k}",), (f"m{k}",), "")
        for k in range(count)
    ]


class Disk:
    """Holds what a selection writes, as a run folder would."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, HostArray]] = {}
        self.writes = 0

    def write(self, name: str, arrays: dict[str, HostArray]) -> int:
        self.files[name] = {k: a.copy() for k, a in arrays.items()}
        self.writes += 1
        return sum(a.nbytes for a in arrays.values())

    def remove(self, name: str) -> None:
        del self.files[name]


def selection(disk: Disk, layers: int = 3, limit: int = 6) -> tuple[Selection, list[Operator]]:
    ops = operators(layers)
    return Selection(ops, {BODY.signature: BODY}, limit, disk.write, disk.remove), ops


def offer(chosen: Selection, operator: Operator, values: list[float], moment: Moment, output: list[float] | None = None) -> None:
    x = torch.tensor(values)
    chosen.offer(operator, (x, WEIGHT), (x if output is None else torch.tensor(output),), moment)


def holder(chosen: Selection, slot: str) -> tuple[str, int, int]:
    kept = chosen.tallies[BODY.signature].slots[slot]
    return kept.operator, kept.moment.prompt, kept.moment.step


def test_each_slot_holds_what_it_says() -> None:
    disk = Disk()
    chosen, ops = selection(disk)
    for prompt in range(2):
        for step in range(6):
            moment = Moment(prompt, step, position=10 + step, checkpoint=step in (1, 2, 4, 5), last_prompt=prompt == 1)
            for layer, operator in enumerate(ops):
                values = [1.0, 2.0, 0.5, -1.0]
                output = [0.0, 1.0, 0.0, 1.0]
                if (prompt, step, layer) == (0, 3, 1):
                    values[0] = -50.0
                if (prompt, step, layer) == (1, 2, 1):
                    output = [-20.0, 20.0, 0.0, 0.0]
                if (prompt, step, layer) == (1, 4, 2):
                    values[2] = math.nan
                offer(chosen, operator, values, moment, output)
    assert holder(chosen, "first layer") == ("layers.0.mul", 0, 0)
    assert holder(chosen, LATE) == ("layers.0.mul", 0, 5)
    assert holder(chosen, MAGNITUDE) == ("layers.1.mul", 0, 3)
    assert holder(chosen, RANGE) == ("layers.1.mul", 1, 2)
    assert holder(chosen, NONFINITE) == ("layers.2.mul", 1, 4)
    assert holder(chosen, LAST) == ("layers.2.mul", 1, 0)
    tally = chosen.tallies[BODY.signature]
    assert tally.seen == 36 and len(tally.kept) == 6 and tally.dropped == 30
    assert tally.naive_bytes == 36 * 2 * 16, "inputs without weights, and outputs"
    assert len(disk.files) == 6 and all(set(arrays) == {"i0", "o0"} for arrays in disk.files.values())
    assert disk.files[tally.slots[MAGNITUDE].file]["i0"][0] == -50.0


def test_an_int64_beyond_32_bits_is_worth_a_slot() -> None:
    """Its input and its range are no more extreme than those of the call before."""
    assert extent(torch.tensor([2**31 - 1, -(2**31)])) == (-(2.0**31), 2.0**31 - 1, True)
    assert not extent(torch.tensor([2**31]))[2] and not extent(torch.tensor([-(2**31) - 1]))[2]
    assert extent(torch.tensor([2.0**31]))[2]


def test_the_limit_takes_the_first_slots_and_is_never_exceeded() -> None:
    for limit in (1, 2, 3, 9):
        disk = Disk()
        chosen, ops = selection(disk, limit=limit)
        generator = torch.Generator().manual_seed(0)
        for step in range(64):
            for operator in ops:
                values = torch.randn(4, generator=generator).tolist()
                offer(chosen, operator, values, Moment(0, step, step, step & (step - 1) == 0, True))
                assert len(disk.files) <= limit
        kept = chosen.tallies[BODY.signature].kept
        assert {k.file for k in kept} == set(disk.files), "what is displaced is gone, what is kept is there"
        assert len(kept) == min(limit, 8), "no call is non-finite, so its slot stays empty"


def test_a_call_that_wins_several_slots_is_stored_once() -> None:
    disk = Disk()
    chosen, ops = selection(disk, layers=1)
    offer(chosen, ops[0], [1.0, 2.0, 3.0, 4.0], Moment(0, 0, last_prompt=True))
    tally = chosen.tallies[BODY.signature]
    assert disk.writes == 1 and tally.kept[0].reasons == {"first layer", LAST, MAGNITUDE, RANGE}


def test_slightly_more_extreme_is_not_worth_a_write() -> None:
    disk = Disk()
    chosen, ops = selection(disk, layers=1)
    for step in range(100):
        offer(chosen, ops[0], [1.0 + step * (HYSTERESIS - 1.0) / 101, 0.0, 0.0, 0.0], Moment(0, step), [0.0] * 4)
    assert disk.writes == 1


def test_writes_grow_with_the_logarithm_of_the_calls() -> None:
    disk = Disk()
    chosen, ops = selection(disk, layers=30)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        for operator in ops:
            x = torch.randn(4, generator=generator)
            chosen.offer(operator, (x, WEIGHT), (x,), Moment(0, step, step, step & (step - 1) == 0, True))
    assert disk.writes < 60, f"{disk.writes} writes for 6000 calls"


def test_prefill_of_a_second_prompt_is_not_late() -> None:
    disk = Disk()
    chosen, ops = selection(disk, layers=1)
    for prompt in range(3):
        offer(chosen, ops[0], [1.0] * 4, Moment(prompt, 0, position=0, checkpoint=True))
    assert LATE not in chosen.tallies[BODY.signature].slots


def test_masks_do_not_count_as_magnitude() -> None:
    lowest = torch.finfo(torch.float32).min
    assert extent(torch.tensor([lowest, 0.0, 3.0])) == (0.0, 3.0, True)
    assert extent(torch.tensor([-math.inf, -2.0, 3.0])) == (-2.0, 3.0, False)
    assert extent(torch.tensor([math.nan, -2.0])) == (-2.0, -2.0, False)
    assert extent(torch.tensor([math.nan])) == (0.0, 0.0, False)
    assert extent(torch.tensor([True])) == (0.0, 0.0, True)
    assert extent(torch.tensor([3, -7])) == (-7.0, 3.0, True)
    assert extent(torch.zeros(0)) == (0.0, 0.0, True)
    assert extent(torch.tensor([1.0, -3.0], dtype=torch.bfloat16)) == (-3.0, 1.0, True)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--cases 0"):
        selection(Disk(), limit=0)

"""Choosing tokens: against examples worked out by hand, transformers' own processors, and a Philox written from the paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tapml.deploy.sampling import Sampler, Sampling, drawn, uniform
from tapml.errors import UsageError, WrongValue
from tapml.tensors import HostArray

# Logits whose probabilities are 0.5, 0.25, 0.125, 0.0625, 0.0625 in another order of ids.
HALVES = np.log(np.array([0.0625, 0.25, 0.5, 0.0625, 0.125])).astype(np.float32)


def kept(row: HostArray, prompt: tuple[int, ...] = (), **settings: Any) -> dict[int, float]:
    tokens, probabilities = Sampler(Sampling(**{"temperature": 1.0} | settings), len(row), prompt).distribution(row)
    assert probabilities.sum() == pytest.approx(1)
    return {int(token): float(p) for token, p in zip(tokens, probabilities, strict=True)}


def near(**wanted: float) -> Any:
    return pytest.approx({int(key[1:]): value for key, value in wanted.items()}, rel=1e-6)


@pytest.mark.parametrize("settings, wanted", [
    ({}, near(t2=0.5, t1=0.25, t4=0.125, t0=0.0625, t3=0.0625)),
    ({"top_k": 2}, near(t2=2 / 3, t1=1 / 3)),
    ({"top_k": 4}, near(t2=8 / 15, t1=4 / 15, t4=2 / 15, t0=1 / 15)),  # of 0 and 3, which are equal, the lower id
    ({"top_k": 99}, near(t2=0.5, t1=0.25, t4=0.125, t0=0.0625, t3=0.0625)),
    ({"top_p": 0.0}, near(t2=1.0)),
    ({"top_p": 0.49}, near(t2=1.0)),
    ({"top_p": 0.6}, near(t2=2 / 3, t1=1 / 3)),
    ({"top_p": 0.9}, near(t2=8 / 15, t1=4 / 15, t4=2 / 15, t0=1 / 15)),
    ({"min_p": 0.2}, near(t2=4 / 7, t1=2 / 7, t4=1 / 7)),
    ({"min_p": 1.0}, near(t2=1.0)),
    ({"temperature": 2.0, "top_k": 2}, near(t2=2**0.5 / (1 + 2**0.5), t1=1 / (1 + 2**0.5))),
    ({"top_k": 3, "top_p": 0.6, "min_p": 0.6}, near(t2=1.0)),
    ({"temperature": 1e-300}, near(t2=1.0, t1=0, t4=0, t0=0, t3=0)),
    ({"logit_bias": {2: -math.inf, 3: math.log(6)}}, near(t3=6 / 13, t1=4 / 13, t4=2 / 13, t0=1 / 13)),
])  # fmt: skip
def test_what_stays_is_what_was_worked_out_by_hand(settings: dict[str, Any], wanted: Any) -> None:
    found = kept(HALVES, **settings)
    assert found == wanted
    assert list(found) == sorted(found, key=lambda token: (-found[token], token))


def test_the_penalty_lowers_what_stands_in_the_text_once() -> None:
    row = np.array([2.0, -1.0, 0.5, 0.0], np.float32)
    found = kept(row, prompt=(0, 0, 1), repetition_penalty=2.0)
    weights = np.exp([1.0, -2.0, 0.5, 0.0])
    assert found == pytest.approx(dict(enumerate(weights / weights.sum())))
    sampler = Sampler(Sampling(repetition_penalty=4.1), 4)
    assert [sampler.choose(row, n) for n in range(4)] == [0, 2, 0, 0], "2 / 4.1 < 0.5; then 0.5 / 4.1 is below it"


def logits(seed: int, size: int) -> HostArray:
    """As a model's: few large ones, many small, and blocks of the same value."""
    rng = np.random.default_rng(seed)
    row = rng.gumbel(0, 2.5, size) + 6 * (rng.random(size) < 3 / size)
    return np.round(row.astype(np.float32), 2 if seed % 2 else 6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [100, 49152])
def test_it_keeps_what_transformers_keeps(seed: int, size: int) -> None:
    rng = np.random.default_rng([seed, size])
    row, prompt = logits(seed, size), rng.integers(0, size, 50)
    temperature, top_k, top_p, min_p, penalty = (
        float(rng.uniform(0.3, 1.5)), int(rng.integers(1, 60)), float(rng.uniform(0.3, 0.99)), float(rng.uniform(0.001, 0.2)), 1.3
    )  # fmt: skip
    for with_k in (True, False):
        steps: Any = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
        steps += [TopKLogitsWarper(top_k)] * with_k + [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
        ids: Any = torch.from_numpy(prompt)[None]
        theirs = LogitsProcessorList(steps)(ids, torch.from_numpy(row.astype(np.float64))[None])[0].softmax(0).numpy()
        ours = kept(row, tuple(prompt), temperature=temperature, top_k=top_k * with_k, top_p=top_p, min_p=min_p,
                    repetition_penalty=penalty)  # fmt: skip
        # Of equal logits at the limit they keep all, and we the first ones.
        least = min(ours.values())
        more = {int(t) for t in np.flatnonzero(theirs)} - ours.keys()
        assert set(ours) <= {int(t) for t in np.flatnonzero(theirs)}
        ratio = theirs[list(ours)] / np.array(list(ours.values()))
        assert np.ptp(ratio) < 1e-9, "the same proportions"
        for token in more:
            assert theirs[token] == pytest.approx(least * ratio[0], rel=1e-9)
            assert token > max(t for t, p in ours.items() if p == pytest.approx(least, rel=1e-9))


def test_frequencies_are_the_probabilities() -> None:
    """Of 10,000 draws at as many positions; chi-squared with 4 degrees of freedom, whose 0.999 quantile is 18.5."""
    draws = 10_000
    sampling = Sampling(temperature=1.0, seed=5)
    sampler = Sampler(sampling, 5)
    counts = np.bincount([sampler.choose(HALVES, n) for n in range(draws)], minlength=5)
    expected = draws * np.array([0.0625, 0.25, 0.5, 0.0625, 0.125])
    assert ((counts - expected) ** 2 / expected).sum() < 18.5


MASK = 2**64 - 1


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, figure 2 and table 2."""
    x = [counter >> 64 * n & MASK for n in range(4)]
    k = [key & MASK, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(second >> 64) ^ x[1] ^ k[0], second & MASK, (first >> 64) ^ x[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return x


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**24))
def test_the_numbers_are_those_of_the_paper(seed: int, position: int) -> None:
    assert uniform(seed, position) == (philox(position + 1, seed)[0] >> 11) * 2**-53


@given(st.integers(0, 2**64 - 1), st.integers(1, 600), st.integers(0, 3000))
def test_a_draw_inverts_the_distribution(seed: int, kinds: int, position: int) -> None:
    """Against a plain loop in exact sums; with many equal probabilities, and more tokens than are sorted at first."""
    row = np.random.default_rng(seed % 2**32).integers(-kinds, 0, 2000).astype(np.float32) / 64
    weights = [math.exp(float(x) - float(row.max())) for x in row]
    whole, number = math.fsum(weights), uniform(seed, position)
    passed: list[float] = []
    for token in sorted(range(2000), key=lambda token: (-weights[token], token)):
        passed.append(weights[token])
        if math.fsum(passed) > number * whole:
            break
    assert Sampler(Sampling(temperature=1.0, seed=seed), 2000).choose(row, position) == token


def test_a_limit_belongs_to_the_token_after_it() -> None:
    weights = np.array([0.25, 0.5, 0.0, 0.25])
    assert [drawn(weights, number) for number in (0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53)] == [1, 1, 0, 0, 3, 3]


def test_a_token_depends_on_its_seed_and_its_position_alone() -> None:
    rows = [logits(n, 300) for n in range(30)]
    whole = Sampler(Sampling(temperature=1.0, seed=9), 300)
    tokens = [whole.choose(row, n) for n, row in enumerate(rows)]
    assert tokens[20:] == [Sampler(Sampling(temperature=1.0, seed=9), 300).choose(rows[n], n) for n in range(20, 30)]
    other = Sampler(Sampling(temperature=1.0, seed=10), 300)
    assert tokens != [other.choose(row, n) for n, row in enumerate(rows)]


class Ends:
    """A grammar of one token."""

    done = False

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> HostArray:
        return np.array([False, False, False, True])

    def take(self, token: int) -> None:
        self.taken.append(token)


def test_greedy_takes_the_first_of_the_largest() -> None:
    row = np.array([1, 3, 3, 2], np.float32)
    assert Sampler(Sampling(), 4).choose(row, 0) == 1
    grammar = Ends()
    assert Sampler(Sampling(logit_bias={3: -9}, repetition_penalty=9), 4, (3,), grammar).choose(row, 0) == 3
    assert grammar.taken == [3]
    assert Sampler(Sampling(logit_bias={0: 5}), 4).choose(row, 0) == 0
    assert Sampler(Sampling(top_k=1, top_p=0.1, seed=4), 4).distribution(row)[0].tolist() == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_leave_one_token_and_those_that_leave_none(temperature: float) -> None:
    row = np.full(6, -np.inf, np.float32)
    row[4] = -1e30
    sampler = Sampler(Sampling(temperature=temperature, top_p=0.5, min_p=0.5), 6)
    assert {sampler.choose(row, n) for n in range(50)} == {4}
    row[4] = -np.inf
    with pytest.raises(WrongValue, match="Every token at position 7 is left out"):
        sampler.choose(row, 7)
    for value in (np.nan, np.inf):
        row[4] = value
        with pytest.raises(WrongValue, match=r"1 of the 6 logits at position 8 are NaN or infinite.*tapml health"):
            sampler.choose(row, 8)


@pytest.mark.parametrize("settings, said", [
    ({"temperature": -1}, "temperature is -1; it is a number of at least 0"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"temperature": True}, "temperature is True"),
    ({"top_k": -1}, "top_k is -1; it is a whole number"),
    ({"top_k": 1.5}, "top_k is 1.5"),
    ({"top_p": 1.01}, "top_p is 1.01; it is a number from 0 to 1"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; it is a number above 0"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"seed": -1}, "seed is -1"),
    ({"logit_bias": {-1: 2.0}}, "logit_bias names token -1"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 is nan"),
    ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 is inf"),
])  # fmt: skip
def test_settings_that_are_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Sampling(**settings)
    assert "\n" not in str(caught.value)


def test_a_bias_of_a_token_that_there_is_not() -> None:
    with pytest.raises(UsageError, match=r"logit_bias names token 50; the model's go from 0 to 49"):
        Sampler(Sampling(logit_bias={50: 1.0}), 50)
    assert Sampling(logit_bias={3: -math.inf, 4: 1.5}).to_json()["logit_bias"] == {"3": "-inf", "4": 1.5}

"""Choosing a token from the logits of a model.

    sampling = Sampling(temperature=0.7, top_p=0.9, seed=3)
    sampler = Sampler(sampling, vocabulary, prompt)      of one answer; with a Grammar, what it allows
    token = sampler.choose(row, position)                row: the logits float32 [vocabulary]; position: of the token in the text

The steps, in this order; each is left out at its default:

1. Repetition penalty r, for each token that stands in the prompt or in the answer, once however often it stands there: a logit
   above 0 is divided by r, any other is multiplied by r (Keskar et al. 2019, arXiv:1909.05858, 4.1, which divides; the sign is
   heeded as in transformers, since dividing a negative logit would raise it).
2. Bias: the number of `logit_bias` is added to the token's logit.
3. Grammar: tokens that may not follow are left out.
4. Temperature T: logits are divided by T. T = 0 ends here: the largest logit wins, of equal ones the lowest token id (greedy).
5. Top-k: the k largest logits stay; of equal ones the lower id (Fan et al. 2018, arXiv:1805.04833, 5.4).
6. Top-p: with p_i = softmax of what is left, from the most probable on, a token stays while the sum before it is below `top_p`;
   the first one always does (Holtzman et al. 2019, arXiv:1904.09751, 3.1: the smallest set with a sum of at least `top_p`).
7. Min-p: tokens of at least `min_p` times the largest probability stay (Nguyen et al. 2024, arXiv:2407.01082, 3).

Then one token is drawn from what stays, by the inverse of the cumulative distribution over tokens sorted by (-probability, id).
Everything is computed in float64. The uniform number in [0, 1) is made of the seed and the position alone: the first word of
block `position` + 1 of Philox4x64-10 with key `seed` (Salmon et al. 2011, doi:10.1145/2063384.2063405), its upper 53 bits times
2^-53. So token n does not depend on how many were drawn before it, and equal logits and seeds give equal tokens on every
platform, unless the number falls within the last bits of a limit between two tokens, in which platforms' exp differ: about one
token in 10^11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from tapml.errors import UsageError, WrongValue
from tapml.tensors import HostArray

SEEDS = 2**64

# Tokens that are sorted before more are looked at.
SORTED_FIRST = 512


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; see the module's docstring. The default is greedy. `logit_bias` is by token id; -inf leaves a token
    out. Raises UsageError for what is out of range."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", _number(self.temperature) and 0 <= self.temperature < math.inf, "a number of at least 0 (0: greedy)"),
            ("top_k", _whole(self.top_k) and self.top_k >= 0, "a whole number of at least 0 (0: all tokens)"),
            ("top_p", _number(self.top_p) and 0 <= self.top_p <= 1, "a number from 0 to 1 (1: all tokens)"),
            ("min_p", _number(self.min_p) and 0 <= self.min_p <= 1, "a number from 0 to 1 (0: all tokens)"),
            ("repetition_penalty", _number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf,
             "a number above 0 (1: none)"),
            ("seed", _whole(self.seed) and 0 <= self.seed < SEEDS, "a whole number from 0 to 2^64 - 1"),
        ):  # fmt: skip
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it is {wanted}.")
        for token, bias in self.logit_bias.items():
            if not _whole(token) or token < 0:
                raise UsageError(f"logit_bias names token {token!r}; tokens are whole numbers of at least 0.")
            if not _number(bias) or math.isnan(bias) or bias == math.inf:
                raise UsageError(f"logit_bias of token {token} is {bias!r}; it is a number, or -inf, which leaves the token out.")
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS} | {
            "logit_bias": {str(token): bias if math.isfinite(bias) else str(bias) for token, bias in self.logit_bias.items()}
        }


GREEDY = Sampling()

# Those that are one number.
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


class Grammar(Protocol):
    """What an answer may be made of, token by token."""

    @property
    def done(self) -> bool:
        """Whether the answer is whole and nothing can follow."""

    def allowed(self) -> HostArray:
        """Which tokens may follow, bool [vocabulary]."""

    def take(self, token: int) -> None:
        """The next token, one of those allowed."""


class Sampler:
    """Of one answer: it remembers which tokens stand in the text. Raises UsageError for a bias of a token that there is not."""

    def __init__(self, sampling: Sampling, vocabulary: int, prompt: Sequence[int] = (), grammar: Grammar | None = None) -> None:
        self.sampling = sampling
        self.grammar = grammar
        if beyond := [token for token in sampling.logit_bias if token >= vocabulary]:
            raise UsageError(f"logit_bias names token {beyond[0]}; the model's go from 0 to {vocabulary - 1}.")
        self._biased = np.array(list(sampling.logit_bias), np.int64)
        self._biases = np.array(list(sampling.logit_bias.values()), np.float64)
        self._seen = np.zeros(vocabulary, bool)
        self._seen[list(prompt)] = True

    def choose(self, row: HostArray, position: int) -> int:
        """The token at a position of the text, of its logits [vocabulary]. Raises WrongValue for logits that are NaN or infinite,
        or where every token is left out; what the grammar raises."""
        logits = self._logits(row, position)
        if self.sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            tokens, weights = self._kept(logits)
            token = int(tokens[drawn(weights, uniform(self.sampling.seed, position))])
        self._seen[token] = True
        if self.grammar is not None:
            self.grammar.take(token)
        return token

    def distribution(self, row: HostArray, position: int = 0) -> tuple[HostArray, HostArray]:
        """Tokens int64 and their probabilities float64, most probable first, of those that `choose` draws from."""
        logits = self._logits(row, position)
        if self.sampling.temperature == 0:
            return np.array([logits.argmax()]), np.ones(1)
        tokens, weights = self._kept(logits)
        order, _ = _largest(weights, np.inf)
        return tokens[order], weights[order] / weights.sum()

    def _logits(self, row: HostArray, position: int) -> HostArray:
        """Steps 1 to 3, in float64."""
        logits = row.astype(np.float64)
        if wrong := int((np.isnan(logits) | (logits == np.inf)).sum()):
            raise WrongValue(
                "logits",
                f"{wrong:,} of the {len(logits):,} logits at position {position} are NaN or infinite, so no token can be chosen. "
                "Look for the operator that made them: tapml health RUN --target T",
            )
        penalty = self.sampling.repetition_penalty
        if penalty != 1:
            seen = logits[self._seen]
            logits[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        logits[self._biased] += self._biases
        if self.grammar is not None:
            logits[~self.grammar.allowed()] = -np.inf
        if logits.max() == -np.inf:
            raise WrongValue("logits", f"Every token at position {position} is left out, so none can be chosen.")
        return logits

    def _kept(self, logits: HostArray) -> tuple[HostArray, HostArray]:
        """Steps 4 to 7: tokens, of equally probable ones the lower id first, and numbers in proportion to their probabilities."""
        asked = self.sampling
        tokens = np.flatnonzero(logits > -np.inf)
        if 0 < asked.top_k < len(tokens):
            least = np.partition(logits[tokens], -asked.top_k)[-asked.top_k]
            tokens = tokens[logits[tokens] >= least]
            tokens = tokens[np.argsort(-logits[tokens], kind="stable")][: asked.top_k]
        with np.errstate(over="ignore"):  # towards a temperature of 0, what is not the largest is -inf
            weights = np.exp((logits[tokens] - logits[tokens].max()) / asked.temperature)
        if asked.top_p < 1:
            wanted = asked.top_p * weights.sum()
            order, sums = _largest(weights, wanted)
            order = order[: 1 + np.count_nonzero(sums < wanted)]
            tokens, weights = tokens[order], weights[order]
        if asked.min_p:
            kept = weights >= asked.min_p * weights.max()
            tokens, weights = tokens[kept], weights[kept]
        return tokens, weights


def _largest(weights: HostArray, wanted: float) -> tuple[HostArray, HostArray]:
    """Places of weights, the largest first and of equal ones the first, with their cumulative sums: as many as it takes for a sum
    above `wanted`, or all. A vocabulary is large, and a few tokens are nearly all of the probability: the rest is not sorted."""
    count = SORTED_FIRST
    while count < len(weights):
        places = np.flatnonzero(weights >= np.partition(weights, -count)[-count])
        order = places[np.argsort(-weights[places], kind="stable")]
        sums = np.cumsum(weights[order])
        if sums[-1] > wanted:
            return order, sums
        count *= 8
    order = np.argsort(-weights, kind="stable")
    return order, np.cumsum(weights[order])


def uniform(seed: int, position: int) -> float:
    """In [0, 1), of a seed and a position alone."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def drawn(weights: HostArray, number: float) -> int:
    """The place of the weight at which the cumulative sum, the largest first, exceeds a number in [0, 1) of the whole sum."""
    wanted = number * weights.sum()
    order, sums = _largest(weights, wanted)
    return int(order[min(int(np.searchsorted(sums, wanted, side="right")), len(sums) - 1)])

"""How near one model's distribution of the next token is to another's, over the tokens of a text, with error bars.

    tally = Tally()
    tally.add(source_row, bundle_row, token)            logits [vocabulary] of both sides, and the token that follows
    tally.perplexity_of_source, tally.divergence, tally.agreement

With p of the source and q of the bundle (softmax of the logits, in float64), x the token that follows, and n tokens:

    surprise       s = -ln p(x)
    perplexity     P = exp(mean of s), error P · e(s): the error of the mean, by the delta method (d exp(m) = exp(m) dm)
    log ratio      ln(P of the bundle / P of the source) = mean of (s of the bundle - s of the source), error e of these
                   differences: both sides read the same tokens, so what makes a token hard for both cancels
    divergence     KL(p || q) = sum over v of p(v) · (ln p(v) - ln q(v)), in nats, error e; infinite where q bars what p does not
    agreement      the share a of tokens at which both sides' largest logits are the same token's, error e of zeros and ones,
                   which is sqrt(a (1 - a) / (n - 1))

e is the standard error of the mean, sqrt(sum of (value - mean)² / (n - 1) / n). It takes the tokens for independent of each
other. Neighbours in a text are not wholly, so that it is too small rather than too large. Where all n tokens agree, the error of
the agreement is 0; with 95 % confidence the share is then at least 1 - 3/n (the rule of three).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from tapml.tensors import HostArray


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """The mean, of at least two."""
        array = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore"):  # of values that are not all finite
            return Estimate(float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(values)))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass
class Tally:
    """See the module's docstring. Each list has an entry a token."""

    of_source: list[float] = field(default_factory=list)
    of_bundle: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)

    def add(self, source: HostArray, bundle: HostArray, token: int) -> None:
        """Logits without NaN and without +inf; -inf bars a token."""
        p, q = log_softmax(source), log_softmax(bundle)
        self.of_source.append(-float(p[token]))
        self.of_bundle.append(-float(q[token]))
        self.divergences.append(divergence(p, q))
        self.same.append(float(source.argmax() == bundle.argmax()))

    def __len__(self) -> int:
        return len(self.same)

    @property
    def perplexity_of_source(self) -> Estimate:
        return _perplexity(self.of_source)

    @property
    def perplexity_of_bundle(self) -> Estimate:
        return _perplexity(self.of_bundle)

    @property
    def log_ratio(self) -> Estimate:
        return Estimate.of([b - a for a, b in zip(self.of_source, self.of_bundle, strict=True)])

    @property
    def divergence(self) -> Estimate:
        return Estimate.of(self.divergences)

    @property
    def agreement(self) -> Estimate:
        return Estimate.of(self.same)


def _perplexity(surprises: Sequence[float]) -> Estimate:
    mean = Estimate.of(surprises)
    perplexity = float(np.exp(mean.value))
    return Estimate(perplexity, perplexity * mean.error)


def log_softmax(logits: HostArray) -> NDArray[np.float64]:
    """Of each, x - ln(sum of exp(x)), with the largest taken off first so that nothing overflows."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return found


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p || q) of the logarithms of two distributions. It is never below 0, but its rounding is."""
    possible = p > -np.inf
    return max(0.0, float((np.exp(p[possible]) * (p[possible] - q[possible])).sum()))

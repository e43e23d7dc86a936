"""Whole models against the source: the short check after each move, and the long comparison at the end.

    reference = Reference.of(run, source)
    answer = reference.check(hybrid)                       first prompt: prefill, a few decode steps, late positions; or the
                                                           first example
    results = [compare_prompt(...) for prompt in ...]      every prompt: greedy tokens, logits, top-1
    outcome = EndToEnd.of(results)

Logits are compared with teacher forcing: both sides are fed the source's tokens, so that one different choice does not make
everything after it incomparable. Bounds follow from the source's own end-to-end error (`oracle.jsonl`), in the unit of
`tapml.carving.tolerance`. Greedy tokens are compared as they are: a near tie that falls the other way is a difference. It is
reported with its margin, and `tokens_match` is false.

Everything here works on `Stepper`s and knows nothing of devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from tapml import strict
from tapml.carving.folder import Prompt, RunFolder
from tapml.carving.late import check_calls as carve_calls
from tapml.carving.tolerance import LEAST, Comparison, compare, compound_bound, of_source
from tapml.carving.tolerance import Reference as Judge
from tapml.errors import WrongValue, is_confined, unexpected
from tapml.migrate.outcome import Failed
from tapml.runtime.protocol import Call, Generating, Stepper, answered, greedy
from tapml.tensors import FLOATS, HostArray, dtype_name
from tapml.verdicts import STAGES, STATUSES, Stage, Status


@dataclass(frozen=True)
class Answer:
    """What a check of the whole model said; the numbers are those of the worst output, None where none were reached."""

    status: Status
    stage: Stage | None
    error: float | None
    bound: float | None
    source_error: float | None
    reason: str

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Answer:
        """Raises ValueError, KeyError or TypeError for what is no answer."""
        error, bound, source = (strict.maybe(strict.real, data, key) for key in ("error", "bound", "source_error"))
        stage: Stage | None = strict.maybe(strict.one_of, data, "stage", STAGES)
        return Answer(strict.one_of(data, "status", STATUSES), stage, error, bound, source, strict.text(data, "reason"))


def answer_of(outcome: Failed) -> Answer:
    """What a check says that the device broke off."""
    return Answer(outcome.status, outcome.stage, None, None, None, outcome.text)


class Reference:
    """What the source answers to the calls of the check. `hollow` says why comparing with that shows nothing; "" where it
    does."""

    def __init__(
        self, calls: Sequence[Call], outputs: Sequence[dict[str, HostArray]], errors: Sequence[dict[str, float]],
        straddling: Mapping[str, int] | None = None, logits: bool = False, spread: Mapping[str, float] | None = None,
    ) -> None:
        self.calls = calls
        self.outputs = outputs
        self.errors = errors
        self.straddling = straddling or {}
        self.spread = spread or {}
        self.hollow = hollow((values for answer in outputs for values in answer.values()), logits)

    @staticmethod
    def of(run: RunFolder, source: Stepper, calls: Sequence[Call] | None = None, prompt: int = 0) -> Reference:
        """Runs the calls on the source: those of the check, or others with the tokens of a prompt."""
        own = calls is None
        calls = check_calls(run) if calls is None else calls
        source.reset()
        outputs = [source.step(call.graph, call.inputs) for call in calls]
        oracle = Oracle(run)
        errors = [oracle.of_call(0, step) if own else oracle.of_prompt(prompt) for step in range(len(calls))]
        straddling = {key: oracle.straddling(prompt, key) for answer in outputs for key in answer}
        return Reference(calls, outputs, errors, straddling, run.protocol.chooses is not None, oracle.spread(prompt))

    def judges(self) -> list[dict[str, Judge]]:
        """What each output is judged by, call by call."""
        calls = zip(self.outputs, self.errors, strict=True)
        return [{key: self._judge(key, array, errors) for key, array in outputs.items()} for outputs, errors in calls]

    def _judge(self, key: str, values: HostArray, errors: Mapping[str, float]) -> Judge:
        return of_source(values, errors.get(key, 0.0), self.straddling.get(key, 0), self.spread.get(key))

    def check(self, target: Stepper) -> Answer:
        """Stops at the first call beyond its bound, or with a WrongValue. Other DeviceErrors and DeviceLost pass through; an
        error that nobody foresaw is an answer."""
        target.reset()
        worst: Comparison | None = None
        for step, (call, expected, errors) in enumerate(zip(self.calls, self.outputs, self.errors, strict=True)):
            try:
                actual = target.step(call.graph, call.inputs)
            except WrongValue as error:
                return Answer("fail", "numeric", None, None, None, f"{call.graph} (call {step}): {error}")
            except Exception as error:
                if not is_confined(error):
                    raise
                return Answer("error", None, None, None, None, f"{call.graph} (call {step}): {unexpected(error)}")
            for key, reference in expected.items():
                found = compare(actual[key], self._judge(key, reference, errors))
                where = f"output {key} of {call.graph} (call {step}): {found.describe()}"
                if not found.passed:
                    return Answer("fail", "numeric", found.error, found.bound, found.source_error, where)
                if worst is None or found.ratio > worst.ratio:
                    worst, at = found, where
        if worst is None:
            return Answer("pass", None, None, None, None, "the model has no outputs")
        return Answer("pass", None, worst.error, worst.bound, worst.source_error, at)


class Oracle:
    """The source's own error end to end, by prompt and call. Calls beyond those that were measured get the largest error that was
    measured for that prompt, or for any."""

    def __init__(self, run: RunFolder) -> None:
        self._lines = [line for line in run.oracle if "prompt" in line]

    def of_call(self, prompt: int, step: int) -> dict[str, float]:
        for line in self._lines:
            if line["prompt"] == prompt and line["step"] == step:
                return dict(line["source_error"])
        return self.of_prompt(prompt)

    def straddling(self, prompt: int, key: str) -> int:
        """How many elements of one output the source itself had on the other side of a jump, at most, at any call of a prompt."""
        mine = [line for line in self._lines if line["prompt"] == prompt] or self._lines
        return max((line["straddling"].get(key, 0) for line in mine), default=0)

    def spread(self, prompt: int) -> dict[str, float]:
        """The root mean square of the source's errors on each output, the largest of a prompt's calls."""
        mine = [line for line in self._lines if line["prompt"] == prompt] or self._lines
        found: dict[str, float] = {}
        for line in mine:
            for key, value in line["spread"].items():
                found[key] = max(found.get(key, 0.0), value)
        return found

    def of_prompt(self, prompt: int) -> dict[str, float]:
        mine = [line for line in self._lines if line["prompt"] == prompt] or self._lines
        found: dict[str, float] = {}
        for line in mine:
            for key, error in line["source_error"].items():
                found[key] = max(found.get(key, 0.0), error)
        return found


def asked(run: RunFolder) -> list[tuple[Any, tuple[int, ...]]]:
    """What the model was asked, and the tokens that were recorded for it: of each prompt, or of each example."""
    return [*((p.tokens, p.generated) for p in run.prompts), *((example, ()) for example in run.examples)]


def check_calls(run: RunFolder) -> list[Call]:
    """The calls of the check: of the first prompt with the recorded tokens, then those at late positions; or of the first
    example."""
    return [call for given, answer in asked(run)[:1] for call in carve_calls(given, answer, run.late, run.protocol)]


@dataclass(frozen=True)
class PromptResult:
    """One prompt. `errors` and the like are over all compared positions; `differs_at` is the first position where the tokens
    differ, `margin` there is how far the source's token was ahead of the target's in the source's own logits, in the unit
    of the logit error; both None when the tokens match. `unchecked` says why the comparison shows nothing, "" where it does.
    `asked` is how many tokens were to be compared, `cache` the positions of the key-value cache where it was full before that.
    For a module that is not a decoder the token lists are empty; `top1_agreement` is None where no output is a choice."""

    index: int
    tokens_source: tuple[int, ...]
    tokens_target: tuple[int, ...]
    error: float
    bound: float
    source_error: float
    top1_agreement: float | None
    differs_at: int | None = None
    margin: float | None = None
    reason: str = ""
    unchecked: str = ""
    asked: int | None = None
    cache: int | None = None

    @property
    def tokens_match(self) -> bool:
        return self.tokens_source == self.tokens_target

    @property
    def passed(self) -> bool:
        return self.tokens_match and self.error <= self.bound and not self.unchecked

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"tokens_match": self.tokens_match}

    @staticmethod
    def from_json(data: dict[str, Any]) -> PromptResult:
        """Raises ValueError, KeyError or TypeError for what is no result."""
        known = {f.name: data[f.name] for f in fields(PromptResult) if f.name in data}
        for key in ("tokens_source", "tokens_target"):
            known[key] = strict.several(strict.whole, data, key, 0, 2**31)
        for key in ("error", "bound", "source_error"):
            strict.real(data, key)
        for key in {"asked", "cache", "differs_at"} & known.keys():
            strict.maybe(strict.whole, known, key)
        for key in {"margin", "top1_agreement"} & known.keys():
            strict.maybe(strict.real, known, key)
        strict.whole(data, "index")
        for key in {"reason", "unchecked"} & known.keys():
            strict.text(known, key)
        return PromptResult(**known)


def compare_one(
    run: RunFolder, source: Stepper, target: Stepper, index: int, max_tokens: int, oracle: Oracle
) -> PromptResult:
    """One prompt, or one example where the model chooses no tokens."""
    if isinstance(run.protocol, Generating):
        return compare_prompt(run, source, target, run.prompts[index], max_tokens, oracle)
    return compare_example(run, source, target, index, oracle)


def compare_prompt(
    run: RunFolder, source: Stepper, target: Stepper, prompt: Prompt, max_tokens: int, oracle: Oracle
) -> PromptResult:
    """Greedy tokens of both sides, and logits with the source's tokens. The source is run anew, and must give again what was
    recorded: where it does not (another machine, another number of threads), the reason says so."""
    protocol = run.protocol
    assert isinstance(protocol, Generating)
    ours = list(greedy(source, prompt.tokens, protocol, max_tokens))
    theirs = list(greedy(target, prompt.tokens, protocol, max_tokens))
    tokens_source = tuple(token for token, _ in ours)
    tokens_target = tuple(token for token, _ in theirs)
    rows = [row for _, row in ours]
    target_rows = [row for _, row in theirs]
    if tokens_source != tokens_target:
        target_rows = _rows(target, prompt.tokens, tokens_source, protocol)
    source_error = max(oracle.of_prompt(prompt.index).values(), default=0.0)
    jumped = oracle.straddling(prompt.index, protocol.chooses)
    spread = max(oracle.spread(prompt.index).values(), default=None)
    found = [compare(y, of_source(r, source_error, jumped, spread)) for y, r in zip(target_rows, rows, strict=True)]
    worst = max(found, key=lambda c: c.ratio)
    result = PromptResult(
        prompt.index, tokens_source, tokens_target, worst.error, worst.bound, source_error,
        sum(int(y.argmax() == r.argmax()) for y, r in zip(target_rows, rows, strict=True)) / len(rows),
        reason=worst.describe(), unchecked=hollow(rows, logits=True) or _too_far(found), asked=max_tokens,
        cache=protocol.max_len if len(rows) < max_tokens and tokens_source[-1] not in protocol.stop else None,
    )
    common = min(len(prompt.generated), len(tokens_source))
    if prompt.generated[:common] != tokens_source[:common]:
        result = replace(result, reason=result.reason + "; the source now gives other tokens than were recorded")
    return _explain_difference(result, rows)


def compare_example(run: RunFolder, source: Stepper, target: Stepper, index: int, oracle: Oracle) -> PromptResult:
    """The outputs for one example of a module that is no decoder; `top1_agreement` is over the last axis of those outputs that
    score classes or tokens."""
    calls = run.protocol.check(run.examples[index], ())
    expected, actual = answered(source, calls), answered(target, calls)
    errors = oracle.of_prompt(index)
    spread = oracle.spread(index)
    judges = {
        key: of_source(r, errors.get(key, 0.0), oracle.straddling(index, key), spread.get(key)) for key, r in expected.items()
    }
    found = {key: compare(actual[key], judge) for key, judge in judges.items()}
    choices = [k for k in expected if run.protocol.scores(k, expected[k])]
    agree = [actual[k].argmax(-1) == expected[k].argmax(-1) for k in choices]
    top1 = float(np.concatenate([np.atleast_1d(a).reshape(-1) for a in agree]).mean()) if agree else None
    if not found:
        return PromptResult(index, (), (), 0.0, 0.0, 0.0, None, reason="the model has no outputs")
    key, worst = max(found.items(), key=lambda item: item[1].ratio)
    return PromptResult(
        index, (), (), worst.error, worst.bound, worst.source_error, top1,
        reason=f"output {key}: {worst.describe()}", unchecked=hollow(expected.values(), logits=False) or _too_far(found.values()),
    )


def broken_off(index: int, tokens: Sequence[int], error: Exception) -> PromptResult:
    """The result on a prompt that the migrated model could not answer: nothing can be compared, and nothing passes. `tokens` are
    what was recorded of the source."""
    reason = str(error) if isinstance(error, WrongValue) else unexpected(error)
    return PromptResult(index, tuple(tokens), (), math.inf, 0.0, 0.0, 0.0, reason=f"the migrated model stops: {reason}")


@dataclass(frozen=True)
class EndToEnd:
    """All prompts together: the worst numbers, and the share of positions on which both sides prefer the same token."""

    prompts: tuple[PromptResult, ...]

    @property
    def passed(self) -> bool:
        return all(p.passed for p in self.prompts)

    def cut_short(self) -> PromptResult | None:
        """The prompt that was compared on fewest tokens because the cache was full; None where it never was."""
        return min((p for p in self.prompts if p.cache is not None), key=lambda p: len(p.tokens_source), default=None)

    def to_json(self) -> dict[str, Any]:
        """`tokens_*` have a list a prompt; they and `tokens_match` are None for a module that is no decoder."""
        decoder = any(p.tokens_source for p in self.prompts)
        worst = max(self.prompts, key=lambda p: p.error / p.bound if p.bound else p.error, default=None)
        counts = [len(p.tokens_source) or 1 for p in self.prompts]
        agree = [(p.top1_agreement, n) for p, n in zip(self.prompts, counts, strict=True) if p.top1_agreement is not None]
        agreement = sum(share * n for share, n in agree) / sum(n for _, n in agree) if agree else None
        return {
            "tokens_source": [list(p.tokens_source) for p in self.prompts] if decoder else None,
            "tokens_target": [list(p.tokens_target) for p in self.prompts] if decoder else None,
            "tokens_match": all(p.tokens_match for p in self.prompts) if decoder else None,
            "logit_error": None if worst is None else worst.error,
            "logit_bound": None if worst is None else worst.bound,
            "source_error": None if worst is None else worst.source_error,
            "within_bound": all(p.error <= p.bound for p in self.prompts),
            "checked": not any(p.unchecked for p in self.prompts),
            "top1_agreement": agreement,
            "tokens_asked": next((p.asked for p in self.prompts), None),
            "cut_by_cache": self.cut_short() is not None,
            "prompts": [p.to_json() for p in self.prompts],
        }


def _rows(target: Stepper, prompt: Sequence[int], tokens: Sequence[int], protocol: Generating) -> list[HostArray]:
    """Logits [vocabulary] with these tokens, one a token: each row is what the token was chosen from."""
    target.reset()
    outputs = [target.step(call.graph, call.inputs) for call in protocol.forced(prompt, tokens[:-1])]
    return [protocol.row(each) for each in outputs[-len(tokens) :]]


def _explain_difference(result: PromptResult, rows: Sequence[HostArray]) -> PromptResult:
    """Adds where the tokens part, and how close the source's own choice was there."""
    if result.tokens_match:
        return result
    pairs = list(zip(result.tokens_source, result.tokens_target, strict=False))
    place = next((k for k, (a, b) in enumerate(pairs) if a != b), len(pairs))
    if place == len(pairs):
        return replace(result, differs_at=place, reason=f"{result.reason}; one side stops after {place} tokens")
    mine, other = pairs[place]
    row = rows[place].astype(np.float64)
    scale = float(np.abs(row[np.isfinite(row)]).mean()) or 1.0
    margin = float((row[mine] - row[other]) / (abs(row[mine]) + scale))
    tie = margin <= compound_bound(result.source_error, dtype_name(rows[place]))
    words = (
        f"tokens differ from position {place}: the source gives {mine}, the target {other}; the source preferred its own by "
        f"{margin:.3g}, which is {'within the bound, a near tie' if tie else 'beyond the bound, so no tie'}"
    )
    return replace(result, differs_at=place, margin=margin, reason=f"{result.reason}; {words}")


def _too_far(found: Iterable[Comparison]) -> str:
    """Why comparisons show nothing although all agree: the bound that follows from the source's error lets all zeros pass."""
    worst = max((c for c in found if c.vacuous), key=lambda c: c.bound, default=None)
    if worst is None:
        return ""
    off = f"the source's own answer is {worst.source_error:.2g} away from float64"
    return f"{off}, so far that any answer would be within the bound"


def hollow(outputs: Iterable[HostArray], logits: bool) -> str:
    """Why comparing with these answers of the source shows nothing; "" where it does. Logits must hold neither NaN nor infinity
    (-inf bars a token, and is none), since what is chosen from them is an accident then. Of any other output, more than half of
    the elements must not be NaN, since a target that is wrong agrees with that too."""
    for values in outputs:
        if dtype_name(values) not in FLOATS or not values.size:
            continue
        wide = values.astype(np.float64)
        odd = int((np.isnan(wide) | (wide == np.inf)).sum() if logits else np.isnan(wide).sum())
        if odd > (0 if logits else LEAST * values.size):
            kinds = "NaN or infinite" if logits else "NaN"
            return (
                f"{odd:,} of {values.size:,} elements of the source's own answer are {kinds}, so an equal answer proves nothing; "
                "tapml health names the operator that makes them"
            )
    return ""

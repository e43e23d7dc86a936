"""How good a bundle is against the model that it was built from, over a text: perplexity, divergence, agreement.

    evaluated = evaluate(session, run, tokens)
    evaluated.tally.divergence, evaluated.tally.perplexity_of_bundle, evaluated.layers

Both sides are fed the text's own tokens (teacher forcing), in windows as long as the context. A window's first half is taken in
as a prompt, and each token of its second half is scored: how probable it was, and how far both sides' distributions are apart;
the next window begins half a window later. So every token after the first half window is scored once, with at least half a window
before it, and both the graphs that take in a prompt and the one that goes on by a token are run. A tokenizer's first token stands
at the beginning of the text only. What is made of the logits, and its error bars, is in `tapml.deploy.likelihood`.

The source is the run's graphs in PyTorch, operator by operator. The run has to be the one that the bundle names, unless another
is asked for: then `comparable` says in what it is another.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from tapml.carving import layout as of_run
from tapml.carving.folder import RunFolder
from tapml.deploy.bundle import BundleFolder, stored_of
from tapml.deploy.layers import BundleInside, SourceInside, layer_ends
from tapml.deploy.likelihood import Estimate, Tally
from tapml.deploy.session import Session
from tapml.errors import PromptError, UsageError, WrongValue
from tapml.migrate.model import Model
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import Generating, Stepper
from tapml.tensors import HostArray
from tapml.words import plural

# The first paragraphs of Herman Melville's "Moby-Dick; or, The Whale" (1851), chapter 1: in the public domain.
OWN_TEXT = "loomings.txt"
OWN_TEXT_NAME = "Moby-Dick (1851), chapter 1, the beginning"

Progress = Callable[[str, int, int], None]


def own_text() -> str:
    """The text that is brought along."""
    return resources.files("tapml.deploy").joinpath("texts", OWN_TEXT).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + prompt) are taken in, and the next `scored` ones are scored."""

    start: int
    prompt: int
    scored: int


def windows(tokens: int, longest: int) -> Iterator[Window]:
    """Of a text of so many tokens, none longer than `longest`; none where that is no room for a prompt and a scored token."""
    whole = min(tokens, longest)
    if whole < 2:
        return
    prompt = whole // 2
    for start in range(0, tokens - prompt, whole - prompt):
        yield Window(start, prompt, min(whole - prompt, tokens - start - prompt))


@dataclass(frozen=True)
class LayerError:
    """How far a layer's output is from the source's: ‖bundle - source‖ / ‖source‖ (the relative root mean square error) of each
    decode call, and the mean of these with its error. Both sides go on from their own values, so what a layer gets wrong is in
    those after it, too."""

    layer: str
    error: Estimate

    def to_json(self) -> dict[str, Any]:
        return {"layer": self.layer, "error": self.error.to_json()}


@dataclass(frozen=True)
class Evaluated:
    """`text_tokens` the text has, of which the `tally` has those that were scored; the windows are at most `window` tokens long.
    `layers` is None where they were not asked for, `differences` empty where the run is the bundle's own."""

    text_tokens: int
    windows: int
    window: int
    tally: Tally
    layers: tuple[LayerError, ...] | None
    differences: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "text_tokens": self.text_tokens, "tokens": len(tally), "windows": self.windows, "window": self.window,
            "perplexity_of_source": tally.perplexity_of_source.to_json(),
            "perplexity_of_bundle": tally.perplexity_of_bundle.to_json(), "log_ratio": tally.log_ratio.to_json(),
            "divergence": tally.divergence.to_json(), "largest_divergence": max(tally.divergences),
            "agreement": tally.agreement.to_json(),
            "layers": None if self.layers is None else [layer.to_json() for layer in self.layers],
            "differences": list(self.differences), "seconds": self.seconds,
        }  # fmt: skip


def comparable(bundle: BundleFolder, run: RunFolder, other_run: bool = False) -> tuple[str, ...]:
    """In what a run is another than the one that the bundle was built from, in sentences; none where it is that one. Raises
    UsageError for a model that chooses no tokens, for another run unless `other_run`, and always for one whose tokens are
    others."""
    ours, theirs = bundle.protocol, run.protocol
    if not isinstance(ours, Generating):
        raise UsageError(f"{bundle.name} chooses no tokens, so it has no perplexity. Try: tapml verify {bundle.path}")
    if bundle.manifest["run"] == run.digest:
        return ()
    built_from = str(bundle.manifest["run"])[:40]
    if not other_run:
        raise UsageError(
            f"{run.path} is not the run that {bundle.path} was built from: its digest is {run.digest}, not {built_from}. Give "
            "that run, or --other-run to compare with this one all the same."
        )
    if not isinstance(theirs, Generating) or ours.vocabulary != theirs.vocabulary:
        raise UsageError(f"{run.path} is a run of a model with other tokens than {bundle.name} has. Give the run of that model.")
    files = bundle.manifest["files"].get(of_run.TOKENIZER, {}), run.manifest["files"].get(of_run.TOKENIZER)
    if files[0].get("digest") != files[1]:
        raise UsageError(f"The tokenizer in {run.path} is another than that of {bundle.name}, so their tokens mean other texts.")
    found = [f"The run has the digest {run.digest}; the bundle was built from {built_from}."]
    if (name := str(run.manifest["model"]["name"])) != bundle.name:
        found.append(f"The run's model is {name}, the bundle's {bundle.name}.")
    if ours != theirs:
        found.append(f"The run is called otherwise: {theirs.to_json()}, and the bundle {ours.to_json()}.")
    kept = list(stored_of(bundle.programs, bundle.model))
    known = {weight["key"]: (weight["spec"][1], weight["digest"]) for weight in run.weights.to_records()}
    others = sum(known.get(key) != (dtype, bundle.digest_of_weight(key, dtype)) for key, dtype in kept)
    found.append(f"{others} of the bundle's {plural(len(kept), 'weight')} are not the run's bit for bit.")
    return tuple(found)


def evaluate(
    session: Session, run: RunFolder, tokens: Sequence[int], max_tokens: int | None = None, by_layer: bool = False,
    other_run: bool = False, progress: Progress | None = None,
) -> Evaluated:
    """`max_tokens` of the text are scored at most. Raises what `comparable` raises, UsageError for layers that are not to be
    compared, PromptError for a text that is too short or has tokens that the model does not have, WrongValue for logits that are
    no distribution, RunError for a damaged run; DeviceError and UnavailableError from the device."""
    tell: Progress = progress or (lambda stage, done, total: None)
    started = time.monotonic()
    bundle = session.bundle
    differing = comparable(bundle, run, other_run)
    ours, theirs = bundle.protocol, run.protocol
    assert isinstance(ours, Generating) and isinstance(theirs, Generating)
    if beyond := [token for token in tokens if not 0 <= token < ours.vocabulary]:
        raise PromptError(f"The text has token {beyond[0]}; the model's go from 0 to {ours.vocabulary - 1}.")
    longest = min(ours.max_len, theirs.max_len)
    planned = _cut(list(windows(len(tokens), longest)), max_tokens)
    total = sum(window.scored for window in planned)
    if total < 2:
        raise PromptError(f"{plural(total, 'token')} of {len(tokens)} would be scored; error bars take two. Give a longer text.")
    model = Model.of(run)
    tally, apart = Tally(), defaultdict[str, list[float]](list)
    with ExitStack() as stack:
        hybrid = Hybrid(model, model.source)
        source: Stepper = hybrid
        target: Stepper = session.stepper
        inside: tuple[SourceInside, BundleInside] | None = None
        if by_layer:
            source, target = inside = _inside(session, model, hybrid, theirs.appends, ours.appends)
            stack.callback(inside[1].close)
        for window in planned:
            begun = window.start + window.prompt
            prompt, scored = tokens[window.start : begun], tokens[begun : begun + window.scored]
            sides = (_rows(side, protocol, prompt, scored) for side, protocol in ((source, theirs), (target, ours)))
            for place, (wanted, row) in enumerate(zip(*sides, strict=True)):
                tell("evaluate", len(tally), total)
                _check(wanted, "source", begun + place)
                _check(row, "bundle", begun + place)
                tally.add(wanted, row, scored[place])
                if inside is not None:
                    for layer, values in inside[0].inside.items():
                        apart[layer].append(_distance(inside[1].inside[layer], values))
    layers = tuple(LayerError(layer, Estimate.of(values)) for layer, values in apart.items()) if by_layer else None
    spent = time.monotonic() - started
    return Evaluated(len(tokens), len(planned), longest, tally, layers, differing, spent)


def _cut(planned: Sequence[Window], most: int | None) -> list[Window]:
    """The first windows, with no more than so many scored tokens together."""
    found: list[Window] = []
    left = sum(window.scored for window in planned) if most is None else most
    for window in planned:
        if left:
            found.append(Window(window.start, window.prompt, min(window.scored, left)))
            left -= found[-1].scored
    return found


def _rows(stepper: Stepper, protocol: Generating, prompt: Sequence[int], scored: Sequence[int]) -> Iterator[HostArray]:
    """Logits [vocabulary] from which each of the scored tokens would be chosen, as they come."""
    stepper.reset()
    taking_in = sum(1 for _ in protocol.read(prompt))
    for number, call in enumerate(protocol.forced(prompt, scored[:-1]), 1):
        outputs = stepper.step(call.graph, call.inputs)
        if number >= taking_in:
            yield protocol.row(outputs)


def _check(row: HostArray, side: str, token: int) -> None:
    wide = row.astype(np.float64)
    if wrong := int((np.isnan(wide) | (wide == np.inf)).sum()):
        raise WrongValue(
            "logits",
            f"{wrong:,} of the {len(wide):,} logits of the {side} for token {token} of the text are NaN or infinite. Look for "
            "the operator that makes them: tapml health RUN --target T",
        )


def _inside(session: Session, model: Model, source: Hybrid, theirs: str, ours: str) -> tuple[SourceInside, BundleInside]:
    """Both sides, with the values at which layers end in the graph that goes on by a token."""
    bundle = session.bundle
    wanted, have = layer_ends(model, theirs), layer_ends(bundle.model, ours)
    if not have:
        raise UsageError(f"No operator of {bundle.name} is named after a layer. Leave out --by-layer.")
    sizes = [
        {layer: sum(math.prod(m.graphs[graph].specs[value].shape) for value in values) for layer, values in ends.items()}
        for m, graph, ends in ((model, theirs, wanted), (bundle.model, ours, have))
    ]
    if sizes[0] != sizes[1]:
        raise UsageError("The layers of the run are others than those of the bundle. Leave out --by-layer.")
    return SourceInside(source, model, {theirs: wanted}), BundleInside(session, {ours: have})


def _distance(have: HostArray, wanted: HostArray) -> float:
    """Relative root mean square error; 0 of nothing from nothing."""
    apart, size = float(np.linalg.norm(have - wanted)), float(np.linalg.norm(wanted))
    return apart / size if size else math.inf if apart else 0.0

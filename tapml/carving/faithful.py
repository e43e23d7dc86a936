"""Whether the exported graphs are the model: their logits, or outputs, against those of the module itself.

    compared = compare_decoder(model, exported, prompts, generated)      a Compared, or ModelError with the place
    compared = compare_module(model, exported, examples)

The export runs a decoder in another way than its author did: chunk by chunk, over a cache of fixed length. Code that counts
positions from the cache's size, or keeps a mask of its own, then computes something else without an error. So the graphs are
compared with one plain forward over the whole text, without a cache: at the end of each prefill chunk and at decode steps, for
each prompt, and for one made-up text that goes beyond one chunk and beyond a sliding window where the prompts do not.

What is rounding and what is not. In the source's dtype two right ways to sum differ, in half precision by much. Where they
differ by more than a few roundings, and for the longest text of a half precision model always, both are run again in float64:
there rounding is below 1e-10, and whatever exceeds `LIMIT` is a difference in what is computed.

Numbers. How far two rows are apart is the largest |a - b| / (|b| + mean |b|), b being the module's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from tapml.carving.executor import GraphExecutor
from tapml.errors import ModelError
from tapml.operators.carried import original
from tapml.operators.execute import tensor_from_host
from tapml.operators.graph import Graph
from tapml.operators.stays import OWN_DTYPE, is_random, sort_of_stay
from tapml.runtime.protocol import Cached, Call
from tapml.source.decoder import attention_windows
from tapml.source.eager import SEED, WIDE, EagerModule, wide_copy
from tapml.source.export import Exported
from tapml.source.model import LoadedModel
from tapml.tensors import CARRIED_AS, EPSILON, HostArray

# Beyond this share two results in float64 are not the same computation.
LIMIT = 1e-4

# So many roundings apart nobody asks again: in float32 what a long sum gives, in half precision what an operator gives.
QUICK = {"float16": 16 * EPSILON["float16"], "bfloat16": 16 * EPSILON["bfloat16"]}
QUICK_OTHER = 256 * EPSILON["float32"]

# Where no copy in float64 can be had: what is taken for rounding in the source's own dtype.
LOOSE = {"float16": 0.25, "bfloat16": 0.5}
LOOSE_OTHER = 0.02

# Decode steps of each text that are compared; the rest of its tokens are compared with those that the module would choose.
DECODES = 4

HUGE = 1e30

# A share of integers that may differ in float64, where constants that were rounded to the source's dtype tip a choice.
INTEGERS = 0.01


@dataclass(frozen=True)
class Compared:
    """`texts` (or examples) were compared, up to `positions` tokens long; the farthest were `error` apart, in `dtype`: float64
    if that was needed for any of them."""

    texts: int
    positions: int
    error: float
    dtype: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Text:
    """A text whose first `prefilled` tokens go in by prefill; `chosen` is what was generated after them."""

    tokens: tuple[int, ...]
    prefilled: int
    chosen: tuple[int, ...] = ()

    def rows(self, shape: Cached, decodes: int) -> list[int]:
        ends = [min(start + shape.chunk, self.prefilled) - 1 for start in range(0, self.prefilled, shape.chunk)]
        return ends + list(range(self.prefilled, min(len(self.tokens), self.prefilled + decodes)))


def compare_decoder(
    model: LoadedModel, exported: Exported, prompts: Sequence[Sequence[int]], generated: Sequence[Sequence[int]]
) -> Compared:
    """`generated` are the greedy tokens of the graphs for each prompt. Raises ModelError where the graphs are not the model."""
    shape = exported.protocol
    assert isinstance(shape, Cached)
    drawn = next((node for graph in exported.graphs for node in graph.nodes if is_random(node)), None)
    if drawn is not None:
        raise ModelError(
            f"{type(model.module).__name__} draws random numbers ({drawn.target}, {drawn.source}), different ones over a "
            "cache than over a whole text, so its exported graphs cannot be compared with it. Remove that from what is carved, "
            "or carve one forward pass: a module that calls it with use_cache=False, from FILE.py:FUNCTION."
        )
    return _Decoder(model, exported, shape).compare([
        _Text((*prompt, *tokens[:-1]), len(prompt), tuple(tokens)) for prompt, tokens in zip(prompts, generated, strict=True)
    ])


class _Decoder:
    def __init__(self, model: LoadedModel, exported: Exported, shape: Cached) -> None:
        self.model, self.exported, self.shape = model, exported, shape
        self.own = EagerModule(model)
        self.states = {**exported.states, **exported.initial}
        self.graphs = GraphExecutor.uncut(exported.graphs, exported.tensors, self.states)

    @cached_property
    def exact(self) -> EagerModule | None:
        return None if self.exported.has_own_code else wide_copy(self.model)

    def compare(self, prompts: Sequence[_Text]) -> Compared:
        longest = max(len(text.tokens) for text in prompts)
        beyond = self._long_text(longest)
        texts = [*prompts, *([] if beyond is None else [beyond])]
        half = self.model.dtype != "float32"
        last = max(range(len(texts)), key=lambda k: len(texts[k].tokens))
        found: dict[str, float] = {}
        for k, text in enumerate(texts):
            near, dtype = self._quick(text), self.model.dtype
            if near is None or (half and k == last):
                near, dtype = self._settle(text)
            found[dtype] = max(found.get(dtype, 0.0), near)
        decided = "float64" if "float64" in found else self.model.dtype
        return Compared(len(texts), max(len(text.tokens) for text in texts), found[decided], decided)

    def _long_text(self, longest: int) -> _Text | None:
        """A text beyond one chunk and beyond a sliding window, as far as the cache allows; None where the prompts are."""
        config = getattr(self.model.module, "config", None)
        window = max(attention_windows(self.model.module), default=0)
        chunk = self.shape.chunk
        wanted = min(max(2 * chunk + chunk // 2 + 1, window + chunk + 1) + DECODES, self.shape.max_len)
        if wanted <= longest or wanted <= DECODES:
            return None
        special = {getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        special |= set(self.shape.stop)
        plain = [token for token in range(min(self.shape.vocabulary, 4096)) if token not in special]
        draw = torch.randint(0, len(plain), (wanted,), generator=torch.Generator().manual_seed(0)).tolist()
        return _Text(tuple(plain[k] for k in draw), wanted - DECODES)

    def _quick(self, text: _Text) -> float | None:
        """How far graphs and module are apart in the source's dtype; None where that is more than a few roundings, or the tokens
        would be others."""
        limit = QUICK.get(self.model.dtype, QUICK_OTHER)
        rows = text.rows(self.shape, DECODES)
        first = text.prefilled - 1
        chosen = list(range(first, first + len(text.chosen)))
        own = self._module_logits(self.own, text, [*rows, *chosen])
        far = _farthest(self._graph_logits(self.graphs, text, DECODES), own[: len(rows)])
        for row, token in zip(own[len(rows) :], text.chosen, strict=True):
            best = row[int(row.argmax())]
            if not bool(best - row[token] <= 2 * limit * (best.abs() + row.abs().mean())):
                return None
        return far if far <= limit else None

    def _settle(self, text: _Text) -> tuple[float, str]:
        """How far they are apart in float64, or in the source's dtype where that cannot be had; and which. Raises ModelError."""
        every = len(text.tokens)
        rows = text.rows(self.shape, every)
        graph = self._graph_logits(self.graphs, text, every)
        exact = self.exact
        if exact is not None:
            try:
                wanted = self._module_logits(exact, text, rows)
                weights = _weights(self.exported, exact)
                wide = GraphExecutor.uncut(self.exported.graphs, weights, self.states, dtype=WIDE)
                got = self._graph_logits(wide, text, every)
            except ModelError:
                raise
            except Exception:
                # The module's code may insist on its own dtype, in its own way.
                exact = None
        if exact is None:
            wanted, got, limit = self._module_logits(self.own, text, rows), graph, LOOSE.get(self.model.dtype, LOOSE_OTHER)
        else:
            limit = LIMIT
        far = _farthest(got, wanted)
        dtype = self.model.dtype if exact is None else "float64"
        if far <= limit or (exact is not None and self._only_constants(text, rows, far, graph, got)):
            return far, dtype
        raise self._refusal(text, rows, got, wanted, limit, exact)

    def _only_constants(
        self, text: _Text, rows: list[int], far: float, graph: torch.Tensor, got: torch.Tensor
    ) -> bool:
        """Whether all that differs is a constant that the half precision model rounds and its copy in float64 does not: then the
        graphs agree with the module in its own dtype as well as rounding lets them."""
        if self.model.dtype == "float32" or far > 16 * EPSILON[self.model.dtype]:
            return False
        return _farthest(graph, self._module_logits(self.own, text, rows)) <= 2 * _farthest(graph, got)

    def _module_logits(self, module: EagerModule, text: _Text, rows: list[int]) -> torch.Tensor:
        return module.logits(text.tokens, rows)

    def _graph_logits(self, graphs: GraphExecutor, text: _Text, decodes: int) -> torch.Tensor:
        graphs.reset()
        rows = [
            graphs.step_tensors(c.graph, _tensors(c.inputs, graphs.device))[self.shape.chooses].reshape(-1)
            for c in self._calls(text, decodes)
        ]
        return torch.stack([row.to("cpu", WIDE) for row in rows])

    def _calls(self, text: _Text, decodes: int) -> list[Call]:
        return list(self.shape.forced(text.tokens[: text.prefilled], text.tokens[text.prefilled :][:decodes]))

    def _refusal(
        self, text: _Text, rows: list[int], got: torch.Tensor, wanted: torch.Tensor, limit: float, exact: EagerModule | None
    ) -> ModelError:
        name = type(self.model.module).__name__
        number = next(k for k in range(len(rows)) if not _farthest(got[k : k + 1], wanted[k : k + 1]) <= limit)
        far = _farthest(got[number : number + 1], wanted[number : number + 1])
        module = exact or self.own
        what = (
            f"The exported graphs do not compute what {name} itself computes: after {rows[number] + 1} tokens their logits are "
            f"{far:.2g} apart (rounding is below {limit:g})"
        )
        if self._counts_otherwise(module, text, rows, got, limit):
            return ModelError(
                f"{what}. The module's own forward does not count positions as 0, 1, 2, … (RoBERTa and its relatives start "
                "after the padding token's id), but a step over a cache, and generate(), pass those: its two ways of running "
                "disagree. Carve one forward pass instead: a module that calls it with use_cache=False, from FILE.py:FUNCTION."
            )
        place = self._place(module, text, number, limit)
        return ModelError(
            f"{what}{place}. Its code does not work with a cache of fixed length that is filled step by step. Carve one forward "
            "pass instead: a module that calls it with use_cache=False, from FILE.py:FUNCTION."
        )

    def _counts_otherwise(self, module: EagerModule, text: _Text, rows: list[int], got: torch.Tensor, limit: float) -> bool:
        positions = torch.arange(len(text.tokens), device=module.device)[None]
        try:
            again = module.logits(text.tokens, rows, position_ids=positions)
        except Exception:
            # Not every module takes positions.
            return False
        return _farthest(got, again) <= limit

    def _place(self, module: EagerModule, text: _Text, number: int, limit: float) -> str:
        """Where values part in call `number`: ", first in prefill/layers.1.attn"; "" where no module can be named."""
        calls = self._calls(text, len(text.tokens))
        call = calls[number]
        seen: list[tuple[str, torch.Tensor | None, torch.Tensor]] = []
        module.logits(text.tokens, [len(text.tokens) - 1], lambda path, given, made: seen.append((path, given, made)))
        graph = next(g for g in self.exported.graphs if g.name == call.graph)
        watched = _watched(graph)
        others = [watched if g is graph else g for g in self.exported.graphs]
        weights = self.exported.tensors if module.dtype is None else _weights(self.exported, module)
        stepper = GraphExecutor.uncut(others, weights, self.states, dtype=module.dtype)
        for earlier in calls[:number]:
            stepper.step_tensors(earlier.graph, _tensors(earlier.inputs, stepper.device))
        values = stepper.step_tensors(call.graph, _tensors(call.inputs, stepper.device))
        window = slice(call.position, call.position + call.tokens)
        count = len(text.tokens)

        def cropped(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None or tensor.dim() < 2 or tensor.shape[1] != count else tensor[:, window]

        parts = [(path, cropped(given), cropped(made)) for path, given, made in seen]
        length = 1 if call.graph == self.shape.appends else self.shape.chunk
        graph_values = {
            key: value[:, : call.tokens] for key, value in values.items() if value.dim() >= 2 and value.shape[1] == length
        }
        found = _first_apart(graph, graph_values, parts, limit)
        return f", first in {call.graph}/{found}" if found else ""


def compare_module(model: LoadedModel, exported: Exported, examples: Sequence[Mapping[str, HostArray]]) -> Compared:
    """`examples` are inputs by the keys of the graph's inputs. Raises ModelError where the graph is not the module."""
    states = {**exported.states, **exported.initial}
    own = EagerModule(model)
    graphs = GraphExecutor.uncut(exported.graphs, exported.tensors, states, seeded=False)
    limit = QUICK.get(model.dtype, QUICK_OTHER)
    worst, dtype = 0.0, model.dtype
    for example in examples:
        given = _tensors(example, graphs.device)
        inputs = _rebuilt(model.example_inputs, given)
        graphs.reset()
        wanted = own.outputs(inputs)
        # Twice: what it keeps outside of its buffers may show in the second answer alone.
        if _outputs_apart(own.outputs(inputs), wanted, 0.0) > limit:
            raise ModelError(
                f"{type(model.module).__name__} gives another answer each time that it is called with the same inputs: it "
                "keeps state outside of its buffers, or draws random numbers. Remove that from what is carved."
            )
        got = _outputs(graphs, given)
        far = _outputs_apart(got, wanted, 0.0)
        if far > limit:
            far, dtype = _settle_module(model, exported, inputs, given, got, wanted)
        worst = max(worst, far)
    return Compared(len(examples), 0, worst, dtype)


def _outputs(graphs: GraphExecutor, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the one graph of a module, which draws what the module draws (`EagerModule`)."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return graphs.step_tensors(graphs.graphs[0].name, given)


def _settle_module(
    model: LoadedModel, exported: Exported, inputs: dict[str, Any], given: dict[str, torch.Tensor],
    got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor],
) -> tuple[float, str]:  # fmt: skip
    (graph,) = exported.graphs
    states = {**exported.states, **exported.initial}
    # What reads bits, draws numbers or is the model's own code does something else in float64.
    own_dtype = any(sort_of_stay(node, ()) in OWN_DTYPE for node in graph.nodes)
    exact = None if own_dtype else wide_copy(model)
    limit, allowed, dtype = LIMIT, INTEGERS, "float64"
    module = exact
    if exact is not None:
        try:
            wanted = exact.outputs(inputs)
            wide = GraphExecutor.uncut(exported.graphs, _weights(exported, exact), states, dtype=WIDE)
            got = _outputs(wide, given)
        except ModelError:
            raise
        except Exception:
            # The module's code may insist on its own dtype, in its own way.
            module = None
    if module is None:
        module, limit, allowed, dtype = EagerModule(model), LOOSE.get(model.dtype, LOOSE_OTHER), INTEGERS, model.dtype
    far = _outputs_apart(got, wanted, allowed)
    if far <= limit:
        return far, dtype
    if exported.notes:
        raise ModelError(
            f"The exported graph does not compute what {type(model.module).__name__} itself computes: its outputs are {far:.2g} "
            f"apart (rounding is below {limit:g}). In this model {exported.notes[0]}. Give inputs that do."
        )
    seen: list[tuple[str, torch.Tensor | None, torch.Tensor]] = []
    module.outputs(inputs, lambda path, given, made: seen.append((path, given, made)))
    weights = exported.tensors if module.dtype is None else _weights(exported, module)
    watched = GraphExecutor.uncut([_watched(graph)], weights, states, dtype=module.dtype, seeded=False)
    found = _first_apart(graph, _outputs(watched, given), seen, limit)
    raise ModelError(
        f"The exported graph does not compute what {type(model.module).__name__} itself computes: its outputs are {far:.2g} "
        f"apart (rounding is below {limit:g}){f', first in {found}' if found else ''}. Look at what this code does differently "
        "when it is traced (torch.compiler.is_exporting, state outside of buffers)."
    )


def _watched(graph: Graph) -> Graph:
    """The graph with the results of all its nodes among its outputs, by name, but for those that only the source has."""
    names = [node.name for node in graph.nodes if len(node.outputs) == 1 and node.outputs[0].dtype not in CARRIED_AS]
    return replace(graph, outputs=(*graph.outputs, *names), output_keys=(*graph.output_keys, *names))


def _first_apart(
    graph: Graph, values: Mapping[str, torch.Tensor],
    parts: Sequence[tuple[str, torch.Tensor | None, torch.Tensor | None]], limit: float,
) -> str:  # fmt: skip
    """The first module whose output is no value of the graph's nodes of that module. If what it was given is none either, the
    trouble is in the code before it."""
    paths = {node.name: node.module for node in graph.nodes}

    def is_there(tensor: torch.Tensor, path: str | None) -> bool:
        for name, value in values.items():
            inside = path is None or paths.get(name, "") == path or paths.get(name, "").startswith(path + ".")
            alike = value.shape == tensor.shape and value.dtype == tensor.dtype
            if inside and alike and _tensors_apart(value.cpu(), tensor.cpu()) <= limit:
                return True
        return False

    known = {prefix for path in paths.values() for prefix in _prefixes(path)}
    given_away = {name for name in values if name not in paths}
    for path, given, made in parts:
        if not path or made is None or path not in known or is_there(made, path) or (given_away and is_there(made, None)):
            continue
        around = path.rpartition(".")[0]
        if given is not None and around and given.is_floating_point() and not is_there(given, None):
            return f"{around} (before its {path.rpartition('.')[2]})"
        return path
    return ""


def _prefixes(path: str) -> list[str]:
    words = path.split(".")
    return [".".join(words[: k + 1]) for k in range(len(words))]


def _weights(exported: Exported, exact: EagerModule) -> dict[str, torch.Tensor]:
    """The graphs' weights in the dtype of the copy, and its own tensors where it has them: no second copy."""
    found = dict(exact.module.named_parameters(remove_duplicate=False)) | dict(exact.module.named_buffers(remove_duplicate=False))
    weights = {}
    for key, tensor in exported.tensors.items():
        own = found.get(key)
        if own is not None and own.shape == tensor.shape:
            weights[key] = own.detach()
        else:
            weights[key] = tensor.to(WIDE) if tensor.is_floating_point() else tensor
    return weights


def _tensors(arrays: Mapping[str, HostArray], device: torch.device) -> dict[str, torch.Tensor]:
    return {key: tensor_from_host(array, device) for key, array in arrays.items()}


def _rebuilt(inputs: Mapping[str, Any], given: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, Any]:
    """The keyword arguments of a call with the tensors of `given` in their places; see `tapml.source.export.flat_outputs`."""

    def put(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return original(given[path], value.dtype) if path in given else value
        if isinstance(value, Mapping):
            return {key: put(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [put(item, f"{path}.{k}") for k, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return value

    return {key: put(value, key) for key, value in inputs.items()}


def _outputs_apart(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], integers: float) -> float:
    """The farthest pair of outputs; integers and booleans count as infinitely far if more than this share differs."""
    worst = 0.0
    for key, value in wanted.items():
        other = got[key].cpu()
        if other.shape != value.shape:
            return float("inf")
        if not value.is_floating_point():
            differ = float((other != value).double().mean()) if value.numel() else 0.0
            worst = max(worst, float("inf") if differ > integers else 0.0)
        else:
            worst = max(worst, _tensors_apart(other, value))
    return worst


def _farthest(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return max((_tensors_apart(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)


def _tensors_apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The unit of the module's docstring, in float64. NaN and infinities must stand where the module has them; what masks with
    the largest number of its dtype counts as infinite, since that number is another in float64."""
    a, b = (torch.where(t.abs() > HUGE, t.sign() * float("inf"), t) for t in (got.to(WIDE), wanted.to(WIDE)))
    if not b.numel():
        return 0.0
    finite = a.isfinite() & b.isfinite()
    same = finite | (a.isnan() & b.isnan()) | (a == b)
    if not bool(same.all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    a, b = a[finite], b[finite]
    scale = b.abs() + b.abs().mean()
    return float(torch.where(a == b, 0.0, (a - b).abs() / scale).max())

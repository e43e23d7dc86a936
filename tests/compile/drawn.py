"""Single calls of PyTorch's operators, drawn at random, and what becomes of them on a target.

    for call in draw(seed, 100): outcome = tried(call, Bench("opencl"))

The calls are PyTorch's own samples (`op_db`, what it tests its operators with: some 600 operators, shapes of all sorts, most
arguments that they have) in the dtypes that TapML carries. In a part of them special values are planted: NaN, infinities, zeros
of both signs, and numbers that are large or small for the dtype.

A call is exported, cut, recorded, compiled and judged as a model is. So it is "right" (each operator passes, and enough of it was
compared), "unchecked" (the source cannot decide most of it), "refused" (with a reason, before anything ran) or "wrong".
Anything else that comes out is a fault of TapML: "crash".
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tapml.carving.executor import GraphExecutor
from tapml.carving.reference import ReferenceMaker
from tapml.compile.build import build
from tapml.compile.importer import ConversionError
from tapml.compile.schedules import ScheduleFailure
from tapml.errors import DoesNotFit, ModelError, first_line
from tapml.limits import LimitError
from tapml.migrate.judging import Coverage, judged
from tapml.operators.cut import cut
from tapml.operators.execute import host_from_tensor
from tapml.operators.from_fx import graph_from_exported
from tapml.operators.graph import Body, Operator
from tapml.source.export import flat_outputs
from tapml.source.trace import trace
from tapml.tensors import HostArray, convert
from tests.compile.bodies import opened

# How often each dtype is drawn.
DTYPES = {
    torch.float32: 40, torch.float16: 12, torch.bfloat16: 10, torch.int64: 12, torch.int32: 8, torch.bool: 6, torch.uint8: 4,
    torch.int8: 4, torch.int16: 4,
}
PLANTED = 0.3  # of the calls
SAMPLES = 24  # of an operator and a dtype; some have thousands
LARGEST = 200_000  # elements of all tensors of a call
SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 0.5, 70000.0, -1e5, 2.0**24 + 2)
STATES = ("right", "unchecked", "refused", "wrong", "crash")  # from good to bad
REFUSALS = (ConversionError, LimitError, ScheduleFailure, DoesNotFit)


@dataclass(frozen=True, eq=False)
class Drawn:
    """`function` over `tensors`, which gives a tensor or several. `text` says what it is, for a person."""

    name: str
    text: str
    function: Callable[..., Any]
    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Outcome:
    """`state`: "right", "unchecked", "refused", "wrong" or "crash"; `detail`: why; `operators`: the ATen calls in it."""

    state: str
    detail: str = ""
    operators: tuple[str, ...] = field(default=())


class Bench:
    """A target on this machine's device. Raises UnavailableError where there is none."""

    def __init__(self, target: str) -> None:
        self.target, self.runner = opened(target)


@cache
def operators() -> dict[str, Any]:
    """PyTorch's descriptions of its operators by name, with the variant after a dot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {f"{op.name}{'.' + op.variant_test_name if op.variant_test_name else ''}": op for op in op_db}


def draw(seed: int, count: int, names: Sequence[str] = ()) -> Iterator[Drawn]:
    """`count` calls; `names` are the operators that they are drawn from (default: all)."""
    chance = random.Random(seed)
    pool = [name for name in operators() if not names or name in names]
    while count:
        drawn = _drawn(chance, chance.choice(pool))
        if drawn is not None:
            count -= 1
            yield drawn


def _drawn(chance: random.Random, name: str) -> Drawn | None:
    """One call, or None where PyTorch does not take what was drawn, gives no tensors, or another result each time."""
    op = operators()[name]
    dtypes = [d for d in DTYPES if d in op.supported_dtypes("cpu")]
    if not dtypes:
        return None
    (dtype,) = chance.choices(dtypes, [DTYPES[d] for d in dtypes])
    torch.manual_seed(chance.randrange(2**31))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            sample = chance.choice(list(islice(op.sample_inputs("cpu", dtype), SAMPLES)))
            leaves, tree = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
            planted = chance.random() < PLANTED
            tensors = tuple(_given(chance, leaves[k], planted and k == places[0]) for k in places)
            if sum(t.numel() for t in tensors) > LARGEST:
                return None

            def function(*given: torch.Tensor) -> Any:
                filled = list(leaves)
                for k, tensor in zip(places, given, strict=True):
                    filled[k] = tensor
                x, args, kwargs = pytree.tree_unflatten(filled, tree)
                return op.op(x, *args, **kwargs)

            before = [t.clone() for t in tensors]
            results = [pytree.tree_leaves(function(*(t.clone() for t in before))) for _ in range(2)]
            one, other = ([_plain(t) for t in found if isinstance(t, torch.Tensor)] for found in results)
            if not one or len(one) != len(other) or not all(map(_same, one, other)):
                return None
    except Exception:
        return None  # PyTorch's own refusal of what was planted, or a library that is missing
    shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors)
    rest = [leaf for k, leaf in enumerate(leaves) if k not in places]
    words = f"{name}({shapes}; {rest})" + (" with special values" if planted else "")
    return Drawn(name, words[:400], function, tensors)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs."""
    return torch.view_as_real(tensor.resolve_conj().to(torch.complex64)) if tensor.is_complex() else tensor


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _given(chance: random.Random, tensor: torch.Tensor, planted: bool) -> torch.Tensor:
    """The tensor on its own, contiguous, with special values in it where they are planted and it holds floats."""
    made = tensor.detach().clone().contiguous()
    if not planted or not made.is_floating_point() or not made.numel():
        return made
    info, flat = torch.finfo(made.dtype), made.view(-1)
    special = [*SPECIAL, info.max, info.tiny]
    for _ in range(max(1, made.numel() // 5)):
        flat[chance.randrange(made.numel())] = chance.choice(special)
    return made


class _Call(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, **tensors: torch.Tensor) -> list[torch.Tensor]:
        return list(flat_outputs(self._function(*tensors.values())).values())


def tried(drawn: Drawn, bench: Bench) -> Outcome:
    """What becomes of the call on the target: the worst of its operators. Raises nothing but what ends a process."""
    try:
        module = _Call(drawn.function).eval()
        found = [outcome for _, outcome in tried_module(module, {f"t{k}": t for k, t in enumerate(drawn.tensors)}, bench)]
    except ModelError as error:
        return Outcome("refused", first_line(error)[:300])
    except Exception as error:
        return Outcome("crash", f"{type(error).__name__}: {first_line(error)[:300]}")
    names = tuple(dict.fromkeys(name for outcome in found for name in outcome.operators))
    worst = max(found, key=lambda outcome: STATES.index(outcome.state), default=Outcome("right"))
    return Outcome(worst.state, worst.detail, names)


def tried_module(
    module: torch.nn.Module, given: dict[str, torch.Tensor], bench: Bench, done: set[str] | None = None
) -> Iterator[tuple[Body, Outcome]]:
    """Each operator of a module called with these keyword arguments, and what becomes of it; those whose signature is in `done`
    are left out, and those that were tried are added. Raises ModelError where the module cannot be exported or cut."""
    done = set() if done is None else done
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = trace(module, given, [])
        outputs = tuple(f"o{k}" for k in range(len(pytree.tree_leaves(module(**given)))))
    graph, weights = graph_from_exported("call", program, module, tuple(given), outputs)
    cuts, bodies = cut(graph)
    for operator, inputs, outputs_ in _recorded(graph, cuts, bodies, weights, given):
        if operator.signature not in done:
            done.add(operator.signature)
            yield bodies[operator.signature], _outcome(bodies[operator.signature], inputs, outputs_, bench)


def _recorded(graph: Any, cuts: Any, bodies: Any, weights: Any, given: Any) -> list[tuple[Operator, Any, Any]]:
    calls: list[tuple[Operator, Any, Any]] = []

    def hook(operator: Operator, inputs: Any, outputs: Any) -> None:
        calls.append((operator, [host_from_tensor(t.clone()) for t in inputs], [host_from_tensor(t.clone()) for t in outputs]))

    executor = GraphExecutor([graph], cuts, bodies, weights, {p.key: p.spec for p in graph.states}, hook)
    executor.step_tensors(graph.name, given)
    return calls


def _outcome(body: Body, inputs: Sequence[HostArray], outputs: Sequence[HostArray], bench: Bench) -> Outcome:
    names = tuple(dict.fromkeys(n.target for n in body.nodes if n.target != "getitem"))
    try:
        references = ReferenceMaker(body).on_host(inputs, outputs)
        program = _program(body, bench)
        made = bench.runner.run_once(program, inputs, poison=True)
        actual = [_whole(a.reshape(r.values.shape), r.dtype) for a, r in zip(made, references, strict=True)]
        found = judged(actual, references)
        bad = next((c for c in found if not c.passed), None)
        if bad is not None:
            return Outcome("wrong", f"{body.kind}: {bad.describe()}"[:300], names)
        coverage = Coverage()
        coverage.add(found, inputs, references, body)
        hollow = coverage.hollow()
        return Outcome("unchecked" if hollow else "right", hollow, names)
    except REFUSALS as error:
        return Outcome("refused", f"{body.kind}: {first_line(error)}"[:300], names)
    except Exception as error:
        return Outcome("crash", f"{body.kind}: {type(error).__name__}: {first_line(error)}"[:300], names)


def _whole(stored: HostArray, dtype: str) -> HostArray:
    """What a device stores in another dtype, back in its own; integers stay as they are stored, for their range to be judged."""
    return stored if dtype.startswith(("int", "uint")) else convert(stored, dtype)


def _program(body: Body, bench: Bench) -> Any:
    """As the compiler does: the target's schedules in order until one works."""
    for schedule in bench.target.schedules:
        try:
            return build(body, bench.target, schedule, lambda stage: None)
        except ScheduleFailure as error:
            last = error
    raise last

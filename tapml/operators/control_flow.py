"""Control flow of a traced program written out, so that a graph is one list of calls.

    graph = written_out(program.graph_module)         a torch.fx.Graph; the program's own where nothing is to be done

`cond` computes both branches and chooses; `map` and `scan` are written out step by step, up to `MOST_STEPS`; programs within a
program (checkpoints, contexts) stand where they are called. What stays as it is: `while_loop`, which repeats as long as the data
say, longer maps and scans (`tapml.operators.loops` runs these), and calls that are not known here.

A branch that is not taken is computed all the same, and nothing of it reaches the result. Names of nodes that were there before
stay.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Steps of one map or scan that are written out.
MOST_STEPS = 256


def written_out(module: torch.fx.GraphModule) -> torch.fx.Graph:
    """Nodes carry what they carried (`meta`), new ones their `val`."""
    if not any(_known(node) for node in module.graph.nodes):
        return module.graph
    graph = torch.fx.Graph()
    written = _Writer(graph, module)
    written.output(written.copy(module, "", "", None))
    return graph


def _known(node: torch.fx.Node) -> bool:
    name = higher_order(node)
    if name in ("map_impl", "scan"):
        return bool(node.args[-2][0].meta["val"].shape[0] <= MOST_STEPS)
    return name in (*_RULES, *_WRAPPERS)


def higher_order(node: torch.fx.Node) -> str:
    """What PyTorch calls this call of control flow; "" for any other node."""
    return node.target.name() if isinstance(node.target, torch._ops.HigherOrderOperator) else ""


class _Writer:
    """Copies programs into one graph, those that are called in the place of the call."""

    def __init__(self, graph: torch.fx.Graph, module: torch.fx.GraphModule) -> None:
        self.graph = graph
        self.module = module
        self.calls = 0

    def output(self, values: Any) -> None:
        self.graph.output(values)

    def copy(self, module: torch.fx.GraphModule, path: str, prefix: str, given: Sequence[Any] | None) -> Any:
        """What the program `module`, at `path` in the whole, returns with `given` as its inputs (None: inputs of the whole)."""
        known: dict[torch.fx.Node, Any] = {}
        inputs = iter(given or ())
        for node in module.graph.nodes:
            if node.op == "placeholder" and given is not None:
                known[node] = next(inputs)
            elif node.op == "output":
                return pytree.tree_map_only(torch.fx.Node, known.__getitem__, node.args[0])
            elif node.op == "get_attr" and node.users and all(map(_known, node.users)):
                continue  # a program
            elif _known(node):
                known[node] = self._called(node, module, path, known)
            elif node.op == "call_function" and node.target is operator.getitem and isinstance(known[node.args[0]], list | tuple):
                value = known[node.args[0]][node.args[1]]
                if isinstance(value, torch.fx.Node):  # under the name by which outputs know it
                    value = self.call(node, f"{prefix}{node.name}", torch.ops.aten.alias.default, (value,), node.meta["val"])
                known[node] = value
            else:
                target = f"{path}{node.target}" if node.op == "get_attr" else node.target
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
                made = self.graph.create_node(node.op, target, args, kwargs, f"{prefix}{node.name}", node.type)
                made.meta = dict(node.meta)
                known[node] = made
        raise ValueError("a program has no output")

    def _called(self, node: torch.fx.Node, module: torch.fx.GraphModule, path: str, known: dict[torch.fx.Node, Any]) -> Any:
        """What a call of control flow gives: a list of values."""
        self.calls += 1
        prefix = f"{node.name}_{self.calls}_"

        def program(which: torch.fx.Node, given: Sequence[Any], part: str = "") -> list[Any]:
            inner = getattr(module, str(which.target))
            made = self.copy(inner, f"{path}{which.target}.", f"{prefix}{part}", given)
            return list(made) if isinstance(made, list | tuple) else [made]

        rule = _RULES.get(higher_order(node), _wrapped)
        programs = [a for a in node.args if isinstance(a, torch.fx.Node) and a.op == "get_attr"]
        rest = [torch.fx.map_arg(a, known.__getitem__) for a in node.args if a not in programs]
        return rule(_Call(self, node, prefix, programs, rest, program))

    def call(self, like: torch.fx.Node, name: str, function: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.fx.Node:
        """One more call, which stands where `like` stands in the model."""
        made = self.graph.create_node("call_function", function, args, {}, name)
        made.meta = {**{key: like.meta[key] for key in ("stack_trace", "nn_module_stack") if key in like.meta}, "val": value}
        return made


class _Call:
    """A call of control flow: its programs, its other arguments as values of the new graph, and `run(program, inputs, part)`."""

    def __init__(
        self, writer: _Writer, node: torch.fx.Node, prefix: str, programs: list[torch.fx.Node], rest: list[Any],
        run: Callable[..., list[Any]],
    ) -> None:  # fmt: skip
        self.writer, self.node, self.prefix, self.programs, self.rest, self.run = writer, node, prefix, programs, rest, run
        self.results = node.meta["val"]

    def call(self, part: str, function: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.fx.Node:
        return self.writer.call(self.node, f"{self.prefix}{part}", function, args, value)

    def rows(self, values: Sequence[torch.fx.Node], step: int) -> list[torch.fx.Node]:
        """Row `step` of each value."""
        select = torch.ops.aten.select.int
        return [self.call(f"{step}_row{k}", select, (v, 0, step), v.meta["val"][step]) for k, v in enumerate(values)]

    def stacked(self, rows: Sequence[Sequence[Any]], results: Sequence[Any]) -> list[Any]:
        """The rows of each step, joined to one value for each place."""
        joined = zip(zip(*rows, strict=True), results, strict=True)
        return [self.call(f"all{k}", torch.ops.aten.stack.default, (list(r), 0), value) for k, (r, value) in enumerate(joined)]


def _cond(call: _Call) -> list[Any]:
    chosen, given = call.rest
    yes, no = (call.run(program, given, part) for program, part in zip(call.programs, ("if_", "else_"), strict=True))
    made = []
    for k, (a, b, value) in enumerate(zip(yes, no, call.results, strict=True)):
        made.append(a if a is None else call.call(f"chosen{k}", torch.ops.aten.where.self, (chosen, a, b), value))
    return made


def _map(call: _Call) -> list[Any]:
    given, more = call.rest
    steps = range(given[0].meta["val"].shape[0])
    rows = [call.run(call.programs[0], [*call.rows(given, step), *more], f"{step}_") for step in steps]
    return call.stacked(rows, call.results)


def _scan(call: _Call) -> list[Any]:
    state, given, more = (list(values) for values in call.rest)
    count, rows = len(state), []
    for step in range(given[0].meta["val"].shape[0]):
        made = call.run(call.programs[0], [*state, *call.rows(given, step), *more], f"{step}_")
        state = made[:count]
        rows.append(made[count:])
    return [*state, *call.stacked(rows, call.results[count:])]


def _wrapped(call: _Call) -> list[Any]:
    """A program that is called as it is; whatever else its arguments are, its inputs are the last."""
    inner = getattr(call.writer.module, str(call.programs[0].target))
    count = sum(node.op == "placeholder" for node in inner.graph.nodes)
    flat = [v for v in pytree.tree_leaves(call.rest) if isinstance(v, torch.fx.Node)]
    return call.run(call.programs[0], flat[len(flat) - count :])


_RULES: dict[str, Callable[[_Call], list[Any]]] = {"cond": _cond, "map_impl": _map, "scan": _scan}
_WRAPPERS = ("tag_activation_checkpoint", "wrap_with_set_grad_enabled", "wrap_with_autocast", "hints_wrapper", "invoke_subgraph")

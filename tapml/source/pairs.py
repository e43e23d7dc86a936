"""Complex numbers in a traced program, written as pairs of real ones, so that every operator of the graph is a real one.

    in_pairs(program)           changes the program: no complex value is left, but for calls that cannot be written so

A complex value becomes two real ones, its real and its imaginary part; each call that takes or gives complex values becomes what
`tapml.source.pair_rules` makes of it. Where complex values go in and out of the program (inputs, weights, states, outputs) they
are tensors with a last axis more, of the real and the imaginary part: what `torch.view_as_real` gives, see
`tapml.operators.carried`.

A call that has no rule stays as it is: it gets complex tensors, and what it gives is taken apart again; its operator stays on the
source (`tapml.operators.stays`).
The nodes that a call becomes carry its module and its line. Constants (the tables of Fourier transforms) become
attributes of the program's module.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tapml.source.complex_numbers import Pair, as_real
from tapml.source.fourier import FOURIER
from tapml.source.pair_rules import in_reals

# Metadata that a node hands on to what it becomes.
_KEPT = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")


def in_pairs(program: torch.export.ExportedProgram) -> None:
    """Rewrites the program in place. Does nothing to one without complex numbers."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    given = [node for node in program.graph.nodes if node.op == "placeholder" and _is_complex(node.meta.get("val"))]
    if given or any(_is_concerned(node) for node in calls):
        _Rewriting(program).run(given, calls)


def _is_complex(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.is_complex() for leaf in pytree.tree_leaves(value))


def _is_concerned(node: Any) -> bool:
    """Whether a call takes or gives complex tensors, on its way or at its ends."""
    if _is_complex(node.meta.get("val")) or any(_is_complex(read.meta.get("val")) for read in node.all_input_nodes):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.partition("::")[2] in FOURIER


class _Rewriting:
    """`parts` has the pair (of nodes) of each complex value so far, or a list of pairs; `faces` that of each real value which is
    a pair seen as one tensor, so that taking a part of it is the part. `instead` names what stands for a node now."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.graph = program.graph
        self.parts: dict[Any, Any] = {}
        self.faces: dict[Any, Pair] = {}
        self.instead: dict[str, str] = {}
        values = [node.meta.get("val") for node in self.graph.nodes]
        self.recorder = _Recorder(program.graph_module, detect_fake_mode(pytree.tree_leaves(values)))

    def run(self, given: list[Any], calls: list[Any]) -> None:
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        for node in given:
            with self.recorder.fake:
                node.meta["val"] = torch.view_as_real(node.meta["val"].resolve_conj())
            with self.recorder.at(first, next(iter(node.users), node)):
                self.parts[node] = self._taken_apart(node)
        written = []
        for node in calls:
            if getattr(node.target, "__name__", "").startswith("_assert") and _is_concerned(node):
                self.graph.erase_node(node)
                continue
            if self._of_face(node) or ((_is_concerned(node) or self._reads(node)) and self._rewrite(node)):
                written.append(node)
        self._outputs()
        for node in reversed(written):
            self.graph.erase_node(node)

    def _reads(self, node: Any) -> bool:
        return any(read in self.parts for read in node.all_input_nodes)

    def _of_face(self, node: Any) -> bool:
        """Calls on a pair that is seen as one tensor: views that the parts are by themselves."""
        aten = torch.ops.aten
        face = self.faces.get(node.args[0]) if node.args and isinstance(node.args[0], torch.fx.Node) else None
        if node.target is aten._neg_view.default:
            node.target = aten.neg.default
        if face is None:
            return False
        if node.target is aten.neg.default:
            with self.recorder.at(node.next, node):
                negative = [-self.recorder.value_of(part) for part in (face.re, face.im)]
                self.faces[node] = self.recorder.nodes_of(Pair(*negative))
            return False
        if node.target is aten.select.int and node.args[1] in (-1, node.meta["val"].dim()):
            self._replace(node, (face.re, face.im)[node.args[2]])
            return True
        if node.target is aten.view_as_complex.default:
            self.parts[node] = face
            return True
        return False

    def _rewrite(self, node: Any) -> bool:
        """Whether the call could be written in reals; otherwise it gets complex tensors as before."""
        if node.target is operator.getitem:
            if node.args[0] not in self.parts:
                return False
            self.parts[node] = self.parts[node.args[0]][node.args[1]]
            return True
        if not isinstance(node.target, torch._ops.OpOverload):
            self._bridge(node)
            return False
        for read in node.all_input_nodes:
            if _is_complex(read.meta.get("val")):
                self._pair(read)
        before = node.prev
        try:
            with self.recorder.at(node, node):
                args, kwargs = pytree.tree_map(self._value, (node.args, node.kwargs), is_leaf=_is_node)
                expected = node.meta["val"]
                made = self._fitted(in_reals(node.target, args, kwargs, pytree.tree_leaves(expected)[0]), expected)
        except Exception:
            # Whatever torch raises on the parts, the call stays what it is.
            self._erase(before, node)
            self._bridge(node)
            return False
        if isinstance(made, torch.Tensor):
            self._replace(node, self.recorder.node_of(made))
        else:
            self.parts[node] = pytree.tree_map(self.recorder.nodes_of, made, is_leaf=lambda value: isinstance(value, Pair))
        if node.target is torch.ops.aten.view_as_real.default:
            self.faces[self.recorder.node_of(made)] = self._pair(node.args[0])
        return True

    def _value(self, argument: Any) -> Any:
        """An argument as rules take it: pairs of tensors for complex ones; half precision in float32, as PyTorch's kernels do."""
        if not isinstance(argument, torch.fx.Node):
            return argument
        if argument in self.parts or _is_complex(argument.meta.get("val")):
            pair = self._pair(argument)
            return Pair(*(_single(self.recorder.value_of(part)) for part in (pair.re, pair.im)))
        return self.recorder.value_of(argument)

    def _pair(self, node: Any) -> Pair:
        if node not in self.parts:  # what a call that stayed gives
            with self.recorder.at(node.next, node):
                whole = torch.view_as_real(self.recorder.value_of(node).resolve_conj())
                self.parts[node] = self._taken_apart(self.recorder.node_of(whole))
        found = self.parts[node]
        assert isinstance(found, Pair)
        return found

    def _taken_apart(self, node: Any) -> Pair:
        value = self.recorder.value_of(node)
        return self.recorder.nodes_of(Pair(value.select(-1, 0), value.select(-1, 1)))

    def _fitted(self, made: Any, expected: Any) -> Any:
        """What a rule gave, in the form and dtype of what PyTorch gives."""
        if isinstance(expected, list | tuple):
            return [self._fitted(one, value) for one, value in zip(made, expected, strict=True)]
        if not expected.is_complex():
            return _fit(made.re if isinstance(made, Pair) else made, expected, expected.dtype)
        pair, dtype = Pair.of(made), expected.dtype.to_real()
        real = _fit(pair.re, expected, dtype)
        return Pair(real, torch.zeros_like(real) if pair.im is None else _fit(pair.im, expected, dtype))

    def _bridge(self, node: Any) -> None:
        """Gives a call that stays complex tensors."""
        for read in list(node.all_input_nodes):
            if isinstance(self.parts.get(read), Pair):
                with self.recorder.at(node, node):
                    whole = self._joined(self.parts[read])
                    made = self.recorder.node_of(torch.view_as_complex(whole))
                node.replace_input_with(read, made)

    def _joined(self, pair: Pair) -> torch.Tensor:
        return as_real(Pair(self.recorder.value_of(pair.re), self.recorder.value_of(pair.im)))

    def _replace(self, node: Any, other: Any) -> None:
        node.replace_all_uses_with(other)
        self.instead[node.name] = other.name

    def _outputs(self) -> None:
        """Complex outputs, and what complex states become, go out as one tensor each."""
        (end,) = self.graph.find_nodes(op="output")
        for read in list(end.all_input_nodes):
            if read.op != "placeholder" and _is_complex(read.meta.get("val")):
                pair = self._pair(read)
                with self.recorder.at(end, read):
                    whole = self.recorder.node_of(self._joined(pair))
                end.replace_input_with(read, whole)
                self.instead[read.name] = whole.name
        for spec in self.program.graph_signature.output_specs:
            name = getattr(spec.arg, "name", None)
            while name in self.instead:
                name = self.instead[name]
            if name is not None:
                spec.arg.name = name

    def _erase(self, after: Any, before: Any) -> None:
        while before.prev is not after:
            self.graph.erase_node(before.prev)


def _is_node(value: Any) -> bool:
    return isinstance(value, torch.fx.Node)


def _single(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype == torch.float16 else value


def _fit(value: Any, expected: torch.Tensor, dtype: torch.dtype) -> Any:
    if not isinstance(value, torch.Tensor):
        return torch.full(expected.shape, value, dtype=dtype, device=expected.device)
    value = value if value.dtype == dtype else value.to(dtype)
    return value if value.shape == expected.shape else value.expand(expected.shape)


class _Recorder(TorchDispatchMode):  # type: ignore[misc]
    """While it is `at` a node, every call of an operator is computed with fake tensors and written into the graph before it."""

    def __init__(self, module: torch.fx.GraphModule, fake: Any) -> None:
        super().__init__()
        self.module, self.graph, self.fake = module, module.graph, fake
        self.made: dict[int, tuple[Any, Any]] = {}
        self.meta: dict[str, Any] = {}
        self.constants = 0

    @contextmanager
    def at(self, place: Any, origin: Any) -> Iterator[None]:
        self.meta = {key: origin.meta[key] for key in _KEPT if key in origin.meta}
        with self.fake, self.graph.inserting_before(place), torch.no_grad(), enable_python_dispatcher(), self:
            yield

    def value_of(self, node: Any) -> Any:
        value = node.meta["val"]
        self.made[id(value)] = (value, node)
        return value

    def node_of(self, value: Any) -> Any:
        return self.made[id(value)][1]

    def nodes_of(self, pair: Pair) -> Pair:
        return Pair(self.node_of(pair.re), self.node_of(pair.im))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(self._fake, (args, kwargs or {}))
        made = func(*args, **kwargs)
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(made)):
            return made  # a question about a tensor
        given, named = pytree.tree_map(self._written, (args, kwargs))
        node = self.graph.call_function(func, given, named)
        self._keep(node, made)
        if isinstance(made, list | tuple):
            for number, one in enumerate(made):
                self._keep(self.graph.call_function(operator.getitem, (node, number)), one)
        return made

    def _keep(self, node: Any, value: Any) -> None:
        node.meta.update(self.meta, val=value)
        self.made[id(value)] = (value, node)

    def _fake(self, value: Any) -> Any:
        """Constants that a rule brings along become attributes of the module."""
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        name = f"_constant_of_pairs_{self.constants}"
        self.constants += 1
        self.module.register_buffer(name, value)
        node = self.graph.create_node("get_attr", name)
        fake = self.fake.from_tensor(value, static_shapes=True)
        self._keep(node, fake)
        return fake

    def _written(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, torch.Tensor) else value

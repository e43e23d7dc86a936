"""A `torch.export` program becomes a `Graph`: plain data, static shapes, every value a tensor.

The program must have gone through `run_decompositions`, so that it is functional ATen. This file reads what torch wrote (its
signature, its metadata, its tensors); what follows from the graph alone (no-op views, equal nodes, dead nodes) is done in
`tapml.operators.normalise`. Where the program came from, and how it was exported, is `tapml.source.export`'s.

    graph, weights = graph_from_exported("decode", program, module, ("input_ids", "position_ids"), ("logits",))

A graph belongs to no device: `device`, `layout` and `pin_memory` arguments are dropped, and whoever runs the graph says where.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import operator
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from tapml.errors import ModelError
from tapml.operators.carried import carried, decoded, encoded
from tapml.operators.control_flow import higher_order, written_out
from tapml.operators.counted import RULES, Call
from tapml.operators.graph import Body, Graph, Node, Placeholder, Role, renamed
from tapml.operators.loops import TARGETS
from tapml.operators.memory import memory_of, resized, scattered, strided
from tapml.operators.normalise import normalise
from tapml.operators.overload import refused
from tapml.operators.parts import NotWritten, Place, traced
from tapml.operators.stays import PART, RECURRENT
from tapml.tensors import CARRIED_AS, NUMPY, TensorSpec

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_DROPPED_ARGUMENTS = ("device", "layout", "pin_memory", "non_blocking", "generator")
# Views that are lazy in memory, and the same values at once.
_PLAIN = {"aten._neg_view.default": "aten.neg.default"}
_NO_RESULT = ("_assert", "sym_constrain", "sym_size")
# Their value is their first argument; what they are for (an alias, a gradient) has no meaning in a functional graph.
_SAME_VALUE = ("alias", "detach", "lift_fresh_copy", "lift_fresh", "lift", "detach_copy", "alias_copy")
# The same value, and dropped only where the memory layout stays too, since a later view may need the new one.
_COPIES = ("clone", "contiguous", "_to_copy")
# Their value is their first argument where they are not in training.
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
# They give as many tensors as are in the list that they take; of one tensor, this one in another shape.
_OF_LISTS = ("meshgrid", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors")
_SPLITS = ("unsafe_split_with_sizes", "hsplit", "vsplit", "dsplit")
# Tagged as random because of an argument that is zero, or false, in a model that is evaluated: its name and place.
_DRAWS_IF = {"scaled_dot_product_attention": ("dropout_p", 4), "rrelu": ("training", 3)}
# The places of `dropout` and `train` among the arguments of recurrent layers in one call.
_RECURRENT_DROPOUT = {"input": (5, 6), "data": (6, 7)}


def graph_from_exported(
    name: str,
    exported: torch.export.ExportedProgram,
    module: torch.nn.Module | None,
    input_keys: tuple[str, ...],
    output_keys: tuple[str, ...],
    strip_prefix: str = "",
    state_keys: Collection[str] = (),
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The normalised graph of a decomposed program, and its weights by key.

    `input_keys` name the flat user inputs in order; one that is None is left out of the graph. `output_keys` name the
    user outputs that are tensors. A weight's key is its name in the module; several names of one tensor become the first of them.
    Tensors that are no parameter or buffer (constants in the code) get a key made of their content. A buffer is a state if
    the program writes to it, or if it is among `state_keys` (another graph of the model writes to it). Writes to user
    inputs are left out. `strip_prefix` (a module path) is taken off the front of module paths and of keys: the attribute
    under which a wrapper holds the model.

    Values of a dtype that only the source has are handed on in the form of `tapml.operators.carried`. Each call that draws random
    numbers gets a seed of its own, in order.

    Raises ModelError, naming the operator and the line of the model's code, for control flow, symbolic shapes, and dtypes that
    TapML does not carry.
    """
    return _Reader(name, exported, module, input_keys, output_keys, strip_prefix, state_keys).read()


class _Reader:
    """One reading of one program. `values` maps names of fx nodes to names of graph values: dropped nodes to what
    they equal, and inputs that are None to None. `within` has the specs of those that only the source has, `parts` the names of
    several results that are values of their own."""

    def __init__(
        self,
        name: str,
        exported: torch.export.ExportedProgram,
        module: torch.nn.Module | None,
        input_keys: tuple[str, ...],
        output_keys: tuple[str, ...],
        strip_prefix: str,
        state_keys: Collection[str],
    ) -> None:
        self.name = name
        self.exported = exported
        self.input_keys = input_keys
        self.output_keys = output_keys
        self.prefix = strip_prefix.rstrip(".") + "." if strip_prefix else ""
        self.state_keys = frozenset(state_keys)
        self.tensors = _tensors(exported, module)
        self.first_name = _first_names(self.tensors)
        self.values: dict[str, str | None] = {}
        self.placeholders: dict[tuple[str, str], Placeholder] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.nodes: list[Node] = []
        self.within: dict[str, TensorSpec] = {}
        self.parts: dict[str, list[str]] = {}
        self.draws = 0

    def read(self) -> tuple[Graph, dict[str, torch.Tensor]]:
        fx_nodes = {node.name: node for node in written_out(self.exported.graph_module).nodes}
        self._read_placeholders(fx_nodes)
        for fx in fx_nodes.values():
            if fx.op == "call_function":
                try:
                    self._read_call(fx)
                except NotWritten:
                    raise
                except ModelError as error:
                    raise NotWritten(str(error), self._module(fx), error.reason) from error
            elif fx.op == "get_attr" and not any(map(higher_order, fx.users)):
                self._read_attribute(fx)
        outputs, mutations = self._read_outputs()
        graph = normalise(Graph(
            self.name, tuple(self.placeholders.values()), tuple(self.nodes), outputs, self.output_keys, mutations,
        ))
        return graph, {p.key: self.weights[p.key] for p in graph.weights}

    def _read_placeholders(self, fx_nodes: Mapping[str, Any]) -> None:
        signature = self.exported.graph_signature
        mutated = {
            s.target for s in signature.output_specs if s.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
        }
        users = [s for s in signature.input_specs if s.kind == InputKind.USER_INPUT]
        if len(users) != len(self.input_keys):
            raise ValueError(f"graph {self.name} has {len(users)} flat inputs, named were {self.input_keys}")
        keys = iter(self.input_keys)
        for spec in signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                key = next(keys)
                fx = fx_nodes.get(getattr(spec.arg, "name", ""))
                if fx is None or not isinstance(fx.meta.get("val"), torch.Tensor):
                    if getattr(spec.arg, "name", "") in fx_nodes:
                        self.values[spec.arg.name] = None
                    continue
                self._place(fx, "input", key)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                state = spec.target in mutated or self._strip(spec.target) in self.state_keys
                fqn = spec.target if state else self.first_name.get(spec.target, spec.target)
                if not state:
                    self.weights[self._strip(fqn)] = carried(self.tensors[fqn])
                self._place(fx_nodes[spec.arg.name], "state" if state else "weight", self._strip(fqn))
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                self._constant(fx_nodes[spec.arg.name], self.tensors[spec.target])
            else:
                raise ModelError(
                    f"The model passes a {spec.kind.name.lower().replace('_', ' ')} ({spec.target}) to an operator; only tensors "
                    "can be moved to another platform. Replace the custom operator that takes it."
                )

    def _place(self, fx: Any, role: Role, key: str) -> None:
        """Enters a placeholder, or points at the one that already holds the same role and key."""
        spec = self._spec(fx, fx.meta["val"])
        known = self.placeholders.setdefault((role, key), Placeholder(fx.name, role, key, spec.carried))
        self._is(fx, known.name, spec)

    def _constant(self, fx: Any, tensor: torch.Tensor) -> None:
        fx.meta.setdefault("val", tensor)
        self._spec(fx, fx.meta["val"])  # refuses a sparse one
        tensor = carried(tensor.detach())
        data = tensor.cpu().contiguous()
        text = f"{data.dtype}{tuple(data.shape)}".encode() + data.reshape(-1).view(torch.uint8).numpy().tobytes()
        key = "constant." + hashlib.blake2b(text, digest_size=8).hexdigest()
        self.weights[key] = tensor
        self._place(fx, "weight", key)

    def _read_attribute(self, fx: Any) -> None:
        found: Any = self.exported.graph_module
        for part in fx.target.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, torch.Tensor):
            user = next(iter(fx.users), fx)
            raise _refused(user, "holds control flow or a sub-program that torch.export could not flatten")
        self._constant(fx, found)

    def _read_call(self, fx: Any) -> None:
        if fx.target is operator.getitem:
            self._read_getitem(fx)
            return
        if higher_order(fx) in TARGETS:
            self._read_loop(fx)
            return
        if not isinstance(fx.target, torch._ops.OpOverload):
            if higher_order(fx).startswith("auto_functionalized"):
                raise _refused(fx, "writes to its inputs", fx.args[0])
            why = "is control flow" if isinstance(fx.target, torch._ops.HigherOrderOperator) else "works on a symbolic size"
            raise _refused(fx, f"{why}, which has no place in a graph of static shapes")
        word = fx.target._schema.name.split("::")[1]
        if word.startswith(_NO_RESULT):
            return
        val = fx.meta.get("val")
        if word in _SAME_VALUE or (word in _COPIES and _same_layout(fx)) or (word in _DROPOUTS and not _given(fx, "train", 2)):
            self._same(fx, fx.args[0])
            return
        if word in ("view_as_complex", "view_as_real"):
            # The form in which the value is handed on, or the value of which that is the form.
            self._is(fx, self._handed(fx.args[0]), self._spec(fx, val))
            return
        if fx.target is torch.ops.tapml_parts.call.default:
            self._read_part(fx)
            return
        if why := refused(fx.target):
            raise _refused(fx, why)
        if word in ("as_strided", "as_strided_scatter", "resize") and self._read_memory(fx, word):
            return
        specs = tuple(self._spec(fx, v) for v in val) if isinstance(val, list | tuple) else (self._spec(fx, val),)
        if str(fx.target) in RULES and self._read_counted(fx, specs):
            return
        if isinstance(val, list | tuple) and len(val) == 1:
            self._read_single(fx, word, specs[0])
            return
        args = tuple(self._argument(fx, a) for a in fx.args)
        kwargs = {k: self._argument(fx, v) for k, v in fx.kwargs.items() if k not in _DROPPED_ARGUMENTS}
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
        if _draws(fx, word):
            kwargs["generator"] = {"seed": str(self.draws)}
            self.draws += 1
        self._append(fx, _PLAIN.get(str(fx.target), str(fx.target)), args, kwargs, specs)

    def _read_part(self, fx: Any) -> None:
        """A call of a part of the model as its own code."""
        tensors, word = fx.args
        call = traced(word)
        values = [self._argument(fx, tensor) for tensor in tensors]

        def placed(argument: Any) -> Any:
            if isinstance(argument, Place):
                return values[argument.number]
            return [placed(item) for item in argument] if isinstance(argument, list) else self._argument(fx, argument)

        kwargs = {"model": call.model, "path": call.path, "why": call.why, "arguments": placed(call.arguments)}
        self._append(fx, PART, (), kwargs, tuple(self._spec(fx, value) for value in fx.meta["val"]))

    def _read_loop(self, fx: Any) -> None:
        """A call that runs programs, which are its first arguments."""
        programs = [a for a in fx.args if isinstance(a, torch.fx.Node)]
        texts = tuple({"body": json.dumps(self._program(fx, a).to_json())} for a in programs)
        args = tuple([self._argument(fx, v) for v in values] for values in fx.args[len(programs) :])
        self._append(fx, TARGETS[higher_order(fx)], (*texts, *args), {}, tuple(self._spec(fx, v) for v in fx.meta["val"]))

    def _program(self, fx: Any, attribute: Any) -> Body:
        """A program that a call runs, as a body. Raises ModelError for one that holds values of its own."""
        module = getattr(self.exported.graph_module, str(attribute.target))
        inner = copy.copy(self)
        inner.values, inner.within, inner.nodes = {}, {}, []
        outputs: list[str] = []
        given: list[tuple[str, TensorSpec]] = []
        for node in written_out(module).nodes:
            if node.op == "placeholder":
                spec = self._spec(fx, node.meta["val"])
                inner._is(node, node.name, spec)
                given.append((node.name, spec.carried))
            elif node.op == "call_function":
                inner._read_call(node)
            elif node.op == "output":
                outputs = [inner._handed(n) for n in pytree.tree_leaves(node.args[0])]
            else:
                raise _refused(fx, "runs a program with values of its own. Hand them to it as arguments")
        self.draws = inner.draws
        names = {name: f"i{k}" for k, (name, _) in enumerate(given)} | {n.name: f"n{k}" for k, n in enumerate(inner.nodes)}
        specs = tuple(spec for _, spec in given)
        nodes = tuple(renamed(n, names) for n in inner.nodes)
        return Body("program", specs, ("value",) * len(specs), nodes, tuple(names[o] for o in outputs))

    def _read_single(self, fx: Any, word: str, spec: TensorSpec) -> None:
        """A call that returns a list of one tensor (a split in one part) is written as the call that returns the tensor."""
        if word == "unbind":
            dim = fx.args[1] if len(fx.args) > 1 else fx.kwargs.get("dim", 0)
            self._append(fx, "aten.select.int", (self._argument(fx, fx.args[0]), dim, 0), {}, (spec,))
        elif word in _OF_LISTS:
            (only,) = fx.args[0]
            self._append(fx, "aten.view.default", (self._argument(fx, only), list(spec.shape)), {}, (spec,))
        elif word in ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", *_SPLITS):
            self._same(fx, fx.args[0])
        else:
            raise _refused(fx, "returns a list of one tensor")

    def _read_memory(self, fx: Any, word: str) -> bool:
        """A call that reads the memory of a tensor. False for one whose elements stand there in their order."""
        given = fx.args[0].meta["val"]
        found = memory_of(fx.args[0])
        if word != "resize" and found is not None and found[0] is fx.args[0] and given.is_contiguous():
            return False
        if found is None or (word.endswith("scatter") and found[0] is not fx.args[0]):
            raise _refused(fx, "reads the memory of a tensor that is a view of another. Call contiguous() first")
        base, order = found

        def make(target: str, args: tuple[Any, ...], kwargs: dict[str, Any], spec: TensorSpec) -> dict[str, str]:
            name = f"{fx.name}_part{len(self.nodes)}"
            self.nodes.append(Node(name, target, args, kwargs, (spec,), self._module(fx), _line(fx)))
            return {"ref": name}

        made, spec = self._spec(fx, fx.meta["val"]), self._spec(base, base.meta["val"])
        if {made.dtype, spec.dtype} & CARRIED_AS.keys() or made.dtype != spec.dtype:
            raise _refused(fx, "reads the memory of a tensor of another dtype. Call contiguous() first")
        value = self._argument(fx, base)
        if word == "resize":
            found_value = resized(value, spec, order, given.storage_offset(), made, make)
        elif word.endswith("scatter"):
            found_value = scattered(fx, value, self._argument(fx, fx.args[1]), spec, order, make)
        else:
            found_value = strided(fx, value, spec, order, made, make)
        self.values[fx.name] = found_value["ref"]
        return True

    def _read_counted(self, fx: Any, outputs: tuple[TensorSpec, ...]) -> bool:
        """A call whose result is as large as the data say, where there is a way to write it with a size that is known."""
        if any(node.name in self.within for node in fx.all_input_nodes):
            return False
        specs: dict[str, TensorSpec] = {}

        def refer(argument: Any) -> Any:
            if isinstance(argument, torch.fx.Node):
                reference = self._argument(fx, argument)
                specs[reference["ref"]] = self._spec(argument, argument.meta["val"])
                return reference
            return [refer(a) for a in argument] if isinstance(argument, list | tuple) else self._argument(fx, argument)

        def make(target: str, args: tuple[Any, ...], kwargs: dict[str, Any], spec: TensorSpec) -> dict[str, str]:
            name = f"{fx.name}_part{len(self.nodes)}"
            self.nodes.append(Node(name, target, args, kwargs, (spec,), self._module(fx), _line(fx)))
            specs[name] = spec
            return {"ref": name}

        args = tuple(refer(a) for a in fx.args)
        kwargs = {key: value for key, argument in fx.kwargs.items() if (value := refer(argument)) is not None}
        made = RULES[str(fx.target)](Call(args, kwargs, outputs, lambda reference: specs[reference["ref"]], make))
        if made is None:
            return False
        if isinstance(made, list):
            self.parts[fx.name] = [reference["ref"] for reference in made]
        else:
            self.values[fx.name] = made["ref"]
        return True

    def _read_getitem(self, fx: Any) -> None:
        whole, index = fx.args
        if whole.name in self.parts:
            self.values[fx.name] = self.parts[whole.name][index]
            return
        if len(whole.meta["val"]) == 1:
            self._same(fx, whole)
            return
        self._append(fx, "getitem", ({"ref": self.values[whole.name]}, index), {}, (self._spec(fx, fx.meta["val"]),))

    def _append(
        self, fx: Any, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[TensorSpec, ...]
    ) -> None:
        module, line = self._module(fx), _line(fx)
        self.nodes.append(Node(fx.name, target, args, kwargs, outputs, module, line))
        self.values[fx.name] = fx.name
        if len(outputs) == 1 and outputs[0].dtype in CARRIED_AS:
            name = f"{fx.name}_carried"
            self.nodes += encoded(name, fx.name, outputs[0], module, line)
            self._is(fx, name, outputs[0])

    def _handed(self, fx: Any) -> str:
        name = self.values[fx.name]
        assert name is not None
        return name

    def _is(self, fx: Any, name: str, spec: TensorSpec) -> None:
        """Enters under which name of the graph a value is, which has the form in which operators hand it on."""
        self.values[fx.name] = name
        if spec.dtype in CARRIED_AS:
            self.within[fx.name] = spec

    def _same(self, fx: Any, other: Any) -> None:
        self.values[fx.name] = self.values[other.name]
        if other.name in self.within:
            self.within[fx.name] = self.within[other.name]

    def _read_outputs(self) -> tuple[tuple[str, ...], dict[str, str]]:
        outputs: list[str] = []
        mutations: dict[str, str] = {}
        for spec in self.exported.graph_signature.output_specs:
            name = getattr(spec.arg, "name", None)
            value = self.values.get(name) if name is not None else None
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                assert value is not None
                mutations[self._strip(spec.target)] = value
            elif spec.kind == OutputKind.USER_OUTPUT and value is not None:
                outputs.append(value)
        if len(outputs) != len(self.output_keys):
            raise ValueError(f"graph {self.name} has {len(outputs)} tensor outputs, named were {self.output_keys}")
        return tuple(outputs), mutations

    def _argument(self, fx: Any, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            value = self.values.get(argument.name)
            if value is None or argument.name not in self.within:
                return None if value is None else {"ref": value}
            name = f"{value}_within{len(self.nodes)}"
            self.nodes.append(decoded(name, value, self.within[argument.name], self._module(fx), _line(fx)))
            return {"ref": name}
        if argument is None or isinstance(argument, bool | int | str):
            return argument
        if isinstance(argument, float):
            return argument if math.isfinite(argument) else {"float": str(argument)}
        if isinstance(argument, complex):
            return {"complex": repr(argument)}
        if isinstance(argument, list | tuple):
            return [self._argument(fx, item) for item in argument]
        if isinstance(argument, torch.dtype):
            return {"dtype": str(argument).removeprefix("torch.")}
        if isinstance(argument, torch.memory_format):
            return {"memory_format": str(argument).removeprefix("torch.")}
        if isinstance(argument, torch.layout):
            return {"layout": str(argument).removeprefix("torch.")}
        if isinstance(argument, torch.device):
            return {"device": argument.type}
        raise _refused(fx, f"has an argument of type {type(argument).__name__}, which a graph cannot hold")

    def _spec(self, fx: Any, value: Any) -> TensorSpec:
        if value is None:
            return TensorSpec((0,), "uint8")  # an optional result that the call does not give
        if not isinstance(value, torch.Tensor):
            raise _refused(fx, f"gives a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided:
            dense = f"is a sparse tensor ({value.layout}), which TapML does not support. Make it dense with to_dense()"
            raise _refused(fx, dense)
        if any(not isinstance(n, int) for n in value.shape):
            raise _refused(fx, f"has a shape that depends on the data or the input: {tuple(value.shape)}")
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in NUMPY and dtype not in CARRIED_AS:
            raise _refused(fx, f"gives {dtype}, a dtype that TapML does not support (it supports {', '.join(NUMPY)})")
        return TensorSpec(tuple(int(n) for n in value.shape), dtype)

    def _strip(self, path: str) -> str:
        # torch.compile keeps the module that it wraps under this name.
        path = path.replace("._orig_mod", "")
        return path.removeprefix(self.prefix) if self.prefix else path

    def _module(self, fx: Any) -> str:
        stack = fx.meta.get("nn_module_stack") or {}
        path = next(reversed([entry[0] for entry in stack.values()]), "")
        path = re.sub(r"@\d+", "", path)
        return "" if path + "." == self.prefix else self._strip(path)


def _tensors(exported: torch.export.ExportedProgram, module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """Every tensor that the program can name. The module's own are preferred: they are real where the program's are fake."""
    found: dict[str, torch.Tensor] = {}
    if module is not None:
        found.update(module.named_parameters(remove_duplicate=False))
        found.update(module.named_buffers(remove_duplicate=False))
    for source in (exported.state_dict, exported.constants):
        for key, value in source.items():
            if isinstance(value, torch.Tensor):
                found.setdefault(key, value)
    return {key: carried(value.detach()) for key, value in found.items()}


def _first_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Each name to the first name of the same memory in the same shape and dtype (tied weights)."""
    first: dict[tuple[Any, ...], str] = {}
    names: dict[str, str] = {}
    for name, tensor in tensors.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        real = plain and tensor.device.type != "meta" and tensor.numel()
        place = tensor.data_ptr() if real else 0
        identity = (place, tensor.dtype, tuple(tensor.shape), tensor.stride()) if place else (name,)
        names[name] = first.setdefault(identity, name)
    return names


def _given(fx: Any, key: str, place: int) -> Any:
    """An argument of a call, by name or place; None where it is not given."""
    return fx.args[place] if len(fx.args) > place else fx.kwargs.get(key)


def _draws(fx: Any, word: str) -> bool:
    """Whether a call draws random numbers, as it is called here."""
    if torch.Tag.nondeterministic_seeded not in fx.target.tags:
        return False
    if word in _DRAWS_IF:
        return bool(_given(fx, *_DRAWS_IF[word]))
    if word in RECURRENT:
        dropout, train = _RECURRENT_DROPOUT.get(fx.target._overloadname, (0, 0))
        return bool(dropout and _given(fx, "dropout", dropout) and _given(fx, "train", train))
    return True


def _same_layout(fx: Any) -> bool:
    before, after = fx.args[0].meta["val"], fx.meta["val"]
    return bool(before.dtype == after.dtype and before.shape == after.shape and before.stride() == after.stride())


def _line(fx: Any) -> str:
    """The innermost line of the model's own code: the first one outside of torch, if there is one."""
    frames = [frame for frame in _FRAME.findall(fx.meta.get("stack_trace") or "") if not frame[0].startswith("<")]
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return "" if not own else f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}"


def _refused(fx: Any, what: str, target: Any = None) -> ModelError:
    line = _line(fx) or next((found for found in map(_line, fx.all_input_nodes) if found), "")
    where = f" ({line})" if line else ""
    reason = f"{target or fx.target}{where} {what}"
    return ModelError(f"The model cannot be cut into operators: {reason}.", reason)

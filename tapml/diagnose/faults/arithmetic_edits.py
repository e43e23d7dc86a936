"""Wrong arithmetic and wrong reading: bodies with a one-pass variance, ignored strides, another GELU, an overwritten value. For
`graph.py`, which says what each imitates.

Every function takes a body and returns a body of the same inputs and outputs that computes something else, or None where the body
does not have what the edit is about. Nothing is executed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tapml.diagnose.faults.body_edits import Edit, View, name_of, number_of, ref
from tapml.operators.graph import Body, Node
from tapml.tensors import FLOATS, TensorSpec

_ADD, _SUB, _MUL, _MEAN = "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.mean.dim"
_TRANSPOSES = ("aten.transpose.int", "aten.permute.default", "aten.t.default")

# Steps that a compiler fuses and may write in place: the result has the shape and dtype of what they read.
_IN_PLACE = frozenset(
    f"aten.{name}" for name in (
        "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "pow.Tensor_Scalar", "neg.default", "exp.default", "tanh.default",
        "sigmoid.default", "silu.default", "gelu.default", "relu.default", "rsqrt.default", "sqrt.default", "cos.default",
        "sin.default", "reciprocal.default",
    )
)


def one_pass_variance(body: Body) -> Body | None:
    """E[x²] - E[x]² where the variance of a LayerNorm is E[(x - E[x])²]: equal in exact arithmetic, and without digits left in
    float32 where the mean is large against the spread."""
    view = View(body)
    for node in body.nodes:
        if node.target == "aten.layer_norm.default":
            return _whole_norm(body, view, node)
        square = view.argument(node, 0, "aten.pow.Tensor_Scalar", _MUL) if node.target == _MEAN else None
        if square is None or (square.target != _MUL and number_of(square.args[1]) != 2.0) or len(square.reads) != 1:
            continue
        centred = view.calls(square.reads[0], _SUB)
        mean = None if centred is None else view.argument(centred, 1, _MEAN)
        if centred is None or mean is None or mean.reads[:1] != centred.reads[:1] or mean.args[1:] != node.args[1:]:
            continue
        edit = Edit(body)
        variance = _variance(edit, node.name, centred.reads[0], mean.name, view.spec(centred.reads[0]), mean)
        edit.replace_value(node.name, variance)
        return edit.done()
    return None


def _variance(edit: Edit, place: str, x: str, mean: str, spec: TensorSpec | None, like: Node) -> str:
    """Nodes for E[x²] - E[x]² before `place`; `like` is the node of the mean."""
    assert spec is not None
    square = edit.before(place, _MUL, [ref(x), ref(x)], spec)
    squares = edit.before(place, _MEAN, [ref(square), *like.args[1:]], like.outputs[0])
    squared = edit.before(place, _MUL, [ref(mean), ref(mean)], like.outputs[0])
    return edit.before(place, _SUB, [ref(squares), ref(squared)], like.outputs[0])


def _whole_norm(body: Body, view: View, node: Node) -> Body | None:
    """`layer_norm(x, shape, weight, bias, eps)` written out."""
    x, sizes = name_of(node.args[0]), node.args[1]
    weight, bias = (name_of(node.args[k]) if len(node.args) > k else None for k in (2, 3))
    eps = number_of(node.args[4]) if len(node.args) > 4 else 1e-5
    spec = None if x is None else view.spec(x)
    if x is None or spec is None or eps is None:
        return None
    dims = [*range(-len(sizes), 0)]
    reduced = TensorSpec((*spec.shape[: -len(sizes)], *(1 for _ in sizes)), spec.dtype)
    edit = Edit(body)

    def put(target: str, args: Sequence[Any], result: TensorSpec = spec) -> str:
        return edit.before(node.name, target, args, result)

    mean = put(_MEAN, [ref(x), dims, True], reduced)
    like = Node(mean, _MEAN, (ref(x), dims, True), {}, (reduced,))
    variance = _variance(edit, node.name, x, mean, spec, like)
    root = put("aten.rsqrt.default", [ref(put(_ADD, [ref(variance), eps], reduced))], reduced)
    value = put(_MUL, [ref(put(_SUB, [ref(x), ref(mean)])), ref(root)])
    if weight is not None:
        value = put(_MUL, [ref(value), ref(weight)])
    if bias is not None:
        value = put(_ADD, [ref(value), ref(bias)])
    edit.replace_value(node.name, value)
    return edit.done()


def ignored_strides(body: Body) -> Body | None:
    """The first transpose that moves data becomes a reshape: its result is read as if its input had been copied."""
    view = View(body)
    for node in body.nodes:
        if node.target in _TRANSPOSES and _moves(node, view.shape(node.reads[0])):
            edit = Edit(body)
            edit.change(
                node.name, target="aten.reshape.default", args=(node.args[0], list(node.outputs[0].shape)), kwargs={}
            )
            return edit.done()
    return None


def _moves(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether a transpose changes the order of the elements: dimensions of 1 do not count."""
    order = list(range(len(shape)))
    if node.target == "aten.permute.default":
        order = [int(d) % len(shape) for d in node.args[1]]
    elif len(shape) > 1:
        a, b = (0, 1) if node.target == "aten.t.default" else (int(node.args[1]), int(node.args[2]))
        order[a], order[b] = order[b], order[a]
    large = [d for d in order if shape[d] > 1]
    return large != sorted(large)


def other_gelu(body: Body) -> Body | None:
    """The tanh approximation where the model has the error function, or the other way round."""
    view = View(body)
    for node in body.nodes:
        edit = Edit(body)
        if node.target == "aten.gelu.default":
            other = "none" if node.kwargs.get("approximate", "none") == "tanh" else "tanh"
            edit.change(node.name, kwargs={"approximate": other})
            return edit.done()
        x = _written_out_gelu(view, node)
        if x is not None:
            exact = edit.before(node.name, "aten.gelu.default", [ref(x)], node.outputs[0], {"approximate": "none"})
            edit.replace_value(node.name, exact)
            return edit.done()
    return None


def _written_out_gelu(view: View, node: Node) -> str | None:
    """x, where `node` is the last product of x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    if node.target != _MUL or len(node.reads) != 2:
        return None
    for half, rest in ((0, 1), (1, 0)):
        halved, one = view.argument(node, half, _MUL), view.argument(node, rest, _ADD)
        bent = None if one is None else view.argument(one, 0, "aten.tanh.default")
        if halved is None or one is None or bent is None or number_of(halved.args[1]) != 0.5 or number_of(one.args[1]) != 1.0:
            continue
        scaled = view.argument(bent, 0, _MUL)
        inner = None if scaled is None else view.argument(scaled, 0, _ADD)
        if inner is not None and halved.reads[0] in inner.reads:
            return halved.reads[0]
    return None


def overwritten_value(body: Body) -> Body | None:
    """A value that two steps read: the first of them is written over it, and the second gets that. Where there is no second step,
    an output of the body that another step reads as well."""
    view = View(body)
    values = (*(f"i{k}" for k in range(len(body.inputs))), *(n.name for n in body.nodes))
    for value in values:
        readers = view.readers(value)
        for index, first in enumerate(readers):
            if not _in_place(view, first, value):
                continue
            edit = Edit(body)
            if index + 1 < len(readers):
                edit.read_instead(readers[index + 1].name, value, first.name)
            elif value in body.outputs and view.node(value) is not None:
                edit.output_instead(value, first.name)
            else:
                break
            return edit.done()
    return None


def _in_place(view: View, node: Node, value: str) -> bool:
    """Whether the step could be written over what it reads, and changes it."""
    spec = view.spec(value)
    if node.target not in _IN_PLACE or node.outputs != (spec,) or spec is None or spec.dtype not in FLOATS:
        return False
    other = number_of(node.args[1]) if len(node.args) > 1 else None
    neutral = 0.0 if node.target in (_ADD, _SUB) else 1.0
    return other is None or other != neutral

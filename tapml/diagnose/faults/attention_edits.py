"""Wrong attention: bodies with another rotary pairing, head order, window, soft cap or scale. For `graph.py`, which says what
each imitates.

Every function takes a body and returns a body of the same inputs and outputs that computes something else, or None where the body
does not have what the edit is about. Nothing is executed here.
"""

from __future__ import annotations

from tapml.diagnose.faults.body_edits import Edit, View, name_of, number_of, ref
from tapml.operators.graph import Body, Node
from tapml.tensors import TensorSpec

_RESHAPES = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")
_COMPARISONS = ("aten.gt.Tensor", "aten.ge.Tensor", "aten.lt.Tensor", "aten.le.Tensor")

# Further back than any cache is long.
EVERYTHING = 1 << 20


def other_pairing(body: Body) -> Body | None:
    """Rotary embedding that pairs 2i with 2i + 1 where the model pairs i with i + d/2, or the other way round; the angles are the
    same. Written as the model's own rotation between two permutations of the last dimension."""
    view = View(body)
    for node in body.nodes:
        found = _rotation(view, node)
        if found is None:
            continue
        x, readers, result, interleaved = found
        shape = view.shape(x)
        half = shape[-1] // 2
        pairs = (2, half) if interleaved else (half, 2)
        edit = Edit(body)
        first = next(n.name for n in body.nodes if n.name in readers)
        permuted = _permute(edit, first, x, shape, pairs, body.inputs[0].dtype, before=True)
        for reader in readers:
            edit.read_instead(reader, x, permuted)
        edit.replace_value(result, _permute(edit, result, result, shape, pairs[::-1], body.inputs[0].dtype, before=False))
        return edit.done()
    return None


def _rotation(view: View, node: Node) -> tuple[str, tuple[str, ...], str, bool] | None:
    """For the `cat` or `stack` of a rotation: (the value that is rotated, who reads it, the rotated value, interleaved?)."""
    if node.target not in ("aten.cat.default", "aten.stack.default") or len(node.args[0]) != 2:
        return None
    interleaved = node.target == "aten.stack.default"
    negative, positive = (view.node(name_of(part)) for part in node.args[0])
    if negative is None or positive is None or negative.target != "aten.neg.default":
        return None
    taken = view.argument(negative, 0, "aten.slice.Tensor")
    if taken is None or positive.target != "aten.slice.Tensor" or taken.reads != positive.reads:
        return None
    x = taken.reads[0]
    turned = node
    if interleaved:
        flat = view.readers(node.name)
        if len(flat) != 1 or flat[0].target not in (*_RESHAPES, "aten.flatten.using_ints"):
            return None
        turned = flat[0]
    products = [n for n in view.readers(turned.name) if n.target == "aten.mul.Tensor"]
    sums = [n for n in view.readers(products[0].name) if n.target == "aten.add.Tensor"] if products else []
    if not sums or view.shape(turned.name) != view.shape(x):
        return None
    other = next((view.calls(name, "aten.mul.Tensor") for name in sums[0].reads if name != products[0].name), None)
    if other is None or x not in other.reads:
        return None
    return x, (other.name, taken.name, positive.name), sums[0].name, interleaved


def _permute(edit: Edit, place: str, x: str, shape: tuple[int, ...], pairs: tuple[int, int], dtype: str, before: bool) -> str:
    """The last dimension read as `pairs`, transposed and flat again."""
    front = shape[:-1]
    steps = (
        ("aten.view.default", [*front, *pairs], (*front, *pairs)),
        ("aten.transpose.int", None, (*front, *pairs[::-1])),
        ("aten.reshape.default", list(shape), shape),
    )
    for target, size, result in steps:
        rest = [len(front), len(front) + 1] if size is None else [size]
        insert = edit.before if before else edit.after
        x = insert(place, target, [ref(x), *rest], TensorSpec(result, dtype))
        place = place if before else x
    return x


def tiled_heads(body: Body) -> Body | None:
    """Grouped-query attention whose query head h reads key-value head h mod n where it is h div g."""
    view, edit, found = View(body), Edit(body), False
    for node in body.nodes:
        if node.target not in _RESHAPES:
            continue
        copied = view.argument(node, 0, "aten.clone.default")
        expanded = view.argument(copied if copied is not None else node, 0, "aten.expand.default")
        unsqueezed = None if expanded is None else view.argument(expanded, 0, "aten.unsqueeze.default")
        if expanded is None or unsqueezed is None:
            continue
        x, at, shape = unsqueezed.reads[0], int(unsqueezed.args[1]), view.shape(expanded.name)
        at += len(shape) if at < 0 else 0
        if at < 1 or min(shape[at - 1], shape[at]) < 2 or view.shape(x)[at - 1] != shape[at - 1]:
            continue
        if view.shape(node.name) != (*shape[: at - 1], shape[at - 1] * shape[at], *shape[at + 1 :]):
            continue
        found = True
        dtype = node.outputs[0].dtype
        swapped = (*shape[: at - 1], shape[at], shape[at - 1], *shape[at + 1 :])
        thin = (*shape[: at - 1], 1, *shape[at - 1 : at], *shape[at + 1 :])
        front = edit.before(node.name, "aten.unsqueeze.default", [ref(x), at - 1], TensorSpec(thin, dtype))
        wide = edit.before(node.name, "aten.expand.default", [ref(front), list(swapped)], TensorSpec(swapped, dtype))
        contiguous = {"memory_format": {"memory_format": "contiguous_format"}}
        copy = edit.before(node.name, "aten.clone.default", [ref(wide)], TensorSpec(swapped, dtype), contiguous)
        edit.read_instead(node.name, node.reads[0], copy)
    return edit.done() if found else None


def wider_window(body: Body, by: int) -> Body | None:
    """A sliding window that lets a query see `by` positions more than it may: 1 is off by one, EVERYTHING ignores it."""
    view, edit, found = View(body), Edit(body), False
    for node in body.nodes:
        width = number_of(node.args[1]) if node.target == "aten.sub.Tensor" and len(node.args) == 2 else None
        if width is None or width < 2 or node.outputs[0].dtype != "int64":
            continue
        if any(reader.target in _COMPARISONS for reader in view.readers(node.name)):
            edit.change(node.name, args=(node.args[0], int(width) + by))
            found = True
    return edit.done() if found else None


def no_soft_cap(body: Body) -> Body | None:
    """c · tanh(x / c) becomes x."""
    view = View(body)
    for node in body.nodes:
        inner = view.argument(node, 0, "aten.div.Tensor") if node.target == "aten.tanh.default" else None
        cap = None if inner is None else number_of(inner.args[1])
        if inner is None or cap is None:
            continue
        for outer in view.readers(node.name):
            x = name_of(inner.args[0])
            if outer.target == "aten.mul.Tensor" and number_of(outer.args[1]) == cap and view.node(x) is not None:
                assert x is not None
                edit = Edit(body)
                edit.replace_value(outer.name, x)
                return edit.done()
    return None


def no_scale(body: Body) -> Body | None:
    """Scores that are not divided by the root of the head size: by the argument of the fused attention, or as a step of its own
    after the product."""
    view = View(body)
    for node in body.nodes:
        edit = Edit(body)
        if node.target == "aten.scaled_dot_product_attention.default":
            if number_of(node.kwargs.get("scale")) == 1.0 or view.shape(node.reads[0])[-1:] == (1,):
                continue
            edit.change(node.name, kwargs=node.kwargs | {"scale": 1.0})
            return edit.done()
        if node.target in ("aten.mul.Tensor", "aten.div.Tensor") and number_of(node.args[1]) not in (None, 1.0):
            product = view.argument(node, 0, *_PRODUCTS)
            if product is not None and product.outputs == node.outputs:
                edit.replace_value(node.name, product.name)
                return edit.done()
    return None

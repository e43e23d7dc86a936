"""What a call on complex tensors is in real ones: the rules for PyTorch's operators by kind.

    pair = in_reals(torch.ops.aten.mul.Tensor, (Pair(a, b), Pair(c, d)), {}, out)     Pair(a·c - b·d, a·d + b·c)

Arithmetic is `tapml.source.complex_numbers`', the Fourier transforms are `tapml.source.fourier`'s. What is left are the kinds for
which one rule serves many operators: those that do the same to both parts, those that make tensors from nothing, and those that
are linear in each of several arguments (products and convolutions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tapml.source.complex_numbers import ARITHMETIC, NotWritten, Pair, add, conj, mul, plus
from tapml.source.fourier import FOURIER


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The same call on the real parts and on the imaginary parts.
_ALIKE = _words(
    "view _unsafe_view reshape permute transpose t T mT numpy_T matrix_transpose movedim moveaxis swapaxes swapdims flatten "
    "unflatten ravel squeeze unsqueeze expand broadcast_to repeat tile repeat_interleave slice select narrow index "
    "_unsafe_index index_select gather take_along_dim take embedding diagonal diag diag_embed tril triu unfold flip fliplr "
    "flipud roll rot90 split split_with_sizes chunk tensor_split unbind clone contiguous alias detach lift_fresh "
    "lift_fresh_copy lift neg negative positive sum mean cumsum diff trace fft_fftshift fft_ifftshift atleast_1d atleast_2d "
    "atleast_3d resolve_conj resolve_neg _neg_view reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
    "pixel_shuffle pixel_unshuffle"
)
_AS_RESHAPE = ("view", "_unsafe_view")
# The same, where real tensors and numbers may stand among complex ones: the places of the arguments that are values.
_VALUES: dict[str, tuple[int, ...]] = {
    "cat": (0,), "concat": (0,), "stack": (0,), "hstack": (0,), "vstack": (0,), "where": (1, 2), "index_put": (0, 2),
    "_unsafe_index_put": (0, 2), "index_add": (0, 3), "index_copy": (0, 3), "index_fill": (0, 3), "scatter": (0, 3),
    "scatter_add": (0, 3), "select_scatter": (0, 1), "slice_scatter": (0, 1), "diagonal_scatter": (0, 1), "copy": (0, 1),
    "masked_fill": (0, 2), "fill": (0, 1), "full": (1,), "full_like": (0, 1), "new_full": (0, 2), "scalar_tensor": (0,),
    "constant_pad_nd": (0, 2), "masked_scatter": (0, 2), "lerp": (0, 1),
}  # fmt: skip
# From nothing, and with what; memory that PyTorch leaves undefined reads as zero in graphs.
_FILLED = dict.fromkeys(("ones", "ones_like", "new_ones"), 1.0) | dict.fromkeys((
    "zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty", "empty_permuted", "empty_strided",
    "new_empty_strided",
), 0.0)  # fmt: skip
# Linear in each of their first two arguments. Those of the second sort have a bias as the third.
_PRODUCTS = _words("matmul mm bmm mv dot inner outer kron tensordot")
_BIASED = _words("linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d")
_CASTS = _words("_to_copy to type_as")
_SHAPED_LIKE = _words("view_as reshape_as expand_as")


def in_reals(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: torch.Tensor) -> Any:
    """What the call gives: pairs for complex tensors, among the arguments and in the result. `out` has the shape, dtype and
    device of what PyTorch gives (of the first tensor where that is several). Raises NotWritten, with the reason, for a call that
    has no rule."""
    word = func._schema.name.partition("::")[2]
    kwargs = {key: _real(value) if isinstance(value, torch.dtype) else value for key, value in kwargs.items()}
    if word in _CASTS:
        return ARITHMETIC["ne"](args[0], 0) if out.dtype == torch.bool else Pair.of(args[0])
    if word in _SHAPED_LIKE:
        args = (args[0], Pair.of(args[1]).re)
        return _alike(func, args, {}) if isinstance(args[0], Pair) else func(*args)
    if word in _FILLED:
        real = torch.full(out.shape, _FILLED[word], dtype=_real(out.dtype), device=out.device)
        return Pair(real, torch.zeros_like(real))
    if word in _ALIKE:
        _refuse_mixed(args[1:], kwargs)
        return _alike(torch.reshape if word in _AS_RESHAPE else func, args, kwargs)
    if word in _VALUES:
        values = _VALUES[word]
        _refuse_mixed([value for place, value in enumerate(args) if place not in values], kwargs)
        return _alike(func, _with_pairs(args, values), kwargs)
    if word == "pad":
        return _alike(func, _padding(args), kwargs)
    if word in _PRODUCTS:
        return _multilinear(lambda *tensors: func(*tensors, *args[2:], **kwargs), args[:2])
    if word == "vdot":
        return _multilinear(torch.dot, (conj(args[0]), args[1]))
    if word == "einsum":
        return _multilinear(lambda *tensors: torch.einsum(args[0], tensors), args[1])
    if word in _BIASED:
        return _biased(func, args, kwargs)
    if word in ("addmm", "baddbmm", "addmv"):
        return _added(word, *args, **kwargs)
    rule = FOURIER.get(f"{word}.{func._overloadname}") or FOURIER.get(word) or ARITHMETIC.get(word)
    if rule is None:
        raise NotWritten("has no rule")
    return rule(*args, **kwargs)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _is_pair(value: Any) -> bool:
    return isinstance(value, Pair)


def _alike(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    def on(which: str) -> Any:
        def part(value: Any) -> Any:
            return getattr(value, which) if isinstance(value, Pair) else value

        given, named = pytree.tree_map(part, (list(args), dict(kwargs)), is_leaf=_is_pair)
        return function(*given, **named)

    real, imaginary = on("re"), on("im")
    if isinstance(real, list | tuple):
        return [Pair(a, b) for a, b in zip(real, imaginary, strict=True)]
    return Pair(real, imaginary)


def _refuse_mixed(rest: Any, kwargs: Any) -> None:
    """Beside the tensors of which both parts are taken there may be indices and masks, not numbers, nor a product to make."""
    for leaf in pytree.tree_leaves((rest, kwargs)):
        number = leaf.is_floating_point() if isinstance(leaf, torch.Tensor) else leaf == "multiply"
        if number or isinstance(leaf, Pair | complex):
            raise NotWritten("has no rule")


def _with_pairs(args: Sequence[Any], places: Sequence[int]) -> list[Any]:
    """The arguments, with whole pairs at these places also where what stands there is real."""

    def whole(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [whole(item) for item in value]
        pair = Pair.of(value)
        if value is None or pair.im is not None:
            return pair if value is not None else None
        return Pair(value, torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0.0)

    return [whole(value) if place in places else value for place, value in enumerate(args)]


def _padding(args: Sequence[Any]) -> list[Any]:
    """aten.pad(x, widths, mode, value): the value is that of the real part."""
    value = args[3] if len(args) > 3 else None
    return [*args[:3], *([] if value is None else [Pair(value, 0.0)])]


def _multilinear(function: Callable[..., torch.Tensor], operands: Sequence[Any]) -> Pair:
    """A function that is linear in each operand: i^k for each choice of k imaginary parts among them."""
    pairs = [Pair.of(operand) for operand in operands]
    dtype = pairs[0].re.dtype
    for pair in pairs:
        dtype = torch.promote_types(dtype, pair.re.dtype)
    sums: list[Any] = [None, None]
    for choice in product(*((0, 1) if pair.im is not None else (0,) for pair in pairs)):
        chosen = [pair.im if imaginary else pair.re for pair, imaginary in zip(pairs, choice, strict=True)]
        made = function(*(part if part.dtype == dtype else part.to(dtype) for part in chosen))
        which, before = sum(choice) % 2, sums[sum(choice) % 2]
        if sum(choice) % 4 < 2:
            sums[which] = plus(before, made)
        else:
            sums[which] = -made if before is None else before - made
    return Pair(*sums)


def _biased(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pair:
    """linear and the convolutions. The bias goes to the whole sum, once."""
    rest, named = [None, *args[3:]], {key: value for key, value in kwargs.items() if key != "bias"}
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    made = _multilinear(lambda x, weight: func(x, weight, *rest, **named), args[:2])
    if bias is None:
        return made
    axes = Pair.of(args[1]).re.dim() - 2
    if not axes:
        return add(made, bias)
    shape = [-1, *[1] * axes]
    return add(made, _alike(torch.reshape, (bias, shape), {}) if isinstance(bias, Pair) else bias.reshape(shape))


def _added(word: str, bias: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Pair:
    plain = {"addmm": torch.mm, "baddbmm": torch.bmm, "addmv": torch.mv}[word]
    made = _multilinear(plain, (x, y))
    return add(bias if beta == 1 else mul(bias, beta), made if alpha == 1 else mul(made, alpha))

"""Operators written with others where torch has no decomposition: `OWN`, by overload, as functions over torch tensors.

They are traced in place of the operator (`tapml.operators.decompose`), so shapes are numbers here, and what they call is
decomposed in its turn. One that gives None for its arguments raises ValueError instead; one that gives a tensor where the
operator gives several gives the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def _nonzero_static(x: torch.Tensor, *, size: int, fill_value: int = -1) -> torch.Tensor:
    """The k-th that is not zero is the first up to which there are k of them."""
    count = math.prod(x.shape)
    if not size or not count or not x.dim():
        return x.new_full((size, x.dim()), fill_value, dtype=torch.int64)
    upto = torch.cumsum((x != 0).reshape(-1).to(torch.int64), 0)
    place = torch.searchsorted(upto, torch.arange(1, size + 1, device=x.device))
    there = place < count
    columns, step = [], count
    for extent in x.shape:
        step //= extent
        columns.append(torch.where(there, torch.div(place, step, rounding_mode="floor") % extent, fill_value))
    return torch.stack(columns, 1)


def _as_strided(x: torch.Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> torch.Tensor:
    """Of a tensor that is contiguous, as all that operators are handed are."""
    place = torch.full((), storage_offset or 0, dtype=torch.int64, device=x.device)
    for extent, step in zip(size, stride, strict=True):
        place = place.unsqueeze(-1) + torch.arange(extent, device=x.device) * step
    return x.reshape(-1).index_select(0, place.reshape(-1)).reshape(tuple(size))


def _unfold(x: torch.Tensor, dimension: int, size: int, step: int) -> torch.Tensor:
    if not x.dim():
        return x.reshape(1).expand(size)[: max(size, 0)].clone()
    dimension %= x.dim()
    count = (x.shape[dimension] - size) // step + 1
    place = torch.arange(count, device=x.device)[:, None] * step + torch.arange(size, device=x.device)
    rows = x.index_select(dimension, place.reshape(-1))
    order = [k for k in range(x.dim() + 1) if k != dimension + 1]
    return rows.reshape((*x.shape[:dimension], count, size, *x.shape[dimension + 1 :])).permute(*order, dimension + 1)


def _put(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor, accumulate: bool = False) -> torch.Tensor:
    return torch.index_put(x.reshape(-1), (index.reshape(-1),), source.reshape(-1), accumulate).reshape(x.shape)


def _scatter(x: torch.Tensor, dim: int, index: torch.Tensor, source: Any, *, reduce: str) -> torch.Tensor:
    if not isinstance(source, torch.Tensor):
        source = torch.full(index.shape, source, dtype=x.dtype, device=x.device)
    return torch.scatter_reduce(x, dim, index, source, {"add": "sum", "multiply": "prod"}[reduce])


def _addbmm(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> torch.Tensor:
    product = a.transpose(0, 1).reshape(a.shape[1], -1) @ b.reshape(-1, b.shape[2])
    product = product if alpha == 1 else product * alpha
    return product.clone() if beta == 0 else product + (x if beta == 1 else x * beta)


def _trilinear(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> torch.Tensor:  # fmt: skip
    for dim in sorted(expand1):
        a = a.unsqueeze(dim)
    for dim in sorted(expand2):
        b = b.unsqueeze(dim)
    for dim in sorted(expand3):
        c = c.unsqueeze(dim)
    product = a * b * c
    return product.sum(list(sumdim)) if sumdim else product


def _pdist(x: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device)
    return torch.linalg.vector_norm(x.index_select(0, first) - x.index_select(0, second), p, -1)


def _cov(
    x: torch.Tensor, *, correction: int = 1, fweights: torch.Tensor | None = None, aweights: torch.Tensor | None = None
) -> torch.Tensor:  # fmt: skip
    """As NumPy's: repeats (`fweights`) and importance (`aweights`) of the observations, which are columns."""
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    rows = rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())
    weights = None
    for given in (fweights, aweights):
        if given is not None:
            weights = given.to(rows.dtype) if weights is None else weights * given
    if weights is None:
        rows = rows - rows.mean(1, keepdim=True)
        made = rows @ rows.transpose(0, 1) / max(rows.shape[1] - correction, 0)
    else:
        total = weights.sum()
        rows = rows - (rows * weights).sum(1, keepdim=True) / total
        if correction == 0 or aweights is None:
            norm = total - correction
        else:
            norm = total - correction * (weights * aweights).sum() / total
        made = (rows * weights) @ rows.transpose(0, 1) / norm.clamp(min=0)
    return made.squeeze()


def _corrcoef(x: torch.Tensor) -> torch.Tensor | None:
    made = _cov(x)
    if made.dim() < 2:
        return made / made
    spread = torch.sqrt(torch.diagonal(made))
    return (made / spread[:, None] / spread[None]).clamp(-1, 1)


def _diagonal_scatter(x: torch.Tensor, src: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    places = torch.arange(math.prod(x.shape), device=x.device).reshape(x.shape).diagonal(offset, dim1, dim2)
    return x.reshape(-1).index_copy(0, places.reshape(-1), src.reshape(-1)).reshape(x.shape)


def _as_strided_scatter(
    x: torch.Tensor, src: torch.Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> torch.Tensor:  # fmt: skip
    places = _as_strided(torch.arange(math.prod(x.shape), device=x.device), size, stride, storage_offset)
    return x.reshape(-1).index_copy(0, places.reshape(-1), src.reshape(-1)).reshape(x.shape)


def _histc(x: torch.Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> torch.Tensor | None:
    if not math.prod(x.shape):
        return None
    flat = x.reshape(-1)
    low, high = (torch.full((), v, dtype=x.dtype, device=x.device) for v in (min, max))
    if min == max:
        low, high = (flat.amin(), flat.amax()) if min == 0 else (low, high)
        same = low == high
        low, high = torch.where(same, low - 1, low), torch.where(same, high + 1, high)
    inside = (flat >= low) & (flat <= high)
    place = ((torch.where(inside, flat, low) - low) / (high - low) * bins).to(torch.int64).clamp(0, bins - 1)
    return torch.zeros(bins, dtype=x.dtype, device=x.device).index_add(0, place, inside.to(x.dtype))


def _embedding_bag(
    weight: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, scale_grad_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: torch.Tensor | None = None, include_last_offset: bool = False,
    padding_idx: int | None = -1,
) -> torch.Tensor | None:  # fmt: skip
    """Rows of a table, summed (0), averaged (1), or the largest (2) of each bag. Its other results are for gradients."""
    bags = offsets.shape[0] - bool(include_last_offset)
    count = indices.shape[0]
    if indices.dim() != 1 or not bags or not count:
        return None
    wide = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
    number = torch.arange(count, device=weight.device)
    bag = torch.searchsorted(offsets[:bags].to(torch.int64).contiguous(), number, right=True) - 1
    rows = weight.index_select(0, indices).to(wide)
    there = None if padding_idx is None or padding_idx < 0 else indices != padding_idx
    none = torch.zeros((bags, weight.shape[1]), dtype=wide, device=weight.device)
    if mode == 2:
        rows = rows if there is None else torch.where(there[:, None], rows, -math.inf)
        made = none.scatter_reduce(0, bag[:, None].expand(rows.shape), rows, "amax", include_self=False)
        made = made if there is None else torch.where(made == -math.inf, 0.0, made)
    else:
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.to(wide)[:, None]
        if there is not None:
            rows = torch.where(there[:, None], rows, 0.0)
        made = none.index_add(0, bag, rows)
        if mode == 1:
            each = torch.ones(count, dtype=wide, device=weight.device) if there is None else there.to(wide)
            made = made / none[:, 0].index_add(0, bag, each).clamp(min=1.0)[:, None]
    return made.to(weight.dtype)


def _embedding_bag_padded(*args: Any) -> torch.Tensor | None:
    known = [*args[:8], None if args[8] is None else args[8] % args[0].shape[0]]
    return _embedding_bag(*known)


def _batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> torch.Tensor | None:  # fmt: skip
    """By the statistics of the batch itself."""
    if not training:
        return None
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    dims = [0, *range(2, x.dim())]
    shape = (-1, *[1] * (x.dim() - 2))
    numbers = x.to(wide)
    centred = numbers - numbers.mean(dims, keepdim=True)
    made = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    if weight is not None:
        made = made * weight.to(wide).reshape(shape)
    if bias is not None:
        made = made + bias.to(wide).reshape(shape)
    return made.to(x.dtype)


def _angle(x: torch.Tensor) -> torch.Tensor | None:
    if x.is_complex():
        return None
    if not x.is_floating_point():
        return torch.where(x < 0, math.pi, 0.0).to(torch.get_default_dtype())
    return torch.where(x.isnan(), x, torch.where(x < 0, math.pi, 0.0).to(x.dtype))


def _determinant(a: torch.Tensor) -> torch.Tensor | None:
    """By its formula: up to three rows."""
    size = a.shape[-1]
    if not 0 < size <= _CLOSED:
        return None
    if size == 1:
        return a[..., 0, 0].clone()
    if size == 2:
        return a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]
    return (a[..., 0, :] * torch.linalg.cross(a[..., 1, :], a[..., 2, :])).sum(-1)


def _inverse(a: torch.Tensor) -> torch.Tensor | None:
    """By its formula: up to three rows."""
    size, whole = a.shape[-1], _determinant(a)
    if whole is None:
        return None
    if size == 1:
        return 1 / a
    if size == 2:
        rows = [torch.stack([a[..., 1, 1], -a[..., 0, 1]], -1), torch.stack([-a[..., 1, 0], a[..., 0, 0]], -1)]
        return torch.stack(rows, -2) / whole[..., None, None]
    x, y, z = a[..., 0, :], a[..., 1, :], a[..., 2, :]
    columns = [torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)]
    return torch.stack(columns, -1) / whole[..., None, None]


def _one_element(choose: bool) -> Callable[..., Any]:
    """Reductions of a tensor without dimensions: its element, which is the first."""

    def rule(x: torch.Tensor, *more: Any, **named: Any) -> Any:
        if x.dim():
            return None
        first = torch.zeros((), dtype=torch.int64, device=x.device)
        return (x.clone(), first) if choose else first

    return rule


def _ldexp(x: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """In three steps, each by a power of 2 that is a normal number. torch's decomposition multiplies by the whole power, which
    may be zero or infinite where the result is neither, and 0 · ∞ is NaN."""
    powers = exponent.clamp(-300, 300).to(torch.float32)
    third = torch.floor(powers / 3)
    step = torch.pow(2.0, third)
    return x * step * step * torch.pow(2.0, powers - 2 * third)


# Rows of matrices whose determinant and inverse have a formula that is worth it.
_CLOSED = 3

_RULES: dict[Any, Callable[..., Any]] = {
    aten.nonzero_static.default: _nonzero_static,
    aten.as_strided.default: _as_strided,
    aten.unfold.default: _unfold,
    aten.put.default: _put,
    aten.scatter.reduce: _scatter,
    aten.scatter.value_reduce: _scatter,
    aten.addbmm.default: _addbmm,
    aten._trilinear.default: _trilinear,
    aten._pdist_forward.default: _pdist,
    aten.cov.default: _cov,
    aten.corrcoef.default: _corrcoef,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.as_strided_scatter.default: _as_strided_scatter,
    aten.histc.default: _histc,
    aten.embedding_bag.default: _embedding_bag,
    aten.embedding_bag.padding_idx: _embedding_bag_padded,
    aten.batch_norm.default: _batch_norm,
    aten.angle.default: _angle,
    aten.ldexp.Tensor: _ldexp,
    aten.linalg_det.default: _determinant,
    aten.det.default: _determinant,
    aten.linalg_inv.default: _inverse,
    aten.inverse.default: _inverse,
    aten.max.dim: _one_element(True),
    aten.min.dim: _one_element(True),
    aten.argmax.default: _one_element(False),
    aten.argmin.default: _one_element(False),
}


def _for_these_arguments(rule: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        made = rule(*args, **kwargs)
        if made is None:
            raise ValueError("not for these arguments")
        return made

    return run


OWN = {overload: _for_these_arguments(rule) for overload, rule in _RULES.items()}

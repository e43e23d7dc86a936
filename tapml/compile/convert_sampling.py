"""Sampling an image at places that a grid gives, in two or three dimensions, and putting pooled elements back to where they were.

A place of the grid goes from -1 to 1 over the image: over the middles of its outer elements where corners are aligned, else over
their outer edges. What lies outside is 0, the nearest element of the edge, or what a mirror at the edge shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tapml.compile.convert_resizing import keys_spline
from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import broadcast, compute, constant, is_nan, long, reduce, reshape, shape_of, to, wide

Convert = Callable[[Any, Any], Any]
_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)


def _number(value: float) -> Any:
    return constant(value, "float32")


def _is_finite(element: Any) -> Any:
    bits = tirx.bitwise_and(tirx.reinterpret("int32", element), tirx.const(0x7FFFFFFF, "int32"))
    return bits < tirx.const(0x7F800000, "int32")


def _near(position: Any, size: int, mirrors: bool, poisons: bool) -> Any:
    """A place as far outside as any, in place of one that no integer may hold, but for what a mirror shows. What is not finite is
    such a place too, or NaN where it `poisons` what is sampled."""
    near = position if mirrors else tirx.min(tirx.max(position, _number(-4)), _number(size + 4))
    if not poisons:
        return tirx.Select(_is_finite(position), near, _number(-4))
    bits = tirx.Select(_is_finite(position), tirx.reinterpret("int32", near), tirx.const(0x7FC00000, "int32"))
    return tirx.reinterpret("float32", bits)


def _brought_inside(position: Any, size: int, padding: int, corners: bool, lost: int) -> Any:
    """The place in the image that stands for `position`, or is there as it is with zeros around; `lost` stands for NaN."""
    if padding == _ZEROS:
        return position
    if padding == _REFLECTION:
        low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))
        if span == 0:
            return _number(0)
        distance = tirx.abs(position - _number(low))
        times = tirx.floor(distance / _number(span))
        rest = distance - times * _number(span)
        odd = tirx.NE(times - _number(2) * tirx.floor(times * _number(0.5)), _number(0))
        position = tirx.Select(odd, _number(span) - rest, rest) + _number(low)
    inside = tirx.min(tirx.max(position, _number(0)), _number(size - 1))
    return tirx.Select(is_nan(position), _number(lost), inside)


def _grid_sampler(importer: Any, node: Any) -> Any:
    names = ("input", "grid", "interpolation_mode", "padding_mode", "align_corners")
    x, grid, mode, padding, corners = (read(importer, node, k, name) for k, name in enumerate(names))
    spec = output(node)
    sizes = shape_of(x)[2:]
    rank, dtype = len(sizes), wide(spec.dtype)

    def position(load: Any, *at: Any) -> Any:
        """The grid's last dimension counts the image's dimensions from the last."""
        found = _number(0)
        for j, size in enumerate(sizes):
            place = to(load(*at[:-1], long(rank - 1 - j)), "float32") + _number(1)
            scaled = place * _number((size - 1) / 2) if corners else (place * _number(size) - _number(1)) * _number(0.5)
            if mode != _BICUBIC:
                # PyTorch's kernels for two and three dimensions take NaN for opposite edges.
                scaled = _brought_inside(scaled, size, padding, corners, 0 if rank == 2 else size - 1)
            if padding == _ZEROS or mode == _BICUBIC:
                scaled = _near(scaled, size, padding == _REFLECTION, poisons=rank == 2 and mode != _NEAREST)
            found = tirx.Select(tirx.EQ(at[-1], long(j)), scaled, found)
        return found

    places = compute(importer, shape_of(grid), "float32", position, grid, name="places", apart=True)
    taps = {_BILINEAR: 2, _NEAREST: 1, _BICUBIC: 4}[mode]

    def index(load: Any, *at: Any) -> Any:
        """Where tap `at[-1]` is in dimension `at[-2]`: -1 outside."""
        place, found = load(*at[:-1]), tirx.const(-1, "int32")
        first = tirx.nearbyint(place) if mode == _NEAREST else tirx.floor(place)
        here = first + tirx.Cast("float32", at[-1]) - _number(1 if mode == _BICUBIC else 0)
        for j, size in enumerate(sizes):
            there = _brought_inside(here, size, padding, corners, 0) if mode == _BICUBIC else here
            inside = tirx.all(tirx.EQ(at[-2], long(j)), there >= _number(0), there < _number(size))
            found = tirx.Select(inside, tirx.Cast("int32", there), found)
        return found

    def weight(load: Any, *at: Any) -> Any:
        part, tap = load(*at[:-1]) - tirx.floor(load(*at[:-1])), tirx.Cast("float32", at[-1])
        if mode == _BICUBIC:
            return tirx.Select(is_nan(part), part, keys_spline(tirx.abs(part + _number(1) - tap), -0.75))
        return tirx.Select(tirx.EQ(at[-1], long(0)), _number(1) - part, part) if mode == _BILINEAR else _number(1)

    shape = (*shape_of(grid), taps)
    indices = compute(importer, shape, "int32", index, places, name="indices", apart=True)
    weights = compute(importer, shape, "float32", weight, places, name="weights", apart=True)

    def share(load: Any, load_i: Any, load_w: Any, at: Any, k: Any) -> Any:
        tap = [(at[0], *at[2:], long(j), k[j]) for j in range(rank)]
        where = [tirx.Cast("int64", tirx.max(load_i(*t), tirx.const(0, "int32"))) for t in tap]
        within = tirx.all(*[load_i(*t) >= tirx.const(0, "int32") for t in tap])
        value = tirx.Select(within, to(load(at[0], at[1], *where), dtype), constant(0, dtype))
        return value * to(math.prod([load_w(*t) for t in tap], start=_number(1)), dtype)

    total = reduce(importer, spec.shape, dtype, [taps] * rank, share, x, indices, weights, name="sampled")
    return broadcast(importer, spec.shape, spec.dtype, lambda e: e, total)


def _max_unpool(importer: Any, node: Any) -> Any:
    """Each element at the place that `indices` says, counted over the last dimensions; 0 elsewhere. The last of several stays."""
    x, indices, spec = read(importer, node, 0, "self"), read(importer, node, 1, "indices"), output(node)
    rank = len(read(importer, node, 2, "output_size"))
    rows, count, wanted = (math.prod(n) for n in (spec.shape[:-rank], shape_of(x)[-rank:], spec.shape[-rank:]))
    x, indices = reshape(importer, x, (rows, count)), reshape(importer, indices, (rows, count))

    def claim(load: Any, at: Any, k: Any) -> Any:
        mine = tirx.EQ(to(load(at[0], k[0]), "int64"), at[1])
        return tirx.Select(mine, tirx.Cast("int32", k[0]), tirx.const(-1, "int32"))

    owner = reduce(importer, (rows, wanted), "int32", [count], claim, indices, combine=te.max, name="owner")

    def element(load: Any, load_o: Any, *at: Any) -> Any:
        k = tirx.Cast("int64", tirx.max(load_o(*at), tirx.const(0, "int32")))
        return tirx.Select(load_o(*at) >= tirx.const(0, "int32"), load(at[0], k), constant(0, spec.dtype))

    return reshape(importer, compute(importer, (rows, wanted), spec.dtype, element, x, owner, name="unpooled"), spec.shape)


def _channel_shuffle(importer: Any, node: Any) -> Any:
    """The channels of the groups in turn."""
    x, groups, spec = read(importer, node, 0, "self"), read(importer, node, 1, "groups"), output(node)
    each = spec.shape[1] // groups

    def element(load: Any, *at: Any) -> Any:
        channel = tirx.floormod(at[1], long(groups)) * long(each) + tirx.floordiv(at[1], long(groups))
        return load(at[0], channel, *at[2:])

    return compute(importer, spec.shape, spec.dtype, element, x, name="shuffled")


SAMPLING: dict[str, Convert] = {
    "grid_sampler.default": _grid_sampler,
    "grid_sampler_2d.default": _grid_sampler,
    "grid_sampler_3d.default": _grid_sampler,
    "max_unpool2d.default": _max_unpool,
    "max_unpool3d.default": _max_unpool,
    "channel_shuffle.default": _channel_shuffle,
    "native_channel_shuffle.default": _channel_shuffle,
}

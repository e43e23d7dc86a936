"""Fourier transforms in real numbers: products with tables of cosines and sines.

    spectrum = FOURIER["fft_rfft"](x)            Pair of x @ cosines and -(x @ sines)
    FOURIER["stft"](x, 400, 160, 400, window)    a convolution with windowed cosines and sines

Each takes what PyTorch's operator of that name takes, with pairs for complex tensors. A transform over more than `DIRECT`
elements is written as two over its factors, with a turn between them (Cooley and Tukey, 1965), so that tables stay small. Tables
are made in float64 and rounded once to the dtype of the transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import conv1d, conv_transpose1d, linear, pad
from torch.utils._python_dispatch import _disable_current_modes

from tapml.source.complex_numbers import NotWritten, Pair, as_real, conj, mul
from tapml.tensors import HostArray

# Over so many elements a transform is one product; up to so many where they have no factors.
DIRECT = 1024
LARGEST = 4096

_FORWARD, _BACKWARD = -1, 1


def _complex_transform(sign: int) -> Callable[..., Pair]:
    def transform(x: Any, n: int | None = None, dim: int = -1, norm: str | None = None) -> Pair:
        return _along(Pair.of(x), n, dim, sign, norm)

    return transform


def _complex_transforms(sign: int, last: Sequence[int] | None) -> Callable[..., Pair]:
    def transform(x: Any, s: Sequence[int] | None = None, dim: Sequence[int] | None = last, norm: str | None = None) -> Pair:
        pair = Pair.of(x)
        for axis, n in _axes(pair.re, s, dim):
            pair = _along(pair, n, axis, sign, norm)
        return pair

    return transform


def _rfft(x: torch.Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Pair:
    n = x.shape[dim] if n is None else n
    return _along(Pair.of(x), n, dim, _FORWARD, norm, n // 2 + 1)


def _irfft(x: Any, n: int | None = None, dim: int = -1, norm: str | None = None) -> torch.Tensor:
    return _half_back(Pair.of(x), n, dim, _scale(norm, _BACKWARD))


def _hfft(x: Any, n: int | None = None, dim: int = -1, norm: str | None = None) -> torch.Tensor:
    return _half_back(conj(x), n, dim, _scale(norm, _FORWARD))


def _ihfft(x: torch.Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Pair:
    n = x.shape[dim] if n is None else n
    return _along(Pair.of(x), n, dim, _BACKWARD, norm, n // 2 + 1)


def _rfftn(last: Sequence[int] | None) -> Callable[..., Pair]:
    def transform(
        x: torch.Tensor, s: Sequence[int] | None = None, dim: Sequence[int] | None = last, norm: str | None = None
    ) -> Pair:
        *others, (axis, n) = _axes(x, s, dim)
        pair = _rfft(x, n, axis, norm)
        for other, size in others:
            pair = _along(pair, size, other, _FORWARD, norm)
        return pair

    return transform


def _irfftn(last: Sequence[int] | None) -> Callable[..., torch.Tensor]:
    def transform(
        x: Any, s: Sequence[int] | None = None, dim: Sequence[int] | None = last, norm: str | None = None
    ) -> torch.Tensor:
        pair = Pair.of(x)
        *others, (axis, n) = _axes(pair.re, s, dim)
        for other, size in others:
            pair = _along(pair, size, other, _BACKWARD, norm)
        given = s is not None and s[-1] != -1
        return _irfft(pair, n if given else None, axis, norm)

    return transform


def _axes(x: torch.Tensor, s: Sequence[int] | None, dim: Sequence[int] | None) -> list[tuple[int, int]]:
    """The axes to transform, and over how many elements each."""
    if dim is None:
        dim = range(x.dim()) if s is None else range(x.dim() - len(s), x.dim())
    sizes = [-1] * len(dim) if s is None else list(s)
    return [(axis, x.shape[axis] if n == -1 else n) for axis, n in zip(dim, sizes, strict=True)]


def _scale(norm: str | None, sign: int) -> Callable[[int], float]:
    if norm == "ortho":
        return lambda n: n**-0.5
    return lambda n: 1 / n if (norm == "forward") == (sign == _FORWARD) else 1.0


def _along(x: Pair, n: int | None, dim: int, sign: int, norm: str | None, count: int | None = None) -> Pair:
    """The first `count` elements of the transform along an axis over its first n elements, with zeros where there are fewer."""
    n = x.re.shape[dim] if n is None else n
    parts = [None if part is None else _fitted(_moved(_floating(part), dim, -1), n) for part in (x.re, x.im)]
    made = _transform(Pair(*parts), n, sign, _scale(norm, sign)(n), n if count is None else count)
    return Pair(_moved(made.re, -1, dim), _moved(made.im, -1, dim))


def _moved(x: torch.Tensor, source: int, to: int) -> torch.Tensor:
    return x if (source - to) % x.dim() == 0 else x.movedim(source, to)


def _floating(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _fitted(x: torch.Tensor, n: int) -> torch.Tensor:
    length = x.shape[-1]
    return x if length == n else x[..., :n] if length > n else pad(x, [0, n - length])


def _transform(x: Pair, n: int, sign: int, scale: float, count: int) -> Pair:
    """Over the last axis of n elements."""
    first = _factor(n)
    if n <= DIRECT or (first == 1 and n <= LARGEST):
        parts = x.re if x.im is None else torch.cat((x.re, x.im), -1)
        made = linear(parts, _placed(_table(n, count, sign, x.im is not None, scale), x.re))
        return Pair(made[..., :count], made[..., count:])
    if first == 1:
        raise NotWritten(f"is a Fourier transform over {n} elements, a prime number beyond {LARGEST}: give another length")
    # Element second·t1 + t2 goes to k1 + first·k2.
    second = n // first
    leading = x.re.shape[:-1]
    apart = [None if part is None else part.reshape(*leading, first, second).transpose(-1, -2) for part in (x.re, x.im)]
    inner = _transform(Pair(*apart), first, sign, 1.0, first)
    turn = Pair(*(_placed(part, x.re) for part in _turn(second, first, sign)))
    turned = mul(inner, turn)
    outer = _transform(Pair(turned.re.transpose(-1, -2), turned.im.transpose(-1, -2)), second, sign, scale, second)
    return Pair(*(part.transpose(-1, -2).reshape(*leading, n)[..., :count] for part in (outer.re, outer.im)))


def _half_back(x: Pair, n: int | None, dim: int, scale: Callable[[int], float]) -> torch.Tensor:
    """The real sequence of n elements of which x is the first half of the spectrum."""
    n = 2 * (x.re.shape[dim] - 1) if n is None else n
    half = n // 2 + 1
    parts = [_fitted(_moved(_floating(part), dim, -1), half) for part in (x.re, x.im) if part is not None]
    real, imaginary = parts[0], parts[1] if len(parts) == 2 else torch.zeros_like(parts[0])
    if n <= DIRECT:
        made = linear(torch.cat((real, imaginary), -1), _placed(_table_back(n, scale(n)).T.copy(), real))
    else:
        others = n - half
        mirrored = [part[..., 1 : others + 1].flip(-1) for part in (real, imaginary)]
        whole = Pair(torch.cat((real, mirrored[0]), -1), torch.cat((imaginary, -mirrored[1]), -1))
        made = _transform(whole, n, _BACKWARD, scale(n), n).re
    return _moved(made, -1, dim)


def _factor(n: int) -> int:
    """The largest factor of n that is not above its root."""
    return next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)


def _waves(rows: int, columns: int, n: int) -> tuple[HostArray, HostArray]:
    """cos and sin of 2π·row·column/n, in float64 and exact where they are 0 or 1."""
    places = np.outer(np.arange(rows), np.arange(columns)) % n
    angles = 2 * np.pi * np.arange(n) / n
    cosines, sines = np.cos(angles), np.sin(angles)
    for values in (cosines, sines):
        values[np.abs(values) < 1e-15] = 0
    return cosines[places], sines[places]


@lru_cache(4)
def _table(n: int, count: int, sign: int, of_pairs: bool, scale: float) -> HostArray:
    """[2·count, n]: what the real parts of n elements give to the real and the imaginary parts of a spectrum; [2·count, 2·n] with
    what their imaginary parts give behind it."""
    cosines, sines = _waves(count, n, n)
    table = np.concatenate((cosines, sign * sines))
    if of_pairs:
        table = np.concatenate((table, np.concatenate((-sign * sines, cosines))), 1)
    return table * scale


@lru_cache(4)
def _turn(rows: int, columns: int, sign: int) -> tuple[HostArray, HostArray]:
    cosines, sines = _waves(rows, columns, rows * columns)
    return cosines, sign * sines


@lru_cache(4)
def _table_back(n: int, scale: float) -> HostArray:
    """[2·(n // 2 + 1), n]: what the parts of half a spectrum give to a real sequence; what has a mirror counts twice."""
    half = n // 2 + 1
    cosines, sines = _waves(half, n, n)
    weights = np.full((half, 1), 2.0)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    return np.concatenate((weights * cosines, -weights * sines)) * scale


def _placed(table: HostArray, like: torch.Tensor) -> torch.Tensor:
    """The table as a real tensor, whatever modes are active."""
    with _disable_current_modes():
        return torch.from_numpy(table).to(like.device, like.dtype)


def _stft(
    x: Any, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Any = None,
    normalized: bool = False, onesided: bool | None = None, return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:  # fmt: skip
    """x is [samples] or [batch, samples]."""
    if isinstance(x, Pair) or isinstance(window, Pair) or align_to_window:
        raise NotWritten("is a short-time Fourier transform of complex numbers, or over aligned windows")
    if n_fft > LARGEST:
        raise NotWritten(f"is a short-time Fourier transform over more than {LARGEST} elements")
    count = n_fft if onesided is False else n_fft // 2 + 1
    signal = (x if x.dim() == 2 else x.unsqueeze(0)).unsqueeze(1)
    table = _table(n_fft, count, _FORWARD, False, n_fft**-0.5 if normalized else 1.0)
    kernel = _placed(table[:, None], x) * _window(window, win_length, n_fft, x)
    made = conv1d(signal, kernel, None, hop_length or n_fft // 4)
    made = made if x.dim() == 2 else made.squeeze(0)
    pair = Pair(made.narrow(-2, 0, count), made.narrow(-2, count, count))
    return as_real(pair) if return_complex is False else pair


def _stft_centred(
    x: Any, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Any = None,
    center: bool = True, pad_mode: str = "reflect", *rest: Any, **named: Any,
) -> Any:  # fmt: skip
    if center and not isinstance(x, Pair):
        signal = x if x.dim() == 2 else x.unsqueeze(0)
        padded = pad(signal.unsqueeze(1), [n_fft // 2, n_fft // 2], pad_mode).squeeze(1)
        x = padded if x.dim() == 2 else padded.squeeze(0)
    return _stft(x, n_fft, hop_length, win_length, window, *rest, **named)


def _istft(
    x: Any, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: torch.Tensor | None = None,
    center: bool = True, normalized: bool = False, onesided: bool | None = None, length: int | None = None,
    return_complex: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The overlapping frames added, over the sum of their squared windows; x is [frequencies, frames], or with a batch."""
    whole = x.re.shape[-2] == n_fft if onesided is None else not onesided
    if return_complex or whole or isinstance(window, Pair):
        raise NotWritten("is an inverse short-time Fourier transform to complex numbers, or of a spectrum with both sides")
    if n_fft > LARGEST:
        raise NotWritten(f"is an inverse short-time Fourier transform over more than {LARGEST} elements")
    hop = hop_length or n_fft // 4
    parts = torch.cat((x.re, x.im), -2)
    parts = parts if parts.dim() == 3 else parts.unsqueeze(0)
    taper = _window(window, win_length, n_fft, x.re)
    table = _table_back(n_fft, n_fft**-0.5 if normalized else 1 / n_fft)
    frames = parts.shape[-1]
    made = conv_transpose1d(parts, _placed(table[:, None], x.re) * taper, None, hop)
    below = conv_transpose1d(_placed(np.ones((1, 1, frames)), x.re), (taper * taper).reshape(1, 1, n_fft), None, hop)
    available = n_fft + hop * (frames - 1)
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else available - start
    made = (made[..., start:end] / below[..., start:end]).squeeze(1)
    if end > available:
        made = pad(made, [0, end - available])
    return made if x.re.dim() == 3 else made.squeeze(0)


def _window(window: torch.Tensor | None, win_length: int | None, n_fft: int, like: torch.Tensor) -> torch.Tensor:
    """[n_fft], the window in the middle of it."""
    length = win_length or n_fft
    found = _placed(np.ones(length), like) if window is None else window.to(like.dtype)
    left = (n_fft - length) // 2
    return found if length == n_fft else pad(found, [left, n_fft - length - left])


FOURIER: dict[str, Callable[..., Any]] = {
    "fft_fft": _complex_transform(_FORWARD), "fft_ifft": _complex_transform(_BACKWARD),
    "fft_fft2": _complex_transforms(_FORWARD, (-2, -1)), "fft_ifft2": _complex_transforms(_BACKWARD, (-2, -1)),
    "fft_fftn": _complex_transforms(_FORWARD, None), "fft_ifftn": _complex_transforms(_BACKWARD, None),
    "fft_rfft": _rfft, "fft_irfft": _irfft, "fft_hfft": _hfft, "fft_ihfft": _ihfft,
    "fft_rfft2": _rfftn((-2, -1)), "fft_irfft2": _irfftn((-2, -1)), "fft_rfftn": _rfftn(None), "fft_irfftn": _irfftn(None),
    "stft": _stft, "stft.center": _stft_centred, "istft": _istft,
}  # fmt: skip

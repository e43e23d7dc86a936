"""Complex arithmetic as pairs of reals: the graph has no complex value, and computes what the module does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tapml.carving.executor import GraphExecutor, run_graph
from tapml.carving.faithful import Compared, compare_module
from tapml.errors import ModelError
from tapml.operators.carried import carried
from tapml.operators.cut import cut
from tapml.operators.execute import host_from_tensor
from tapml.operators.from_fx import graph_from_exported
from tapml.operators.stays import why_it_stays
from tapml.source.complex_numbers import ARITHMETIC, conj, mul
from tapml.source.eager import wide_copy
from tapml.source.export import export
from tapml.source.load import load
from tapml.source.model import LoadedModel
from tapml.source.trace import trace

Function = Callable[..., torch.Tensor]


class Calls(torch.nn.Module):
    """x, y [3, 8] and w [5, 8] complex, r [3, 8] real. With several functions a dict of what they give."""

    def __init__(self, functions: Function | dict[str, Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, r: torch.Tensor) -> Any:
        given = [t if t is r else torch.view_as_complex(t) for t in (x, y, w, r)]
        if isinstance(self.functions, dict):
            return {name: function(*given) for name, function in self.functions.items()}
        return self.functions(*given)


def _inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"x": (3, 8, 2), "y": (3, 8, 2), "w": (5, 8, 2), "r": (3, 8)}
    return {key: torch.randn(shape, generator=draw, dtype=torch.float64) for key, shape in shapes.items()}


def _changed(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x.real[0] = 1.0
    x[1, 2:4] = 2j
    return x


COMPLEX: dict[str, Function] = {
    "add": lambda x, y, w, r: x + y - 2j * r,
    "alpha": lambda x, y, w, r: torch.sub(x, y, alpha=3),
    "broadcast": lambda x, y, w, r: x[:, None] * w + r[0],
    "mul": lambda x, y, w, r: x * y * r * (1 - 2j) * 3,
    "div": lambda x, y, w, r: x / y,
    "div_real": lambda x, y, w, r: x / r + r / x + 2 / y + x / (1 + 3j) + x / 4,
    "div_huge": lambda x, y, w, r: (x * 1e200) / (y * 1e200),
    "neg": lambda x, y, w, r: -x + (1 - y),
    "conj": lambda x, y, w, r: x.conj() * y.conj().imag + x.mH.mT,
    "polar": lambda x, y, w, r: torch.polar(r.abs(), r) * torch.exp(1j * r),
    "complex": lambda x, y, w, r: torch.complex(r, r * 2) + x,
    "exp": lambda x, y, w, r: x.exp() + y.log() + (1 + r) ** 2,
    "log": lambda x, y, w, r: x.log2() + y.log10(),
    "sqrt": lambda x, y, w, r: x.sqrt() + y.rsqrt() + y.real.to(x.dtype).sqrt(),
    "sines": lambda x, y, w, r: x.sin() + y.cos() * x.sinh() - y.cosh(),
    "activations": lambda x, y, w, r: x.tanh() + (50 * y).tanh() + x.sigmoid() + torch.nn.functional.silu(y),
    "powers": lambda x, y, w, r: x**2 + x**-3 + x**0.5 + x**0 + x**7,
    "general_powers": lambda x, y, w, r: x**y + x**1.7 + 2**x + x ** (1 + 2j) + x**r + r.abs() ** y + (1 + 1j) ** y,
    "reciprocal": lambda x, y, w, r: x.reciprocal() + x.square() + x.sgn(),
    "sums": lambda x, y, w, r: x.sum(-1, keepdim=True) + x.mean() + y.cumsum(1),
    "matmul": lambda x, y, w, r: x @ w.mT + x @ torch.ones(8, 5, dtype=x.dtype),
    "matmul_real": lambda x, y, w, r: (x @ r.mT.to(x.dtype)) @ r[:, :3].to(x.dtype),
    "linear": lambda x, y, w, r: torch.nn.functional.linear(x, w, w[:, 0]),
    "addmm": lambda x, y, w, r: torch.addmm(w[:3, :5], x, w.mT, beta=2, alpha=1j),
    "bmm": lambda x, y, w, r: torch.bmm(x[:, None], y[:, :, None]) + torch.baddbmm(x[:, :1, None], x[:, None], y[:, :, None]),
    "einsum": lambda x, y, w, r: torch.einsum("bi,bi,oi->bo", x, y, w) + torch.einsum("bi->b", x)[:, None],
    "outer": lambda x, y, w, r: torch.outer(x[0], y[1]) + torch.dot(x[0], y[0]) + torch.vdot(x[0], y[0]),
    "convolution": lambda x, y, w, r: torch.nn.functional.conv1d(x[None], y[:, :3].expand(3, 3, 3), w[:3, 0], padding=1),
    "shapes": lambda x, y, w, r: (
        torch.cat([x, y]).reshape(2, 3, 8).permute(2, 0, 1)[1:, ..., ::2].unsqueeze(0).expand(2, -1, -1, -1)
    ),
    "stack": lambda x, y, w, r: torch.stack([x, r + 0j]).flip(0).roll(1, -1).transpose(0, 1),
    "mixed_cat": lambda x, y, w, r: torch.cat([x, r], -1),
    "index": lambda x, y, w, r: x[[2, 0]][:, torch.tensor([1, 1, 5])] * w.index_select(1, torch.tensor([3]))[:2],
    "scatter": lambda x, y, w, r: x.scatter(0, torch.ones(1, 8, dtype=torch.long), y[:1]) + x.masked_scatter(r > 0, y),
    "index_put": lambda x, y, w, r: x.index_put((torch.tensor([1]),), y[:1]),
    "chunks": lambda x, y, w, r: x.chunk(2, -1)[1] + y.split([4, 4], 1)[0] + x.unbind(1)[3][:, None],
    "where": lambda x, y, w, r: torch.where(r > 0, x, y) + torch.where(r > 1, x, 0) + x.masked_fill(r > 0, 1 + 1j),
    "written": lambda x, y, w, r: _changed(x),
    "factories": lambda x, y, w, r: (
        torch.zeros_like(x) + torch.ones(8, dtype=x.dtype) + torch.full((8,), 2j).to(x) + x.new_zeros(8)
    ),
    "pad": lambda x, y, w, r: torch.nn.functional.pad(x, (1, 2), value=3.0),
    "tril": lambda x, y, w, r: x.tril() + y.triu(1) + torch.diag_embed(x[0])[:3],
    "casts": lambda x, y, w, r: x.to(torch.complex64).to(torch.complex128) + r.to(torch.complex128),
    "lookup": lambda x, y, w, r: torch.nn.functional.embedding(torch.tensor([[2, 0]]), x) + torch.diff(y)[0, :1],
    "dropped": lambda x, y, w, r: torch.nn.functional.dropout(x, 0.5, training=False) + r.type_as(x).expand_as(y),
    "addcmul": lambda x, y, w, r: torch.addcmul(x, x, y, value=2),
    "fft": lambda x, y, w, r: torch.fft.fft(torch.fft.fft(x), dim=-2) + torch.fft.fft(r, norm="ortho"),
    "ifft": lambda x, y, w, r: torch.fft.ifft(x, n=6, norm="forward"),
    "fft_n": lambda x, y, w, r: torch.fft.fft(x, n=11, dim=0),
    "fftn": lambda x, y, w, r: torch.fft.fftn(x) + torch.fft.ifftn(r, norm="ortho") + torch.fft.fft2(x) + torch.fft.ifft2(y),
    "fftn_s": lambda x, y, w, r: torch.fft.fftn(x, s=(4, 4)) + torch.fft.fftn(x, s=(4,), dim=(0,))[:, :4],
    "rfft": lambda x, y, w, r: torch.fft.rfft(r, norm="ortho") + torch.fft.rfft(r, n=9) + torch.fft.ihfft(r),
    "rfft2": lambda x, y, w, r: torch.fft.rfft2(r) + torch.fft.rfftn(r, norm="forward"),
    "rfft_dim": lambda x, y, w, r: torch.fft.rfft(r, dim=0),
    "fftshift": lambda x, y, w, r: torch.fft.fftshift(x) + torch.fft.ifftshift(x, dim=1),
    "long": lambda x, y, w, r: torch.fft.fft(x.repeat(1, 250) * torch.arange(2000)),
    "long_rfft": lambda x, y, w, r: torch.fft.rfft(r.repeat(1, 250) * torch.arange(2000), norm="ortho"),
    "stft": lambda x, y, w, r: torch.stft(
        r.repeat(1, 5), 8, 3, window=torch.hann_window(8, dtype=r.dtype), return_complex=True
    ),
    "stft_options": lambda x, y, w, r: torch.stft(
        r[0].repeat(5), 8, win_length=5, window=r[0, :5], center=False, normalized=True, onesided=False, return_complex=True
    ),
    "stft_constant": lambda x, y, w, r: torch.stft(r.repeat(1, 5), 8, center=True, pad_mode="constant", return_complex=True),
}  # fmt: skip

REAL: dict[str, Function] = {
    "abs": lambda x, y, w, r: x.abs() ** 2 + y.angle() + (x * 1e200).abs() * 1e-200,
    "parts": lambda x, y, w, r: torch.view_as_real(x)[..., 0] + y.imag + x.conj().imag + torch.real(y),
    "norms": lambda x, y, w, r: torch.linalg.vector_norm(x, dim=1) + x.norm(),
    "nonzero": lambda x, y, w, r: torch.stack([
        (x * 1j * r).to(torch.bool), (x * 0 + 1j).bool(), torch.logical_not(x * 0), r.view_as(x) > 0,
    ]),
    "equal": lambda x, y, w, r: torch.stack([x == x.clone(), x != y, x == 1, (x * r).isfinite(), x.isnan(), y.isinf()]),
    "irfft": lambda x, y, w, r: torch.fft.irfft(x) + torch.fft.irfft(y, norm="ortho"),
    "irfft_n": lambda x, y, w, r: torch.fft.irfft(x, n=9) + torch.fft.irfft(x, n=30, norm="forward")[:, :9],
    "hfft": lambda x, y, w, r: torch.fft.hfft(x, n=9),
    "irfft_real": lambda x, y, w, r: torch.fft.irfft(r),
    "irfft2": lambda x, y, w, r: torch.fft.irfft2(x) + torch.fft.irfft2(torch.fft.rfft2(x.real), s=(3, 14)) + torch.fft.irfftn(y),
    "long_irfft": lambda x, y, w, r: torch.fft.irfft(x.repeat(1, 250)) * 1e3,
    "long_odd_irfft": lambda x, y, w, r: torch.fft.irfft(x.repeat(1, 250), n=3999, norm="ortho"),
    "spectrum": lambda x, y, w, r: torch.fft.irfft2(torch.fft.rfft2(r, norm="ortho") * x[:, :5], s=(3, 8), norm="ortho"),
    "istft": lambda x, y, w, r: torch.istft(
        torch.stft(r.repeat(1, 5), 8, 2, window=torch.hann_window(8).to(r), return_complex=True) * 2j, 8, 2,
        window=torch.hann_window(8).to(r),
    ),
    "istft_options": lambda x, y, w, r: torch.istft(
        x.repeat(2, 1)[:5], 8, 4, win_length=6, window=1 + torch.arange(6).to(r), normalized=True, length=30,
    ),
    "stft_as_real": lambda x, y, w, r: torch.view_as_real(torch.stft(r.repeat(1, 5), 8, return_complex=True)),
}  # fmt: skip


@pytest.fixture(scope="module")
def computed() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What one graph of all functions gives, and the module."""
    module, inputs = Calls(COMPLEX | REAL), _inputs()
    graph, weights = graph_from_exported("forward", trace(module.eval(), inputs), module, tuple(inputs), (*COMPLEX, *REAL))
    assert not any(spec.dtype.startswith("complex") for node in graph.nodes for spec in node.outputs)
    return run_graph(graph, weights, {}, inputs)[0], {key: carried(value) for key, value in module(**inputs).items()}


@pytest.mark.parametrize("name", [*COMPLEX, *REAL])
def test_a_graph_in_pairs_computes_what_the_module_does(
    name: str, computed: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    got, wanted = (values[name] for values in computed)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    rtol, atol = 1e-7 if name == "casts" else 1e-11, 1e-8 if "long" in name else 1e-11
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, equal_nan=True)


class Rotary(torch.nn.Module):
    """Queries turned by the slice of a table that their positions have, as Meta's LLaMA does."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 16, dtype=dtype)
        angles = torch.outer(torch.arange(12.0), 10000.0 ** (-torch.arange(0, 8, 2) / 8))
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.project(x).view(1, 5, 2, 8)
        turned = torch.view_as_complex(queries.float().reshape(1, 5, 2, 4, 2)) * self.freqs_cis[3:8].view(1, 5, 1, 4)
        return torch.view_as_real(turned).flatten(3).type_as(queries)


class Filter(torch.nn.Module):
    """Complex inputs, weights, states and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(4, 3, dtype=torch.complex64)
        self.register_buffer("last", torch.zeros(2, 3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.last.copy_(self.mix(x) + self.last * 0.5)
        return self.last.conj(), self.last.abs()


def _compared(model: LoadedModel) -> Compared:
    exported = export(model)
    return compare_module(model, exported, [{key: host_from_tensor(t) for key, t in exported.examples.items()}])


def _rotary(dtype: torch.dtype) -> LoadedModel:
    torch.manual_seed(0)
    return load(Rotary(dtype).eval(), example_inputs=(torch.randn(1, 5, 16, dtype=dtype),))


def _filter() -> LoadedModel:
    torch.manual_seed(0)
    return load(Filter().eval(), example_inputs=(torch.randn(2, 4, dtype=torch.complex64),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotary_embeddings_of_llama(dtype: torch.dtype) -> None:
    model = _rotary(dtype)
    exported = export(model)
    (graph,) = exported.graphs
    assert exported.tensors["freqs_cis"].shape == (12, 4, 2) and exported.tensors["freqs_cis"].dtype == torch.float32
    assert _compared(model).error < 1e-2 if dtype != torch.float32 else _compared(model).error < 1e-6
    assert all(node.source.startswith("test_pairs.py") for node in graph.nodes if "select" in node.target)


def test_ends_of_a_graph_are_pairs() -> None:
    model = _filter()
    exported = export(model)
    (graph,) = exported.graphs
    assert model.dtype == "float32"
    assert {p.key: p.spec.shape for p in graph.placeholders} == {
        "x": (2, 4, 2), "mix.weight": (3, 4, 2), "mix.bias": (3, 2), "last": (2, 3, 2),
    }  # fmt: skip
    assert [graph.specs[name].shape for name in graph.outputs] == [(2, 3, 2), (2, 3)]
    assert exported.initial["last"].shape == (2, 3, 2) == graph.specs[graph.mutations["last"]].shape
    assert _compared(model).error < 1e-6


@pytest.mark.parametrize("make", [lambda: _rotary(torch.float32), lambda: _rotary(torch.bfloat16), _filter])
def test_graph_and_module_agree_in_float64(make: Callable[[], LoadedModel]) -> None:
    model = make()
    exported, exact = export(model), wide_copy(model)
    assert exact is not None
    wanted = exact.outputs(model.example_inputs)
    weights = {key: tensor.double() for key, tensor in exported.tensors.items()}
    graph = GraphExecutor.uncut(exported.graphs, weights, exported.states | exported.initial, dtype=torch.float64)
    got = graph.step_tensors("forward", exported.examples)
    for key, value in wanted.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(got[key], value, rtol=1e-12, atol=1e-12)


def test_a_dtype_that_is_asked_for_keeps_imaginary_parts() -> None:
    model = load(Rotary().eval(), dtype="bfloat16", example_inputs=(torch.randn(1, 5, 16),))
    assert model.module.freqs_cis.dtype == torch.complex64 and model.module.project.weight.dtype == torch.bfloat16
    assert _compared(model).error < 1e-2


def test_a_wrong_rule_is_found_by_the_comparison_with_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARITHMETIC, "mul", lambda x, y: conj(mul(x, y)))
    with pytest.raises(ModelError, match="does not compute what Rotary itself computes"):
        _compared(_rotary(torch.float32))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, w, r: torch.linalg.eigvals(x[:, :3]).abs(),
        lambda x, y, w, r: torch.linalg.det(x[:, :3] + y[:, 3:6]).real,
        lambda x, y, w, r: torch.fft.fft(r, n=4099).real,
        lambda x, y, w, r: x.scatter(0, torch.zeros(1, 8, dtype=torch.long), y[:1], reduce="multiply"),
        lambda x, y, w, r: torch.cumprod(x, 0).abs(),
    ],
)
def test_what_is_not_written_in_reals_stays_on_the_source(function: Function) -> None:
    graph, _ = graph_from_exported("forward", trace(Calls(function).eval(), _inputs()), None, tuple(_inputs()), ("output",))
    reasons = [why for body in cut(graph)[1].values() if (why := why_it_stays(body))]
    assert reasons == ["it computes with complex numbers, which no target has"]

"""NumPy as an engine for TapML: `tapml test RUN --target numpy`. docs/new-backend.md goes through it.

Each ATen operator that it knows is a Python function in a table, with the arguments and defaults that ATen documents. Others are
written with those, as PyTorch composes them, or refused. Floating point numbers are computed in float64, unless `precise=0`, and
rounded once, when an operator's outputs are handed over.
"""

import math
from typing import ClassVar

import numpy as np

from tapml.backends import NotSupported, arguments, simpler
from tapml.errors import TargetError


def dims(axes, x):
    """ATen's axes as NumPy's: none of them means all."""
    return tuple(axes) if axes else tuple(range(x.ndim))


def sliced(x, dim=0, start=None, end=None, step=1):
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def attention(q, k, v, mask=None, dropout=0.0, causal=False, scale=None, enable_gqa=False):
    if causal or enable_gqa or dropout:
        raise NotSupported("aten.scaled_dot_product_attention.default: only with a mask, without dropout and groups")
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    return softmax(scores) @ v


def softmax(x, dim=-1, half_to_float=False):
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


def layer_norm(x, shape, weight=None, bias=None, eps=1e-5, cudnn=False):
    axes = tuple(range(-len(shape), 0))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


def batch_norm(x, weight, bias, mean, var, momentum, eps):
    by_channel = [a.reshape(-1, *[1] * (x.ndim - 2)) for a in (weight, bias, mean, var)]
    y = (x - by_channel[2]) / np.sqrt(by_channel[3] + eps) * by_channel[0] + by_channel[1]
    return y, np.empty(0), np.empty(0)


def windows(x, size, stride, padding, value):
    """[N, C, H, W] as [N, C, OH, OW, KH, KW], with `value` around it."""
    x = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in padding]], constant_values=value)
    seen = np.lib.stride_tricks.sliding_window_view(x, tuple(size), (2, 3))
    return seen[:, :, :: stride[0], :: stride[1]]


def conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    if groups != 1 or list(dilation) != [1, 1]:
        raise NotSupported("aten.conv2d.default: only without groups and dilation")
    y = np.einsum("nchwij,ocij->nohw", windows(x, weight.shape[2:], stride, padding, 0), weight)
    return y if bias is None else y + bias[:, None, None]


def max_pool2d(x, size, stride=None, padding=(0, 0)):
    return windows(x, size, stride or size, padding, -np.inf).max((-1, -2))


def gelu(x, approximate="none"):
    if approximate != "none":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def index_copy(x, dim, index, source):
    y = np.array(x)
    y[(slice(None),) * (dim % x.ndim) + (index,)] = source
    return y


def full(shape, value, **_):
    return np.full(shape, value)


def index(x, at):
    return x[tuple(slice(None) if i is None else i for i in at)]


TABLE = {
    "add.Tensor": lambda a, b, alpha=1: a + alpha * b, "sub.Tensor": lambda a, b, alpha=1: a - alpha * b,
    "mul.Tensor": np.multiply, "div.Tensor": np.true_divide, "neg.default": np.negative, "pow.Tensor_Scalar": np.power,
    "rsqrt.default": lambda x: 1 / np.sqrt(x), "sqrt.default": np.sqrt, "exp.default": np.exp, "log.default": np.log,
    "sin.default": np.sin, "cos.default": np.cos, "tanh.default": np.tanh, "abs.default": np.abs,
    "sigmoid.default": lambda x: 1 / (1 + np.exp(-x)), "silu.default": lambda x: x / (1 + np.exp(-x)), "gelu.default": gelu,
    "relu.default": lambda x: np.maximum(x, 0), "where.self": np.where, "maximum.default": np.maximum,
    "le.Tensor": np.less_equal, "ge.Scalar": np.greater_equal, "eq.Scalar": np.equal, "bitwise_and.Tensor": np.bitwise_and,
    "mean.dim": lambda x, axes, keep=False: x.mean(dims(axes, x), keepdims=keep), "amax.default": lambda x, axes=(), keep=False:
    x.max(dims(axes, x), keepdims=keep), "sum.dim_IntList": lambda x, axes, keep=False: x.sum(dims(axes, x), keepdims=keep),
    "argmax.default": lambda x, dim=None, keep=False: x.argmax(dim, keepdims=keep), "_softmax.default": softmax,
    "softmax.int": softmax, "mm.default": np.matmul, "bmm.default": np.matmul, "matmul.default": np.matmul,
    "linear.default": lambda x, w, b=None: x @ w.T + (0 if b is None else b), "conv2d.default": conv2d,
    "layer_norm.default": layer_norm, "_native_batch_norm_legit_no_training.default": batch_norm,
    "scaled_dot_product_attention.default": attention, "embedding.default": lambda w, i, *_: w[i], "index.Tensor": index,
    "max_pool2d.default": max_pool2d, "gather.default": lambda x, dim, i: np.take_along_axis(x, i, dim),
    "select.int": lambda x, dim, i: x.take(i, dim), "slice.Tensor": sliced, "view.default": np.reshape,
    "cat.default": lambda x, dim=0: np.concatenate(x, dim), "unsqueeze.default": np.expand_dims, "permute.default": np.transpose,
    "transpose.int": np.swapaxes, "expand.default": lambda x, shape: np.broadcast_to(
        x, [old if new == -1 else new for old, new in zip((1,) * (len(shape) - x.ndim) + x.shape, shape, strict=True)]),
    "index_copy.default": index_copy, "clone.default": lambda x, **_: x,
    "_to_copy.default": lambda x, **_: x, "arange.default": lambda n, **_: np.arange(n),
    "full.default": full,
}  # fmt: skip


class NumPy:
    interface = 1
    storage: ClassVar = {"bfloat16": "float32"}
    options: ClassVar = {"precise": "1 to compute in float64 and round once (as without it), 0 to compute in the model's dtype"}

    def __init__(self, options):
        if options.get("precise", "1") not in ("0", "1"):
            raise TargetError(f"precise={options['precise']!r} is neither 0 nor 1.")
        self.precise = options.get("precise", "1") == "1"
        self.device, self.version = "the processor, one operation after the other", f"NumPy {np.__version__}"

    def compile(self, body):
        body = simpler(body, lambda target: target.removeprefix("aten.") in TABLE)
        return lambda inputs: self.run(body, inputs)

    def run(self, body, inputs):
        values = {f"i{k}": self.held(array, spec.dtype) for k, (array, spec) in enumerate(zip(inputs, body.inputs, strict=True))}
        with np.errstate(all="ignore"):  # infinities and NaN are values of the model
            for node in body.nodes:
                args, kwargs = arguments(node, values)
                made = args[0][args[1]] if node.target == "getitem" else TABLE[node.target.removeprefix("aten.")](*args, **kwargs)
                several = made if isinstance(made, tuple) else (made,)
                several = [self.held(a, spec.dtype) for a, spec in zip(several, node.outputs, strict=True)]
                values[node.name] = several[0] if len(several) == 1 else several
        stored = [self.storage.get(spec.dtype, spec.dtype) for spec in body.output_specs]
        return [values[name].astype(dtype) for name, dtype in zip(body.outputs, stored, strict=True)]

    def held(self, array, dtype):
        """A value as it is computed with."""
        return np.asarray(array).astype("float64" if self.precise and "float" in dtype else self.storage.get(dtype, dtype))

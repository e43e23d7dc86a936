"""PyTorch in this process as a backend, and hybrids over any two backends."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from tapml.backends.interface import Backend
from tapml.backends.kernels import Kernels
from tapml.backends.source import Functions, Source
from tapml.errors import DeviceError, ModelError
from tapml.migrate.end_to_end import Reference
from tapml.migrate.model import Model
from tapml.operators.execute import host_function
from tapml.operators.graph import Operator
from tapml.runtime.buffers import WeightCache
from tapml.runtime.hybrid import Hybrid
from tapml.targets.parse import parse
from tapml.tensors import TensorSpec
from tests.backends.test_pytorch import Here
from tests.compile.bodies import call
from tests.compile.test_conversions import floats
from tests.conftest import MakeRun

BACKENDS: dict[str, Callable[[], Backend]] = {
    "kernels": lambda: Kernels(parse("cpu")),
    "torch": lambda: Here(parse("torch")),
    "source": Source,
    "float64": lambda: Source("float64"),
}


def hybrid_of(model: Model, source: Backend, target: Backend) -> Hybrid:
    weights = WeightCache(target.pool)

    def weight(operator: Operator | None, key: str, dtype: str) -> int:
        return weights.get(key, dtype, lambda: model.weight(key))

    return Hybrid(model, Functions(source, model.bodies), target, weight)


@pytest.mark.parametrize(
    "sides", [("kernels", "torch"), ("torch", "kernels"), ("source", "float64"), ("float64", "source")], ids="-".join
)
def test_a_hybrid_of_any_two_backends_gives_what_the_model_gives(make_run: MakeRun, sides: tuple[str, str]) -> None:
    run = make_run("llama")
    model = Model.of(run)
    reference = Reference.of(run, Hybrid(model, model.source))
    source, target = (BACKENDS[name]() for name in sides)
    try:
        programs = {key: prepared.compiled for key, prepared in target.prepare(model.bodies).items()}
        hybrid = hybrid_of(model, source, target)
        chance = random.Random(7)
        for share in (0.0, 0.3, 0.7, 1.0):
            chosen = [o for o in model.operators if chance.random() < share]
            hybrid.offload({o.name: programs[o.signature] for o in chosen})
            answer = reference.check(hybrid)
            assert answer.passed, (share, answer.reason)
            # What PyTorch computes in float32 may be the source's bits; what a kernel or float64 does is not.
            computing = {side for side, runs in zip(sides, (share < 1, share > 0), strict=True) if runs}
            assert answer.error is not None and (answer.error > 0 or not computing & {"kernels", "float64"})
    finally:
        source.close()
        target.close()


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_buffers_and_arrays_give_the_same(dtype: str | None) -> None:
    backend, made = Source(dtype), call("aten.linear.default", floats(4, 16), floats(8, 16))
    compiled = backend.prepare({"s": made.body})["s"].compiled
    assert compiled is not None and compiled.outputs == (TensorSpec((4, 8), dtype or "float32"),)
    (expected,) = host_function(made.body, dtype)(made.inputs)
    (alone,) = backend.run_once(compiled, made.inputs)
    given = [backend.pool.allocate(spec.nbytes) for spec in compiled.inputs]
    for buffer, array, spec in zip(given, made.inputs, compiled.inputs, strict=True):
        backend.write(buffer, array.astype(spec.dtype).tobytes())
    out = backend.pool.allocate(compiled.outputs[0].nbytes)
    work = backend.record(compiled, given, [out])
    backend.submit(work)
    (data,) = backend.read_many([(out, compiled.outputs[0].nbytes, 0)])
    assert np.array_equal(alone, expected) and data == expected.tobytes()
    with pytest.raises(ValueError, match="outside of a buffer"):
        backend.write(out, bytes(4096))


def test_what_pytorch_refuses_is_a_device_error_of_a_run_and_none_of_a_function() -> None:
    made = call("aten.linear.default", floats(4, 16), floats(8, 16))
    backend, wrong = Source(), [made.inputs[0], made.inputs[1][:, :3]]
    compiled = backend.prepare({"s": made.body})["s"].compiled
    assert compiled is not None
    with pytest.raises(DeviceError, match="cannot be multiplied"):
        backend.run_once(compiled, wrong)
    with pytest.raises(RuntimeError):
        Functions(backend, {"s": made.body})("s")(wrong)


def test_an_operator_that_this_pytorch_does_not_have(make_run: MakeRun) -> None:
    made = call("aten.relu.default", floats(3))
    text = made.body.to_json()
    text["nodes"][0]["target"] = "aten.no_such_operator.default"
    body = type(made.body).from_json(text)
    assert Source().prepare({"s": body})["s"].status == "error"
    with pytest.raises(ModelError, match="no_such_operator"):
        Functions(Source(), {"s": body})("s")

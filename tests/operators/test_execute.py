"""Running bodies and graphs: numpy in and out, other float dtypes, hooks, states, and what is freed."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch

from tapml.carving.executor import GraphExecutor, run_graph
from tapml.errors import ModelError
from tapml.operators.cut import cut
from tapml.operators.execute import NodeByNode, body_function, host_from_tensor, host_function, tensor_from_host
from tapml.operators.graph import Body, Node, Operator
from tapml.runtime.decoder import Decoder
from tapml.runtime.protocol import greedy
from tapml.tensors import FLOATS, TensorSpec
from tests.models import causal_lm
from tests.operators.programs import of_model, program, programs, random_inputs

MATRIX = TensorSpec((4, 6), "float32")


def test_every_body_runs_in_float64_and_is_near_the_source() -> None:
    """All float results are float64, and agree with float32 to its rounding: nothing in between is computed in less."""
    for arch in ("llama", "gemma2", "mixtral", "gpt2", "bloom"):
        graph = (found := programs(arch)[0]).graph
        operators, bodies = cut(graph)
        inputs, states = random_inputs(graph)
        seen: set[str] = set()

        def compare(operator: Operator, given: tuple[torch.Tensor, ...], made: tuple[torch.Tensor, ...]) -> None:
            body = bodies[operator.signature]  # noqa: B023
            exact = body_function(body, torch.float64)(given)
            for one, other, spec in zip(exact, made, body.output_specs, strict=True):
                assert one.shape == other.shape
                if spec.dtype in FLOATS:
                    assert one.dtype == torch.float64, operator.name
                    assert torch.allclose(one, other.double(), rtol=2e-4, atol=2e-4), operator.name
                else:
                    assert one.dtype == other.dtype
            seen.add(operator.signature)  # noqa: B023

        GraphExecutor([graph], operators, bodies, found.weights, states, compare).step_tensors(graph.name, inputs)
        assert seen == set(bodies)
        assert torch.get_default_dtype() == torch.float32


def test_float64_reaches_what_integers_make() -> None:
    """1/3 from integers, and a constant 0.1, have all the digits of a double."""
    nodes = (
        Node("n0", "aten.div.Tensor", ({"ref": "i0"}, 3), {}, (TensorSpec((2,), "float32"),)),
        Node("n1", "aten.full.default", ([2], 0.1), {"dtype": {"dtype": "float32"}}, (TensorSpec((2,), "float32"),)),
        Node("n2", "aten.add.Tensor", ({"ref": "n0"}, {"ref": "n1"}), {}, (TensorSpec((2,), "float32"),)),
    )
    body = Body("elementwise", (TensorSpec((2,), "int64"),), ("value",), nodes, ("n2",))
    (exact,) = body_function(body, torch.float64)([torch.tensor([1, 2])])
    assert exact.tolist() == [1 / 3 + 0.1, 2 / 3 + 0.1]
    with pytest.raises(RuntimeError):
        body_function(body, torch.float64)([torch.zeros(7)])
    assert torch.get_default_dtype() == torch.float32, "put back after an error too"


def test_threads_do_not_see_each_others_dtype() -> None:
    """Several devices are tested from a thread each: one computes in float64 while another asks for the source's own values."""
    nodes = (
        Node("n0", "aten.matmul.default", ({"ref": "i0"}, {"ref": "i0"}), {}, (TensorSpec((128, 128), "float32"),)),
        Node("n1", "aten.full.default", ([2], 0.1), {}, (TensorSpec((2,), "float32"),)),
    )
    body = Body("matmul", (TensorSpec((128, 128), "float32"),), ("value",), nodes, ("n0", "n1"))
    steps = NodeByNode(body, torch.float64)
    plain, exact = body_function(body), body_function(body, torch.float64)
    given = [torch.ones(128, 128)]

    def dtypes(k: int) -> tuple[torch.dtype, ...]:
        if k % 3 == 0:
            values = steps.begin(given)
            steps.run(0, values)
            return (values[steps.slots["n0"]].dtype, steps.run(1, values).dtype)
        return tuple(value.dtype for value in (plain if k % 3 == 1 else exact)(given))

    with ThreadPoolExecutor(6) as pool:
        for k, found in enumerate(pool.map(dtypes, range(600))):
            assert found == ((torch.float32 if k % 3 == 1 else torch.float64),) * 2
    assert torch.get_default_dtype() == torch.float32


def test_host_function_takes_and_gives_numpy() -> None:
    spec = TensorSpec((2, 3), "bfloat16")
    nodes = (Node("n0", "aten.transpose.int", ({"ref": "i0"}, 0, 1), {}, (TensorSpec((3, 2), "bfloat16"),)),)
    body = Body("reshape", (spec,), ("value",), nodes, ("n0",))
    array = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3)
    array.flags.writeable = False
    (result,) = host_function(body)([array])
    assert result.dtype == array.dtype and result.flags.c_contiguous and np.array_equal(result, array.T)
    (exact,) = host_function(body, "float64")([array])
    assert exact.dtype == np.float64 and np.array_equal(exact, array.T.astype(np.float64))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "bool", "float64"])
def test_arrays_and_tensors_share_memory(dtype: str) -> None:
    from tapml.tensors import NUMPY

    array = np.arange(6).reshape(2, 3).astype(NUMPY[dtype])
    tensor = tensor_from_host(array)
    assert str(tensor.dtype) == f"torch.{dtype}" and tensor.shape == (2, 3)
    assert host_from_tensor(tensor).ctypes.data == array.ctypes.data
    assert tensor_from_host(np.array(3.0, NUMPY[dtype])).shape == ()


def test_states_advance_after_the_graph_and_reset() -> None:
    prefill, decode = programs("llama")
    operators = [*cut(prefill.graph, "prefill")[0], *cut(decode.graph, "decode")[0]]
    bodies = cut(prefill.graph)[1] | cut(decode.graph)[1]
    specs = {p.key: p.spec for p in decode.graph.states}
    model = GraphExecutor([prefill.graph, decode.graph], operators, bodies, decode.weights | prefill.weights, specs)
    uncut = GraphExecutor.uncut([prefill.graph, decode.graph], decode.weights | prefill.weights, specs)
    shape = Decoder(8, 16, 128, ())
    prompt = [5, 17, 3, 99, 42, 7, 11, 23, 64, 2]
    first = [(token, row.tobytes()) for token, row in greedy(model, prompt, shape, 5)]
    assert any(state.any() for state in model.states.values())
    assert first == [(token, row.tobytes()) for token, row in greedy(model, prompt, shape, 5)], "reset starts anew"
    assert first == [(token, row.tobytes()) for token, row in greedy(uncut, prompt, shape, 5)]
    model.reset()
    assert not any(state.any() for state in model.states.values())


def test_greedy_tokens_are_the_model_s_own() -> None:
    module = causal_lm("qwen2")
    _, prefill, decode = of_model(module, chunk=4, max_len=32)
    found = [(graph, *cut(graph, graph.name)) for graph in (prefill.graph, decode.graph)]
    model = GraphExecutor(
        [graph for graph, _, _ in found], [o for _, operators, _ in found for o in operators], found[0][2] | found[1][2],
        prefill.weights | decode.weights, {p.key: p.spec for p in decode.graph.states},
    )
    prompt = [5, 17, 3, 99, 42]
    tokens = [token for token, _ in greedy(model, prompt, Decoder(4, 32, 128, ()), 12, ignore_stop=True)]
    expected = module.generate(torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None)
    assert tokens == expected[0, len(prompt):].tolist()


def test_values_are_freed_after_their_last_use() -> None:
    """While the last operator runs, of the results before only those that it reads are alive."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(5)))
    found = program(layers, {"input": torch.randn(4, 6)})
    operators, bodies = cut(found.graph)
    alive: list[int] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def hook(operator: Operator, _: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in made))
        made.extend(weakref.ref(value) for value in outputs)

    executor = GraphExecutor([found.graph], operators, bodies, found.weights, {}, hook)
    executor.step_tensors("forward", {"input": torch.randn(4, 6)})
    assert len(operators) == 5 and max(alive) <= 1


def test_a_view_is_made_whatever_the_strides() -> None:
    nodes = (Node("n0", "aten.view.default", ({"ref": "i0"}, [24]), {}, (TensorSpec((24,), "float32"),)),)
    body = Body("reshape", (MATRIX,), ("value",), nodes, ("n0",))
    turned = torch.randn(6, 4).t()
    assert torch.equal(body_function(body)([turned])[0], turned.reshape(-1))


def test_an_unknown_operator_is_named() -> None:
    node = Node("n0", "nowhere.missing.default", ({"ref": "i0"},), {}, (MATRIX,))
    with pytest.raises(ModelError, match=r"nowhere\.missing\.default"):
        body_function(Body("missing", (MATRIX,), ("value",), (node,), ("n0",)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_graph_runs_on_cuda() -> None:
    found = programs("llama")[1]
    operators, bodies = cut(found.graph)
    inputs, states = random_inputs(found.graph)
    weights = {key: tensor.cuda() for key, tensor in found.weights.items()}
    outputs = GraphExecutor([found.graph], operators, bodies, weights, states).step_tensors("decode", inputs)
    expected, _ = run_graph(found.graph, found.weights, states, inputs)
    assert outputs["logits"].is_cuda and torch.allclose(outputs["logits"].cpu(), expected["logits"], atol=1e-3)

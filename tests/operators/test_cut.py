"""Decoders as the source stage exports them generate what the model generates. Cutting them keeps every node and every bit, and
gives the operators that people expect."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.carving.executor import GraphExecutor
from tapml.operators.cut import cut
from tapml.operators.graph import Body, Graph, Node, Operator, rename
from tapml.operators.patterns import ANCHORS, HEAVY, word_of
from tapml.runtime.decoder import Decoder
from tapml.runtime.protocol import greedy
from tests.models import CAUSAL_LMS, causal_lm, conv_net, encoder
from tests.operators.programs import check_values, decoder, program, programs

PROMPTS = ([5], [5, 9, 70, 3, 20, 44, 8, 91], [17, 30, 11, 5, 64, 100, 33, 12, 90, 41, 77])
ANCHOR_WORDS = {word for kind in HEAVY for word in ANCHORS[kind]}


def kinds(operators: tuple[Operator, ...]) -> dict[str, int]:
    return dict(Counter(operator.kind for operator in operators))


@pytest.mark.parametrize("arch", CAUSAL_LMS)
def test_greedy_tokens_equal_generate_s(arch: str) -> None:
    exported, module = decoder(arch)[0], causal_lm(arch)
    assert isinstance(exported.protocol, Decoder)
    assert [g.name for g in exported.graphs] == ["prefill", "decode"]
    stepper = GraphExecutor.uncut(exported.graphs, exported.tensors, {**exported.states, **exported.initial})
    for prompt in PROMPTS:
        got = [token for token, _ in greedy(stepper, prompt, exported.protocol, 16)]
        answer = module.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
        assert got == answer[0].tolist()[len(prompt) :], prompt


@pytest.mark.parametrize("arch", CAUSAL_LMS)
def test_a_decoder_is_reproduced_bit_for_bit(arch: str) -> None:
    for found in programs(arch):
        check_values(found)


@pytest.mark.parametrize("arch", CAUSAL_LMS)
def test_an_operator_has_at_most_one_heavy_anchor(arch: str) -> None:
    for found in programs(arch):
        _, bodies = cut(found.graph)
        for body in bodies.values():
            assert sum(word_of(node) in ANCHOR_WORDS for node in body.nodes) <= 1, body.kind


@pytest.mark.parametrize("arch", CAUSAL_LMS)
def test_nearly_all_of_a_decoder_is_recognised(arch: str) -> None:
    """At most an eighth of the operators are element-wise work or re-arrangements that no structure or anchor took."""
    for found in programs(arch):
        operators, _ = cut(found.graph)
        rest = [o.name for o in operators if o.kind in ("elementwise", "reshape", "activation", "constant")]
        assert len(rest) <= max(2, len(operators) // 8), rest


def test_a_convolutional_network_is_reproduced_bit_for_bit() -> None:
    net, (images,) = conv_net()
    found = program(net, {"x": images})
    check_values(found)
    operators, _ = cut(found.graph)
    assert kinds(operators) == {"conv": 2, "batch_norm": 2, "pool": 1, "linear": 1}
    assert [o.name for o in operators] == ["conv1", "norm1", "conv2", "norm2", "pool", "head"]


def test_an_encoder_is_reproduced_bit_for_bit() -> None:
    model, inputs = encoder()
    check_values(program(model, inputs))


def test_llama_has_the_expected_operators() -> None:
    prefill, decode = programs("llama")
    per_layer = {"linear": 7, "rms_norm": 2, "rotary": 2, "cache_update": 2, "attention": 1, "gated_activation": 1}
    both = {kind: 2 * count for kind, count in per_layer.items()} | {"embedding": 1, "rotary_table": 1, "mask": 1}
    both["rms_norm"] += 1
    both["linear"] += 1
    operators, bodies = cut(decode.graph, "decode")
    assert kinds(operators) == both
    assert kinds(cut(prefill.graph)[0]) == both | {"gather": 1}
    assert [o.name for o in operators if "layers.1" in o.name] == [
        "decode/layers.1.input_layernorm", "decode/layers.1.self_attn.q_proj", "decode/layers.1.self_attn.k_proj",
        "decode/layers.1.self_attn.v_proj", "decode/layers.1.self_attn.rotary", "decode/layers.1.self_attn.rotary.2",
        "decode/layers.1.self_attn.cache_update.keys_1", "decode/layers.1.self_attn.cache_update.values_1",
        "decode/layers.1.self_attn.attention", "decode/layers.1.self_attn.o_proj", "decode/layers.1.post_attention_layernorm",
        "decode/layers.1.mlp.gate_proj", "decode/layers.1.mlp.up_proj", "decode/layers.1.mlp.gated_activation",
        "decode/layers.1.mlp.down_proj",
    ]
    residual = next(o for o in operators if o.name == "decode/layers.1.mlp.down_proj")
    assert [word_of(node) for node in bodies[residual.signature].nodes] == ["linear", "add"]


@pytest.mark.parametrize("arch", ["llama", "qwen3", "phi3", "cohere", "gpt_neox", "gemma", "olmo2"])
def test_equal_layers_share_signatures(arch: str) -> None:
    for found in programs(arch):
        operators, _ = cut(found.graph)
        first, second = (
            [
                (o.name.replace(f"layers.{k}", "layers").replace(f"_{k}", ""), o.signature)
                for o in operators
                if f"layers.{k}." in o.name
            ]
            for k in (0, 1)
        )
        assert first == second and first


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("gemma2", {"rms_norm": 9, "rotary": 4, "matmul": 4, "softmax": 2, "gated_activation": 2}),
        ("gptj", {"layer_norm": 3, "rotary": 4, "matmul": 4, "softmax": 2}),
        ("cohere", {"layer_norm": 3, "rotary": 4, "attention": 2, "gated_activation": 2}),
        ("phi3", {"rms_norm": 5, "rotary": 4, "attention": 2, "gated_activation": 2, "linear": 9}),
        ("gpt2", {"layer_norm": 5, "attention": 2, "linear": 9}),
        ("mixtral", {"topk": 2, "gated_activation": 2, "matmul": 4}),
    ],
)
def test_structures_are_recognised(arch: str, expected: dict[str, int]) -> None:
    found = kinds(cut(programs(arch)[1].graph)[0])
    assert {kind: found.get(kind, 0) for kind in expected} == expected


def test_cutting_does_not_depend_on_names_of_values() -> None:
    graph = programs("llama")[1].graph
    names = {name: f"v{k}" for k, name in enumerate(reversed([*graph.specs]))}
    names |= {node.name: names.get(node.name, f"t{k}") for k, node in enumerate(graph.nodes)}
    operators, bodies = cut(graph)
    again, same_bodies = cut(renamed_graph(graph, names))
    assert [(o.name, o.signature) for o in operators] == [(o.name, o.signature) for o in again]
    assert bodies == same_bodies


def renamed_graph(graph: Graph, names: dict[str, str]) -> Graph:
    return replace(
        graph,
        placeholders=tuple(replace(p, name=names[p.name]) for p in graph.placeholders),
        nodes=tuple(
            replace(n, name=names[n.name], args=tuple(rename(list(n.args), names)), kwargs=rename(n.kwargs, names))
            for n in graph.nodes
        ),
        outputs=tuple(names[name] for name in graph.outputs),
        mutations={key: names[name] for key, name in graph.mutations.items()},
    )


def test_cutting_again_gives_the_same() -> None:
    """Whatever the order in which sets of groups are walked; gemma2 has two masks that share positions."""
    for found in programs("gemma2"):
        cuts = [cut(found.graph) for _ in range(20)]  # all kept, so that each has objects at other addresses
        assert len({operators for operators, _ in cuts}) == 1


def test_bodies_and_operators_survive_json() -> None:
    operators, bodies = cut(programs("qwen3")[0].graph)
    for body in bodies.values():
        again = Body.from_json(body.to_json())
        assert again.signature == body.signature and all(node.module == node.source == "" for node in body.nodes)
    assert [Operator.from_json(o.to_json()) for o in operators] == list(operators)


def test_thirty_layers_are_cut_in_under_a_second() -> None:
    """A two-layer graph, its layers repeated: cutting grows with the graph, not with its square."""
    graph = repeated(programs("llama")[1].graph, 24)
    assert len(graph.nodes) > 2000
    start = time.process_time()
    operators, bodies = cut(graph)
    assert time.process_time() - start < 1.0
    assert len(bodies) < 20 < 600 < len(operators)


def repeated(graph: Graph, times: int) -> Graph:
    """The graph chained behind itself: each copy's embedding is replaced by the copy before's last norm."""
    embedding = next(node for node in graph.nodes if word_of(node) == "embedding")
    head = graph.nodes[-1]
    hidden = head.reads[0]
    nodes: list[Node] = []
    previous = ""
    for copy in range(times):
        names = {p.name: p.name for p in graph.placeholders} | {n.name: f"{n.name}_{copy}" for n in graph.nodes}
        if copy:
            names[embedding.name] = previous
        for node in graph.nodes:
            if not (copy and node is embedding) and node is not head:
                args = tuple(rename(list(node.args), names))
                nodes.append(replace(node, name=names[node.name], args=args, kwargs=rename(node.kwargs, names)))
        previous = names[hidden]
    return replace(graph, nodes=tuple(nodes), outputs=(previous,), mutations={})


def route(x: torch.Tensor) -> torch.Tensor:
    """What follows one result of the sort needs what another operator, which others read too, made of the other result."""
    values, indices = x.sort(-1)
    weights = values.softmax(-1)
    return torch.cat((indices.float() * weights, weights), -1)[:, 3:9]


class Routes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return route(x)


def test_an_epilogue_that_would_close_a_cycle_is_not_taken() -> None:
    found = program(Routes(), {"x": torch.randn(4, 6)})
    check_values(found)
    operators, bodies = cut(found.graph)
    assert [(o.kind, [word_of(n) for n in bodies[o.signature].nodes]) for o in operators] == [
        ("sort", ["sort", "getitem", "getitem", "_to_copy"]), ("softmax", ["softmax"]), ("elementwise", ["mul", "cat", "slice"]),
    ]


class RandomNetwork(torch.nn.Module):
    """A random expression over [4, 6] values: a list of (operation, first operand, second operand), operands counted back
    from the newest value."""

    def __init__(self, steps: list[tuple[str, int, int]], outputs: list[int]) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(6, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.scale = torch.nn.Parameter(torch.randn(6))
        self.register_buffer("state", torch.zeros(4, 6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [x, self.state * 1.0]
        for name, first, second in self.steps:
            a, b = values[-1 - first % len(values)], values[-1 - second % len(values)]
            values.append(self.apply_step(name, a, b))
        self.state.copy_(values[-1])
        return tuple(values[-1 - k % len(values)] * 1 for k in self.outputs)

    def apply_step(self, name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        steps = {
            "linear": lambda: self.linear(a),
            "add": lambda: a + b,
            "gate": lambda: torch.nn.functional.silu(a) * b,
            "scale": lambda: a * (1 + self.scale),
            "softmax": lambda: a.softmax(-1),
            "norm": lambda: self.norm(a),
            "rms": lambda: a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale,
            "gelu": lambda: 0.5 * a * (1 + torch.tanh(0.79 * (a + 0.044 * a.pow(3)))),
            "turn": lambda: a.t().contiguous().view(4, 6),
            "rotate": lambda: torch.cat((-a[:, 3:], a[:, :3]), -1) * b + a,
            "sort": lambda: a.sort(-1).values + a.topk(6, -1).indices,
            "split": lambda: torch.cat(a.chunk(2, -1)[::-1], -1),
            "where": lambda: torch.where(a > b, a, b * 0.5),
            "sum": lambda: a - b.sum(0, keepdim=True),
            "route": lambda: route(a),
            "pick": lambda: a[torch.arange(3, -1, -1)] + b,
        }
        return steps[name]()


STEPS = (
    "linear", "add", "gate", "scale", "softmax", "norm", "rms", "gelu", "turn", "rotate", "sort", "split", "where", "sum", "pick",
    "route",
)


@settings(max_examples=15, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=16),
    outputs=st.lists(st.integers(0, 8), min_size=1, max_size=3),
)
def test_random_networks_are_reproduced_bit_for_bit(steps: list[tuple[str, int, int]], outputs: list[int]) -> None:
    keys = [f"out{k}" for k in range(len(outputs))]
    check_values(program(RandomNetwork(steps, outputs), {"x": torch.zeros(4, 6)}, keys))


class OfIntegers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x.abs() * 3 + 1).reshape(-1), torch.roll(x, 1, 0)


def test_integers_are_no_positions_where_nothing_is_computed_in_floats() -> None:
    operators, _ = cut(program(OfIntegers(), {"x": torch.arange(12).reshape(3, 4)}, ("a", "b")).graph)
    assert operators and "position" not in kinds(operators), kinds(operators)

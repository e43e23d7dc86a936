"""Names of the files in a bundle, and the format that they are in. What is in each: docs/bundle.md."""

from __future__ import annotations

from tapml.carving.layout import BUNDLE

FORMAT = "tapml-bundle"
FORMAT_VERSION = 3

MANIFEST = BUNDLE
GRAPHS = "graphs.jsonl"
OPERATORS = "operators.jsonl"
PLAN = "plan.json"
VERDICTS = "verdicts.jsonl"
WEIGHTS = "weights.jsonl"
STATES = "states.safetensors"  # those that do not begin as zeros
PROMPTS = "prompts.jsonl"  # the run's prompts, and what the source answered
EXAMPLES = "examples.safetensors"  # of a model that chooses no tokens: inputs, and what the source gave
ACCURACY = "examples.jsonl"  # and how exact the source is there
KERNEL_FOLDER = "kernels"
SHARD_FOLDER = "weights"


# Bytes of weights in a file, as far as one weight is not larger.
SHARD_BYTES = 2**30

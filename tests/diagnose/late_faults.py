"""Kernels, in OpenCL C and in WGSL, that are wrong at late positions only, and the run that they are put into: 12 tokens and 6
steps in a cache of 160.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

import tapml
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.kernels import Program
from tests.models import VOCABULARY, causal_lm

CACHE = 160


def carved(out: Path) -> RunFolder:
    prompt = {"input_ids": torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(1))}
    module = causal_lm("llama", max_position_embeddings=512)
    module.config.eos_token_id = module.generation_config.eos_token_id = None  # its answers end with the cache
    return tapml.carve(module, prompt, out=out, decode_steps=6, chunk=32, max_len=CACHE).folder


class OtherText(Rewrite):
    """The kernels of the operators that `chosen` names are rewritten; `pattern` must be found in one of them."""

    def __init__(self, chosen: Callable[[str], bool], pattern: str, by: str) -> None:
        super().__init__(f"{pattern} is {by}", f"{pattern} is {by}")
        self.chosen, self.pattern, self.by = chosen, re.compile(pattern), by

    def program(self, operator: str, target: str, program: Program) -> Program:
        if not self.chosen(operator):
            return program
        sources = [self.pattern.sub(self.by, kernel.source) for kernel in program.kernels]
        assert sources != [kernel.source for kernel in program.kernels], f"{operator} has no {self.pattern.pattern}"
        return program.with_sources(tuple(sources))


def decode_attention(name: str) -> bool:
    return name.startswith("decode/") and name.endswith(".attention")


def ignores_keys_from(position: int, chosen: Callable[[str], bool] = decode_attention) -> OtherText:
    return OtherText(chosen, rf"(ax[23]) < {CACHE}(i?);", rf"\1 < {position}\2;")


def rotary_stops_at(position: int) -> OtherText:
    return OtherText(lambda name: name == "decode/rotary_emb", r"in0_ptr\[0(i?)\]", rf"min(in0_ptr[0\1], {position})")


def rotary_wrong_at(position: int) -> OtherText:
    """At one position that no case and no call of the check is at; in OpenCL C."""
    by = f"(in0_ptr[0] + (in0_ptr[0] == {position} ? 1 : 0))"
    return OtherText(lambda name: name == "decode/rotary_emb", r"in0_ptr\[0\]", by)

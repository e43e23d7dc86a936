"""The operators that this package converts itself, in place of or beside TVM's importer: name → conversion.

A conversion takes the importer and the fx node and returns a Relax variable (or a list of them). They are written as tensor
expressions, element by element, in four files: arithmetic and comparisons, contractions (matmul, attention), reductions and
normalisations, and indexing. Reasons to have one here although TVM has one: half precision must accumulate
in float32; integers mix with numbers by PyTorch's rules; masks are boolean; a serial loop serves every target where
TVM's version needs barriers or 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapml.compile.convert_arithmetic import ARITHMETIC
from tapml.compile.convert_contraction import CONTRACTION
from tapml.compile.convert_indexing import INDEXING
from tapml.compile.convert_reduction import REDUCTION

CONVERSIONS: dict[str, Callable[[Any, Any], Any]] = ARITHMETIC | CONTRACTION | REDUCTION | INDEXING

"""The operators that this package converts itself, in place of or beside TVM's importer: name → conversion.

A conversion takes the importer and the fx node and returns a Relax variable (or a list of them). They are written as tensor
expressions, element by element, in the files `convert_*.py`, one for each kind of operator. Reasons to have one here although TVM
has one: half precision must accumulate in float32; integers mix with numbers by PyTorch's rules; masks are boolean; NaN must come
out where PyTorch gives it; a serial loop serves every target where TVM's version needs barriers or 64-bit integers. An operator
without one is decomposed (`tapml.operators.decompose`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapml.compile.convert_arithmetic import ARITHMETIC
from tapml.compile.convert_contraction import CONTRACTION
from tapml.compile.convert_convolution import CONVOLUTION
from tapml.compile.convert_creation import CREATION
from tapml.compile.convert_indexing import INDEXING
from tapml.compile.convert_order import ORDER
from tapml.compile.convert_pooling import POOLING
from tapml.compile.convert_power import POWER
from tapml.compile.convert_reduction import REDUCTION
from tapml.compile.convert_resizing import RESIZING
from tapml.compile.convert_sampling import SAMPLING
from tapml.compile.convert_scan import SCAN

CONVERSIONS: dict[str, Callable[[Any, Any], Any]] = (
    ARITHMETIC | POWER | CREATION | CONTRACTION | CONVOLUTION | REDUCTION | POOLING | RESIZING | ORDER | SCAN | INDEXING
    | SAMPLING
)

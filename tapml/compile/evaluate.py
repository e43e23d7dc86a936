"""Runs a body as it was converted, before anything of it is lowered: TVM's virtual machine, on the processor, by LLVM.

    outputs = evaluate(body, inputs)            host arrays in the body's dtypes, one for each output

Fusing, inlining, storage dtypes, schedules and the text of kernels take no part. So a wrong answer is the fault of a conversion,
and a right one says that the fault comes later. Half precision is computed in float32 and rounded where a converted operator
ends. The functions that kernels bring along as text (`tapml.compile.function_texts`) are PyTorch's here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from tapml.compile.build import Faults
from tapml.compile.function_texts import own_name
from tapml.compile.importer import import_body
from tapml.compile.legalize import IN_FLOAT32, legalize, rounded_last
from tapml.operators.execute import function_of_numbers
from tapml.operators.graph import Body
from tapml.tensors import HostArray

_PACKED = "tapml.own."
# What PyTorch calls the functions that come as text.
OPERATORS = {
    "sine": "sin", "cosine": "cos", "tangent": "tan",
    "log": "log", "log2": "log2", "log10": "log10", "logaddexp": "logaddexp", "nextafter": "nextafter",
    "fmod": "fmod.Tensor", "remainder": "remainder.Tensor", "floor_divide": "floor_divide",
    "lgamma": "lgamma", "digamma": "digamma", "erf": "erf", "erfc": "erfc", "erfcx": "special_erfcx",
    "i0": "i0", "i0e": "special_i0e", "i1": "special_i1", "i1e": "special_i1e",
}  # fmt: skip


def evaluate(body: Body, inputs: Sequence[HostArray], mutation: str | None = None) -> list[HostArray]:
    """The outputs of `body` for `inputs`. `mutation` names a fault of `tapml.compile.mutations`, put in where it is one of
    conversions. Raises ConversionError, and what TVM raises for a module that it cannot run."""
    imported = import_body(body)
    found: dict[int, HostArray] = {output: inputs[source] for output, source in imported.forwards}
    if imported.computed:
        module = Faults(mutation).converted(relax.transform.LegalizeOps()(imported.module))
        machine = relax.VirtualMachine(relax.build(_for_llvm(module), "llvm"), tvm.cpu())
        results = machine["main"](*(_to_tvm(a) for a in inputs))
        found |= {output: results[k].numpy() for k, output in enumerate(imported.computed)}
    return [found[k] for k in range(len(body.outputs))]


def _for_llvm(module: Any) -> Any:
    """The module with half precision computed in float32, and PyTorch's functions in the place of those that come as text."""
    for name, function in list(module.functions.items()):
        if isinstance(function, tirx.PrimFunc):
            wide = legalize(rounded_last(function), {}, IN_FLOAT32)
            body = tvm_ffi.structural_map(wide.body, [(ir.Call, _with_packed), (tirx.EQ, _equal), (tirx.NE, _unequal)])
            module.update_func(name, wide.with_body(body))
    return module


def _with_packed(call: Any) -> Any:
    name = own_name(call)
    if name is None:
        return call
    operator = OPERATORS[name]
    target = f"aten.{operator if '.' in operator else operator + '.default'}"
    tvm.register_global_func(_PACKED + name, function_of_numbers(target), override=True)
    packed = tirx.call_packed(_PACKED + name, *call.args[1:])
    return tirx.Cast("float32", ir.Call(packed.op, list(packed.args), packed.attrs, [], None, ir.PrimType("float64")))


def _equal(e: Any) -> Any:
    """Booleans are compared by logic: for LLVM, TVM compares them as floats, which LLVM refuses."""
    return e if str(e.a.ty) != "bool" else tirx.Or(tirx.And(e.a, e.b), tirx.Not(tirx.Or(e.a, e.b)))


def _unequal(e: Any) -> Any:
    return e if str(e.a.ty) != "bool" else tirx.Not(_equal(e))


def _to_tvm(array: HostArray) -> Any:
    made = tvm.runtime.empty(array.shape, str(array.dtype))
    made.copyfrom(np.ascontiguousarray(array).reshape(array.shape))
    return made

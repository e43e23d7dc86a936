"""Scheduled pieces as a `Program`: source text of each kernel, launch sizes, buffers and order.

Each kernel is lowered by TVM's passes to a device function, whose parameters are pointers named after the piece's buffers; the
code generator of the target's language turns it into text of one entry point. What is checked here: the target's limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.tirx.build import codegen_build

from tapml.compile.function_texts import with_functions
from tapml.compile.pieces import Piece
from tapml.compile.tensor_expressions import is_hidden, shown
from tapml.kernels import Extent, Kernel
from tapml.languages import LANGUAGES, Language
from tapml.limits import LimitError
from tapml.targets.target import Target

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TAGS = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")


@dataclass(frozen=True)
class Emitted:
    """A kernel and the buffers of the whole function that its arguments are, in order."""

    kernel: Kernel
    buffers: tuple[Any, ...]


def device_target(target: Target) -> Any:
    """TVM's target."""
    return tvm.target.Target({**(LANGUAGES[target.language].generator or target.tvm), "host": "llvm"})


def emit(piece: Piece, entry: str, target: Target, tvm_target: Any) -> Emitted:
    """One kernel. Raises LimitError, and what TVM's passes and code generators raise."""
    function = piece.function
    named = [tirx.decl_buffer(b.shape, b.dtype, f"{_role(k, piece)}{k}", scope=b.scope()) for k, b in enumerate(function.params)]
    renamed = _with_parameters(function, named)
    language = LANGUAGES[target.language]
    if language.own_tanh:
        renamed = _with_own_tanh(renamed, language.own_tanh)
    device = _lowered(renamed, entry, tvm_target)
    if language.rest_by_division:
        device = _rests_by_division(device)
    if language.unknown:
        device = _unknown(device, language.unknown)
    device = _bits_of_numbers(_made_anew(device, device.params, shown(device.body)))
    order = [int(re.fullmatch(r"[a-z]+(\d+)_ptr", p.name).group(1)) for p in device.params]  # type: ignore[union-attr]
    grid, block = _launch(device)
    shared = _shared_bytes(device)
    text = codegen_build(tvm.IRModule({entry: device}), device.attrs["target"]).inspect_source()
    text = _exact_numbers(text, device.body)
    access = tuple("read_write" if k in piece.writes else "read" for k in order)
    kernel = _finished(Kernel(target.language, str(device.attrs["global_symbol"]), text, access, grid, block), language, target)
    _check(kernel, shared, [piece.buffers[k] for k in order], target)
    return Emitted(kernel, tuple(piece.buffers[k] for k in order))


def _role(k: int, piece: Piece) -> str:
    return "out" if k in piece.writes else "in"


def _with_parameters(function: Any, buffers: Sequence[Any]) -> Any:
    """The same function over other buffers: names decide the text, so equal work gives equal text."""
    table = dict(zip(function.params, buffers, strict=True))
    body = tvm_ffi.structural_map(function.body, [(ir.Var, lambda v: table.get(v, v))])
    return _made_anew(function, list(buffers), body)


def _made_anew(function: Any, parameters: Sequence[Any], body: Any) -> Any:
    """A function of this body with the attributes of `function`."""
    made = tirx.PrimFunc(parameters, body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        made = made.with_attr(key, value)
    return made


def _with_own_tanh(function: Any, name: str) -> Any:
    """The same function with each float32 tanh as a call of the language's own."""

    def own(call: Any) -> Any:
        if call.op.same_as(ir.Op.get("tirx.tanh")) and str(call.ty) == "float32":
            return tirx.call_pure_extern("float32", name, call.args[0])
        return call

    return _made_anew(function, function.params, tvm_ffi.structural_map(function.body, [(ir.Call, own)]))


def _lowered(function: Any, entry: str, tvm_target: Any) -> Any:
    """The device function of a scheduled one, ready for code generation."""
    module = tvm.IRModule({entry: function.with_attr("global_symbol", entry)})
    passes = [
        tirx.transform.BindTarget(tvm_target),
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.ManifestSharedMemoryLocalStage(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerAutoCopy(),
        s_tir.transform.UnifyThreadBinding(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.InjectSoftwarePipeline(),
        s_tir.transform.TransformMmaBufferLayout(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        s_tir.transform.InjectVirtualThread(),
        s_tir.transform.InjectDoubleBuffer(),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        s_tir.transform.ThreadSync("shared"),
        s_tir.transform.ThreadSync("shared.dyn"),
        s_tir.transform.ThreadSync("warp"),
        s_tir.transform.InferFragment(),
        s_tir.transform.LowerThreadAllreduce(),
        s_tir.transform.MergeSharedMemoryAllocations(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.PointerValueTypeRewrite(),
        tirx.transform.LowerWarpMemory(),
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerIntrin(),
    ]
    for step in passes[:-4]:
        module = step(module)
    found = [f for f in module.functions.values() if int(f.attrs.get("calling_conv", 0)) == 2]
    if len(found) != 1:
        raise ValueError(f"a piece became {len(found)} device functions; expected one")
    device = _chosen_by_branch(_from_infinity(found[0].with_attr("global_symbol", entry)))
    module = tvm.IRModule({entry: device})
    for step in passes[-4:]:
        module = step(module)
    return module[entry]


def _from_infinity(device: Any) -> Any:
    """The same function with searches for the largest or smallest number that begin at an infinity. TVM's begin at float32's
    lowest or largest number, so that the largest of nothing but -∞ was that. Schedules know a search by what it begins at, hence
    here, behind them: what is set to such a number in a register or in shared memory is where one begins, as numbers of the model
    are parts of expressions or go to an output."""

    def begun(store: Any) -> Any:
        value = store.value
        if not isinstance(value, tirx.FloatImm) or abs(value.value) != _FLOAT32_MAX or str(value.ty) != "float32":
            return store
        if str(store.buffer.scope()) in ("", "global"):
            return store
        return tirx.BufferStore(store.buffer, tirx.FloatImm("float32", math.copysign(math.inf, value.value)), list(store.indices))

    return _made_anew(device, device.params, tvm_ffi.structural_map(device.body, [(tirx.BufferStore, begun)]))


def _bits_of_numbers(device: Any) -> Any:
    """The same function with the bits of each float32 number that it asks for written as an integer: TVM would print the address
    of the number, which has none."""

    def bits(call: Any) -> Any:
        if not call.op.same_as(ir.Op.get("tirx.reinterpret")) or not isinstance(call.args[0], tirx.FloatImm):
            return call
        return tirx.IntImm("int32", int(np.float32(call.args[0].value).view(np.int32)))

    return _made_anew(device, device.params, tvm_ffi.structural_map(device.body, [(ir.Call, bits)]))


def _chosen_by_branch(device: Any) -> Any:
    """The same function with choices between numbers of 64 bits as branches, and their infinities widened from float32's:
    OpenCL's `select` wants a condition as wide as what it chooses from, and TVM prints an int, and every infinity as a float."""

    def branch(choice: Any) -> Any:
        if str(choice.ty) not in ("float64", "int64"):
            return choice
        return tirx.if_then_else(choice.condition, choice.true_value, choice.false_value)

    def widened(number: Any) -> Any:
        if str(number.ty) != "float64" or not math.isinf(number.value):
            return number
        return tirx.Cast("float64", tirx.FloatImm("float32", number.value))

    body = tvm_ffi.structural_map(device.body, [(tirx.Select, branch), (tirx.FloatImm, widened)])
    return _made_anew(device, device.params, body)


def _rests_by_division(device: Any) -> Any:
    """The same function with a % b of numbers that may be negative as a - (a / b) · b. WGSL defines both, but its compilers make
    Vulkan's remainder of the first, which is undefined there: NVIDIA's is that of the bits without a sign. Indices are not
    negative, and stay."""
    counted: list[Any] = []
    tvm_ffi.structural_walk(device.body, [
        (tirx.For, lambda loop: counted.append(loop.loop_var)), (tirx.AttrStmt, lambda stmt: _bound_by(stmt, counted)),
    ])  # fmt: skip

    def divided(rest: Any) -> Any:
        others: list[Any] = []  # buffers, and what holds something read from one
        tvm_ffi.structural_walk(rest.a, [
            (ir.Var, lambda v: None if any(v.same_as(variable) for variable in counted) else others.append(v)),
        ])  # fmt: skip
        if not others or not str(rest.ty).startswith("int"):
            return rest
        return tirx.Sub(rest.a, tirx.Mul(tirx.Div(rest.a, rest.b), rest.b))

    return _made_anew(device, device.params, tvm_ffi.structural_map(device.body, [(tirx.Mod, divided)]))


def _unknown(device: Any, name: str) -> Any:
    """The same function where what is hidden from TVM's simplifier is also hidden from the language's compilers: of differences
    those that a compiler may shorten, as both sides have something in common, and else all."""

    def unknown(call: Any) -> Any:
        if is_hidden(call) and str(call.ty) == "float32":
            return tirx.call_pure_extern("float32", name, call.args[0])
        return call

    def difference(node: Any) -> Any:
        if is_hidden(node.b) and not _alike(node.a, node.b.args[0]):
            return tirx.Sub(node.a, node.b.args[0])
        return node

    body = tvm_ffi.structural_map(device.body, [(tirx.Sub, difference)])
    return _made_anew(device, device.params, tvm_ffi.structural_map(body, [(ir.Call, unknown)]))


def _alike(a: Any, b: Any) -> bool:
    """Whether both expressions have an element, a variable or a number in them; those of indices do not count."""
    one, other = _read(a), _read(b)
    numbers = [any(isinstance(v, tirx.FloatImm) for v in values) for values in (one, other)]
    return all(numbers) or any(tvm_ffi.structural_equal(v, w) for v in one for w in other)


def _read(value: Any) -> list[Any]:
    found: list[Any] = []

    def load(each: Any) -> Any:
        found.append(each)
        return tvm_ffi.WalkResult.SKIP

    tvm_ffi.structural_walk(
        value, [(ir.TensorLoad, load), (tirx.FloatImm, found.append), (ir.Var, found.append)], order="pre"
    )
    return found


def _bound_by(stmt: Any, counted: list[Any]) -> None:
    if stmt.attr_key == "thread_extent":
        counted.append(stmt.node.var)


def _launch(device: Any) -> tuple[Extent, Extent]:
    sizes = dict.fromkeys(_TAGS, 1)

    def visit(node: Any) -> None:
        if node.attr_key == "thread_extent":
            tag = str(node.node.thread_tag)
            if tag not in sizes:
                raise ValueError(f"a thread axis {tag!r} that no platform here has")
            sizes[tag] = max(sizes[tag], int(node.value))

    tvm_ffi.structural_walk(device.body, [(tirx.AttrStmt, visit)])
    gx, gy, gz, bx, by, bz = (sizes[t] for t in _TAGS)
    return (gx, gy, gz), (bx, by, bz)


def _shared_bytes(device: Any) -> int:
    total = 0

    def visit(node: Any) -> None:
        nonlocal total
        buffer = node.buffer
        if str(buffer.scope()).startswith("shared"):
            total += nbytes(buffer)

    tvm_ffi.structural_walk(device.body, [(tirx.AllocBuffer, visit)])
    return total


def nbytes(buffer: Any) -> int:
    return math.prod(int(n) for n in buffer.shape) * ((int(tvm.runtime.DataType(str(buffer.dtype)).bits) + 7) // 8)


def _exact_numbers(source: str, body: Any) -> str:
    """TVM prints 7 digits of a number; a float32 needs 9, a float64 17. Each number of the function that was shortened is written
    in full. A float32 is followed by an f."""
    exact: dict[str, dict[str, str]] = {"float32": {}, "float64": {}}

    def visit(number: Any) -> None:
        dtype = str(number.ty)
        if dtype in exact and math.isfinite(number.value):
            value = abs(float(np.float32(number.value)) if dtype == "float32" else number.value)
            exact[dtype].setdefault(f"{abs(number.value):e}", f"{value!r}" if "e" in repr(value) else f"{value!r}e+00")

    tvm_ffi.structural_walk(body, [(tirx.FloatImm, visit)])
    single, double = exact["float32"], exact["float64"] or exact["float32"]
    return re.sub(
        r"(\d\.\d{6}e[+-]\d+)(f?)", lambda m: (single if m.group(2) else double).get(m.group(1), m.group(1)) + m.group(2), source
    )


def _finished(kernel: Kernel, language: Language, target: Target) -> Kernel:
    """The text as the platform wants it, and the launch as the language has it."""
    source = language.finished(re.sub(r"^//.*\n", "", kernel.source, flags=re.MULTILINE).strip() + "\n")
    grid, uniform = language.launched(kernel.grid, target.limits.max_workgroups_per_dimension)
    source = language.prelude + with_functions(source, language)
    return Kernel(kernel.language, kernel.entry, source, kernel.access, grid, kernel.block, uniform)


def _check(kernel: Kernel, shared: int, buffers: Sequence[Any], target: Target) -> None:
    limits = target.limits
    checks = [
        ("invocations in a workgroup", math.prod(kernel.block), limits.max_workgroup_invocations),
        ("bytes of workgroup memory", shared, limits.max_workgroup_memory_bytes),
        ("storage buffers", len(buffers), limits.max_storage_buffers),
        ("bytes in one binding", max(nbytes(b) for b in buffers), limits.max_binding_bytes),
        ("workgroups along a dimension", max(kernel.grid), limits.max_workgroups_per_dimension),
    ]
    for what, need, limit in checks:
        if limit is not None and need > limit:
            raise LimitError(f"kernel {kernel.entry} needs {need} {what}; {target.name} has {limit}")

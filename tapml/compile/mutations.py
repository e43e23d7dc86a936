"""Faults that are put in while an operator is compiled, on every target: in what it was converted to, in its lowered function, or
in how it is scheduled.

    module = converted("exp2-for-exp", module)                           each converted operator as a TIR function
    function = lowered("half-accumulators", function)                    right after lowering
    function = scheduled("half-accumulators", "dlight", function)        after a schedule was applied to a piece
    source = emitted("missing-barriers", "dlight", source, "wgsl")       on each kernel's text

A compile job names at most one mutation; the fault catalogue (`tapml.diagnose.faults`) says which operators get which, and what
each imitates. Each function gives back what it got where the mutation has nothing to do there. Mutations of schedules are put
into the emitted text, and leave "simple" and "serial" alone: they are what a suspected schedule is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import SBlock

from tapml.compile.function_texts import own_name
from tapml.languages import LANGUAGES, Language
from tapml.targets.schedules import FALLBACKS

# Lanes of a subgroup that the code of "assumed-subgroup" takes for granted.
_ASSUMED_LANES = 32


def _tree_step(language: Language, line: str) -> re.Match[str] | None:
    """A step of a reduction over shared memory: the lanes below a bound add what lies that far above them."""
    return re.match(rf"^\s*if \((?P<condition>.*(?:{language.lane}).* < (?P<stride>\d+)i?)\) \{{$", line.rstrip("\n"))


def converted(name: str, module: Any) -> Any:
    """The converted operators with the fault `name` in them. Raises ValueError for an unknown name."""
    change = _CONVERTED.get(_known(name))
    if change is not None:
        for variable, function in list(module.functions.items()):
            if isinstance(function, tirx.PrimFunc):
                module.update_func(variable, _with_body(function, change(function.body)))
    return module


def lowered(name: str, function: Any) -> Any:
    """The whole operator's function with the fault `name` in it. Raises ValueError for an unknown name."""
    change = _LOWERED.get(_known(name))
    return function if change is None else _with_body(function, change(function.body))


def scheduled(name: str, schedule: str, function: Any) -> Any:
    """A scheduled piece with the fault in it: none of today's faults is put in here. Raises ValueError for an unknown name."""
    _known(name)
    return function


def emitted(name: str, schedule: str, source: str, language: str) -> str:
    """A kernel's text with the fault `name` in it. Raises ValueError for an unknown name."""
    change = _EMITTED.get(_known(name))
    known = LANGUAGES[language]
    return change(source, known) if change is not None and known.barrier and schedule not in FALLBACKS else source


def _known(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"no mutation {name!r}; known: {', '.join(NAMES)}")
    return name


def _with_body(function: Any, body: Any) -> Any:
    made = tirx.PrimFunc(list(function.params), body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        made = made.with_attr(key, value)
    return made


# Conversions


def _exp2_for_exp(body: Any) -> Any:
    """Powers of two where powers of e are meant."""
    exp, exp2 = ir.Op.get("tirx.exp"), ir.Op.get("tirx.exp2")

    def change(call: Any) -> Any:
        return ir.Call(exp2, list(call.args), call.attrs, [], None, call.ty) if call.op.same_as(exp) else call

    return tvm_ffi.structural_map(body, [(ir.Call, change)])


# Lowering


def _half_accumulators(body: Any) -> Any:
    """Sums in float32 are rounded to float16's 11 significant bits after each step, and become infinite beyond 65504."""

    def change(block: Any) -> Any:
        if not _sums(block):
            return block
        store = block.body
        return _rebuilt(block, tirx.BufferStore(store.buffer, _to_half(store.value), list(store.indices)), block.init)

    return tvm_ffi.structural_map(body, [(SBlock, change)])


def _sums(block: Any) -> bool:
    """Whether a block is a sum in float32: `out = out + …`, set to something first."""
    store = block.body
    if block.init is None or not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add):
        return False
    own = [e for e in (store.value.a, store.value.b) if isinstance(e, ir.TensorLoad) and e.source.same_as(store.buffer)]
    return str(store.buffer.dtype) == "float32" and len(own) == 1


def _max_from_zero(body: Any) -> Any:
    """A largest number is sought from 0 upwards, where it should be from the lowest number."""

    def change(block: Any) -> Any:
        store = block.init
        if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.FloatImm) or store.value.value > -6e4:
            return block
        zero = tirx.FloatImm(str(store.value.ty), 0.0)
        return _rebuilt(block, block.body, tirx.BufferStore(store.buffer, zero, list(store.indices)))

    return tvm_ffi.structural_map(body, [(SBlock, change)])


def _half_angles(body: Any) -> Any:
    """Angles are rounded to float16 before their sine and cosine: what a block with one reads is an angle."""
    angles: list[Any] = []

    def note(block: Any) -> None:
        if isinstance(block.body, tirx.BufferStore) and _turns(block.body.value):
            tvm_ffi.structural_walk(block.body.value, [(ir.TensorLoad, lambda load: angles.append(load.source))])

    def change(block: Any) -> Any:
        store = block.body
        if not isinstance(store, tirx.BufferStore) or not any(store.buffer.same_as(a) for a in angles):
            return block
        at, zero = list(store.indices), tirx.FloatImm("float32", 0.0)
        # With a first value the block is not inlined: copied into each of its many uses, the text takes drivers minutes.
        init = tirx.BufferStore(store.buffer, zero, at)
        return _rebuilt(block, tirx.BufferStore(store.buffer, _to_half(store.value), at), init)

    tvm_ffi.structural_walk(body, [(SBlock, note)])
    return tvm_ffi.structural_map(body, [(SBlock, change)])


def _turns(value: Any) -> bool:
    found: list[bool] = []
    tvm_ffi.structural_walk(value, [(ir.Call, lambda call: found.append(own_name(call) in ("sine", "cosine")))])
    return any(found)


def _to_half(x: Any) -> Any:
    """float32 `x` as the nearest float16, ties away from zero, kept in float32 so that no target needs the type. Numbers below
    2^-14, where float16 has fewer bits, keep all eleven. `x` is used once: expressions are copied into their text at each use."""
    nearest = tirx.bitwise_and(tirx.reinterpret("uint32", x) + tirx.const(0x1000, "uint32"), tirx.const(0xFFFFE000, "uint32"))
    # 2^16 · 2^112 is what float32 has no number for: from 65536 on it is infinite, and back by an exact power of two.
    return tirx.reinterpret("float32", nearest) * tirx.const(2.0**112, "float32") * tirx.const(2.0**-112, "float32")


def _rebuilt(block: Any, body: Any, init: Any) -> Any:
    return SBlock(
        list(block.iter_vars), list(block.reads), list(block.writes), block.name_hint, body, init,
        list(block.alloc_buffers), list(block.match_buffers), block.annotations,
    )


# Schedules, in the text that they became


def _missing_barriers(source: str, language: Language) -> str:
    """Nothing waits for anything."""
    return "".join(line for line in source.splitlines(keepends=True) if line.strip() != language.barrier)


def _assumed_subgroup(source: str, language: Language) -> str:
    """The last steps of a reduction over shared memory do without barriers, as if 32 lanes always ran in step."""
    lines = source.splitlines(keepends=True)
    kept: list[str] = []
    for line in lines:
        step = _tree_step(language, line)
        if step and int(step["stride"]) < _ASSUMED_LANES and kept and kept[-1].strip() == language.barrier:
            kept.pop()
        kept.append(line)
    return "".join(kept)


def _early_return(source: str, language: Language) -> str:
    """The upper half of the lanes that share a reduction leave the kernel at once."""
    lines = source.splitlines(keepends=True)
    steps = [m for line in lines if (m := _tree_step(language, line))]
    entry = next((k for k, line in enumerate(lines) if line.endswith(") {\n") and not line[0].isspace()), None)
    if language.barrier not in source or not steps or entry is None:
        return source
    condition = max(steps, key=lambda m: int(m["stride"]))["condition"]
    return "".join([*lines[: entry + 1], f"  if (!({condition})) {{ return; }}\n", *lines[entry + 1 :]])


def _uninitialised_accumulators(source: str, language: Language) -> str:
    """Accumulators of kernels with shared memory keep what lay in their memory before."""
    if language.barrier not in source:
        return source
    lines = source.splitlines(keepends=True)
    summed = set(re.findall(r"^\s*(\w+)\[[^\n]*?\] = (?:\(|fma\(|max\(|min\()[^\n]*?\b\1\[", source, flags=re.MULTILINE))
    first = re.compile(r"^\s*(\w+)\[.*\] = -?\d[\d.e+]*f?;$")
    return "".join(line for line in lines if not ((m := first.match(line.rstrip("\n"))) and m[1] in summed))


_CONVERTED: dict[str, Callable[[Any], Any]] = {"exp2-for-exp": _exp2_for_exp}
_LOWERED: dict[str, Callable[[Any], Any]] = {
    "half-accumulators": _half_accumulators,
    "max-from-zero": _max_from_zero,
    "half-angles": _half_angles,
}
_EMITTED: dict[str, Callable[[str, Language], str]] = {
    "missing-barriers": _missing_barriers,
    "assumed-subgroup": _assumed_subgroup,
    "early-return": _early_return,
    "uninitialised-accumulators": _uninitialised_accumulators,
}
NAMES = (*_CONVERTED, *_LOWERED, *_EMITTED)

"""The edits of kernel text behind the faults of code generation. Each returns its text unchanged where it finds nothing.

    edited = unclamped_tanh(KernelText(source, "opencl-c", {"in0_ptr": 64, "out1_ptr": 64}))

They look for structure (a call and its arguments, a loop whose body reads an input), never for a model's or an operator's names.
"""

from __future__ import annotations

import re

from tapml.diagnose.faults.source_text import KernelText, Loop, arguments, closing, indices, loops, names, reindexed, stripped
from tapml.languages import LANGUAGES

_NUMBER = r"(?:\(\w+\))?-?\d[\d.e+-]*f?"
_CONSTANT = re.compile(r"^\(*\d+i?\)*$")

# What 16 bits can count.
INDEX_RANGE = 65536


def unclamped_tanh(kernel: KernelText) -> str:
    """tanh(x) as (exp(2x) - 1) / (exp(2x) + 1), with no limit on x: infinite over infinite where exp(2x) overflows."""
    source = kernel.source
    at = 0
    while call := re.compile(r"\b(?<!fn )(?:accurate_)?tanhf?\(").search(source, at):
        end = closing(source, call.end() - 1)
        x = _unclamped(stripped(source[call.end() : end]))
        made = f"((exp(2.0f * ({x})) - 1.0f) / (exp(2.0f * ({x})) + 1.0f))"
        source = source[: call.start()] + made + source[end + 1 :]
        at = call.start() + 1
    return source


def _unclamped(x: str) -> str:
    """What is inside max(min(x, number), number), else the expression itself."""
    for name in ("max", "min"):
        call = re.match(rf"(?:\(\w+\))?{name}\(", x)
        if not call or closing(x, call.end() - 1) != len(x) - 1:
            return x
        places = arguments(x, call.end() - 1)
        if len(places) != 2 or not re.fullmatch(_NUMBER, x[slice(*places[1])]):
            return x
        x = x[slice(*places[0])]
    return stripped(re.sub(r"^\((?:float|double|half)\)", "", x))


def longer_loop(kernel: KernelText) -> str:
    """The first loop that does nothing but sum over rows of inputs makes one step too many. Each has more than one row: of
    a single one the step would read what lies behind the buffer only, which may be zeros."""
    for loop in loops(kernel.source):
        steps = _steps(loop)
        moving = rf"\b(?:{'|'.join([loop.variable, *_named(loop)])})\b"
        registers = re.search(rf"\b(?!in\d+_ptr)\w+\[[^\]=]*{moving}[^\]=]*\]", re.sub(r"\bin\d+_ptr\[", "(", loop.body))
        if registers or not steps or re.search(r"\bout\d+_ptr\b", loop.body):
            continue
        if all(kernel.elements.get(buffer, 0) >= 2 * loop.bound * step for buffer, step in steps.items()):
            start, end = loop.bound_at
            return f"{kernel.source[:start]}{loop.bound + 1}{kernel.source[end:]}"
    return kernel.source


def _named(loop: Loop) -> dict[str, str]:
    """What the loop's body computes from its variable and gives a name to."""
    found = re.findall(rf"\b(?:let|int) (\w+)(?: : i32)? = ([^;]*\b{loop.variable}\b[^;]*);", loop.body)
    return dict(found)


def _steps(loop: Loop) -> dict[str, int]:
    """By how many elements a step of the loop moves in each input that it moves in."""
    named = _named(loop)
    found: dict[str, int] = {}
    for buffer in names(loop.body):
        for place in indices(loop.body, buffer):
            index = re.sub(r"\b\w+\b", lambda m: named.get(m[0], m[0]), loop.body[slice(*place)])
            if re.search(rf"\b{loop.variable}\b", index):
                factor = re.search(rf"\b{loop.variable} \* (\d+)", index)
                found[buffer] = max(int(factor[1]) if factor else 1, found.get(buffer, 1))
    return found


def narrow_index(kernel: KernelText) -> str:
    """The largest input of more than 65,536 elements is indexed in 16 bits."""
    large = [n for n in names(kernel.source) if n.startswith("in") and kernel.elements.get(n, 0) > INDEX_RANGE]
    if not large:
        return kernel.source
    buffer = max(large, key=lambda n: kernel.elements[n])
    return reindexed(kernel.source, buffer, lambda index: f"(({index}) & {INDEX_RANGE - 1})")


def aligned_down(kernel: KernelText) -> str:
    """The largest input whose elements are read one by one is read at addresses rounded down to four elements."""
    choice = [n for n in names(kernel.source) if n.startswith("in") and kernel.elements.get(n, 0) > 4]
    for buffer in sorted(choice, key=lambda n: -kernel.elements[n]):
        read = [kernel.source[slice(*place)] for place in indices(kernel.source, buffer, vectors=False)]
        if any(not _CONSTANT.match(index) for index in read):
            return reindexed(kernel.source, buffer, lambda index: f"(({index}) / 4 * 4)", vectors=False)
    return kernel.source


def truncated(kernel: KernelText) -> str:
    """Rounding to the nearest integer cuts the fraction off instead."""
    return re.sub(LANGUAGES[kernel.language].rounding, "trunc(", kernel.source)


def wrong_lane(kernel: KernelText) -> str:
    """The last lane of every vector that is read from one input is the lane before it."""
    source = kernel.source
    for buffer in names(source):
        lane = rf"{buffer}\[\2 \+ "
        lanes = rf"(vec4<\w+>\({buffer}\[(\w+) \+ 0\], {lane}1\], {lane}2\], {lane})3\]\)"
        edited = re.sub(lanes, r"\g<1>2])", source)
        loads = [(m, int(m[1])) for m in re.finditer(rf"\bvload(\d+)\(0, {buffer} \+ ", source)]
        for load, count in reversed(loads):
            end = closing(source, source.index("(", load.start())) + 1
            swizzle = "".join(f"{min(k, count - 2):x}" for k in range(count))
            edited = f"{edited[:end]}.s{swizzle}{edited[end:]}"
        if edited != source:
            return edited
    return source


def exponent_of_two(kernel: KernelText) -> str:
    """exp(x) becomes 2^x: the factor log2(e) is missing."""
    return re.sub(r"\b(?:__)?exp(f?)\(", r"exp2\1(", kernel.source)

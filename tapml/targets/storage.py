"""What a target does not show of a model, because it stores and computes some of the model's dtypes as others.

    changes(target, {"float16", "int64"})                       {"float16": "float32", "int64": "int32"}
    not_checked(choice, target, device_info, dtypes)            sentences for people, such as
        "float16 arithmetic: pthread-AMD EPYC has no cl_khr_fp16, so float16 was computed in float32"

A test in a wider dtype passes where the narrow one may overflow or round. So whoever reports a pass says what it was computed in.
"""

from __future__ import annotations

from collections.abc import Iterable

from tapml.languages import LANGUAGES
from tapml.limits import DeviceInfo
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import FLOATS


def changes(target: Target, dtypes: Iterable[str]) -> dict[str, str]:
    """The dtype that the target has instead of each of these, for those that it changes; in alphabetical order."""
    return {dtype: target.stored(dtype) for dtype in sorted(set(dtypes)) if target.stored(dtype) != dtype}


def not_checked(choice: TargetChoice, target: Target, info: DeviceInfo, dtypes: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each float that is computed as another, then one for all others; none where nothing is changed."""
    found = changes(target, dtypes)
    sentences = [
        f"{dtype} arithmetic: {_why(choice, target, info, dtype)}, so {dtype} was computed in {stored}"
        for dtype, stored in found.items() if dtype in FLOATS
    ]  # fmt: skip
    others: dict[str, list[str]] = {}
    for dtype, stored in found.items():
        if dtype not in FLOATS:
            others.setdefault(stored, []).append(dtype)
    sentences += [f"{_listed(names)} as such: {target.name} stores them as {stored}" for stored, names in others.items()]
    return tuple(sentences)


def _why(choice: TargetChoice, target: Target, info: DeviceInfo, dtype: str) -> str:
    language = LANGUAGES[target.language]
    if choice.dtype is not None:
        return f"{choice} asks for {choice.dtype}"
    if dtype == "float16" and choice.f16 is False and language.has_half:
        return f"{choice} asks for float32"
    feature = language.optional_dtypes.get(dtype)
    return f"{target.name} has none" if feature is None else f"{info.name} has no {feature}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

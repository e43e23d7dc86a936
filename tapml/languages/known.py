"""All languages by name. A new one is a file beside this one and one line here."""

from __future__ import annotations

import importlib

from tapml.languages.language import Language

FILES = (
    "opencl_c",
    "wgsl",
    "plain_c",
    "cuda_c",
    "hip",
    "msl",
    "null",
    "pytorch",
    "onnx",
    "body",
)


def _of(file: str) -> Language:
    found: Language = importlib.import_module(f"tapml.languages.{file}").LANGUAGE
    return found


LANGUAGES: dict[str, Language] = {language.name: language for language in map(_of, FILES)}

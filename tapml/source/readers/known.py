"""All forms of MODEL, in the order in which they are tried. A new one is a file beside this one and one line here."""

from __future__ import annotations

import importlib
from pathlib import Path

from tapml.errors import ModelError
from tapml.source.readers.reader import Reader

FILES = (
    "function",
    "gguf_file",
    "directory",
    "hub",
)


def _of(file: str) -> Reader:
    found: Reader = importlib.import_module(f"tapml.source.readers.{file}").READER
    return found


READERS: tuple[Reader, ...] = tuple(map(_of, FILES))


def reader_of(text: str) -> Reader:
    """Raises ModelError, which lists all forms, where the text has none of them."""
    for reader in READERS:
        if reader.means(text):
            return reader
    forms = [reader.form for reader in READERS]
    known = f"A model is {', '.join(forms[:-1])} or {forms[-1]}."
    if Path(text).expanduser().exists():
        raise ModelError(f"{text} is not a model. {known}")
    raise ModelError(f"No such model: {text} does not exist. {known}")

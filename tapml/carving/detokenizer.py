"""A run's tokens as text, with the tokenizer that the run keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tapml.carving import layout
from tapml.carving.folder import RunFolder
from tapml.errors import RunError

Decode = Callable[[Sequence[int]], str | None]


class Detokenizer:
    """Of one run; the tokenizer is read when it is first needed."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def text(self, tokens: Sequence[int]) -> str | None:
        """Tokens as text, without special tokens; None for a model that came without a tokenizer. Raises RunError for a damaged
        one."""
        return None if self._tokenizer is None else str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    @cached_property
    def _tokenizer(self) -> Any | None:
        if layout.TOKENIZER not in self._folder.manifest["files"]:
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self._folder.content(layout.TOKENIZER).decode())
        except RunError:
            raise
        except Exception as error:  # the library has no exception of its own
            file = self._folder.path / layout.TOKENIZER
            raise RunError(f"{file} is not a tokenizer ({str(error)[:200]}). Carve again with --fresh.") from error

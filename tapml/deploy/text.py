"""Text in and out of a bundle: its tokenizer and its chat template.

    text = Text(bundle)
    tokens = text.tokens("Why is the sky blue?")        one turn of a user, where the model has a chat template
    answer = text.of(tokens)

A model without a tokenizer takes token ids: "5 9 70". The template is a program of whoever made the model: it is rendered in
jinja2's sandbox, in a child process with limits (`tapml.source.within_limits`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from tapml import strict
from tapml.carving import layout as of_run
from tapml.deploy.bundle import AGAIN, BundleFolder
from tapml.errors import BundleError, PromptError, UnavailableError, UsageError
from tapml.source.within_limits import Unbounded, bounded


class Text:
    """Of one bundle."""

    def __init__(self, bundle: BundleFolder) -> None:
        self.bundle = bundle

    def tokens(self, prompt: str, system: str | None = None) -> list[int]:
        """Of one turn of a user, after a system message where there is one. Raises PromptError for a prompt without tokens,
        UsageError for a system message to a model without a chat template, BundleError for a template that cannot be rendered."""
        if system is not None or (self._chat is not None and self._tokenizer is not None):
            before = [] if system is None else [{"role": "system", "content": system}]
            return self.of_turns([*before, {"role": "user", "content": prompt}])
        return self.plain(prompt)

    def plain(self, text: str) -> list[int]:
        """Of a text as it is, without turns. Raises PromptError for one without tokens."""
        if self._tokenizer is None:
            if not re.fullmatch(r"\s*\d{1,9}(?:[\s,]+\d{1,9})*\s*", text):
                name = self.bundle.name
                raise PromptError(f"{name} has no tokenizer: give token ids, such as '5 9 70', not {text[:40]!r}.")
            return [int(n) for n in re.findall(r"\d+", text)]
        found: list[int] = self._tokenizer.encode(text).ids
        if not found:
            raise PromptError(f"The text {text[:40]!r} has no tokens. Give at least one word.")
        return found

    def of_turns(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of messages {"role", "content"}, up to where the answer begins. Raises UsageError where there is no chat
        template, BundleError for one that cannot be rendered."""
        if self._chat is None or self._tokenizer is None:
            raise UsageError(f"{self.bundle.name} has no chat template, so it knows no turns and no system message.")
        found: list[int] = self._tokenizer.encode(self._rendered(messages), add_special_tokens=False).ids
        return found

    def of(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special tokens."""
        if self._tokenizer is None:
            return " ".join(map(str, tokens))
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    @cached_property
    def _tokenizer(self) -> Any | None:
        if of_run.TOKENIZER not in self.bundle.manifest["files"]:
            return None
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UnavailableError(f"Text needs the tokenizers package ({error}): pip install 'tapml[run]'") from error
        try:
            return Tokenizer.from_str(self.bundle.content(of_run.TOKENIZER).decode())
        except BundleError:
            raise
        except Exception as error:  # the library has no exception of its own
            raise BundleError(f"The tokenizer of {self.bundle.path} cannot be read ({str(error)[:200]}). {AGAIN}") from error

    @cached_property
    def _chat(self) -> dict[str, Any] | None:
        if of_run.CHAT not in self.bundle.manifest["files"]:
            return None
        try:
            found = strict.fields(strict.parse(self.bundle.content(of_run.CHAT)))
            strict.text(found, "template"), strict.inner(found, "special")
        except strict.UNREADABLE as error:
            raise BundleError(f"The chat template of {self.bundle.path} cannot be read ({error}). {AGAIN}") from error
        return found

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        chat = self._chat
        assert chat is not None
        try:
            return bounded(lambda: _render(chat["template"], messages, chat["special"]))
        except Unbounded as error:
            raise BundleError(f"The chat template of {self.bundle.path} cannot be rendered: {error}.") from error


def _render(template: str, messages: Sequence[dict[str, str]], special: dict[str, str]) -> str:
    """As the models' publishers expect: blocks without the white space around them, loop controls, no access to objects."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **special)

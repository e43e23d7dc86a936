"""A bundle from Python: open it, and ask it.

    with tapml.Bundle.open("smollm2") as bundle:
        print(bundle.generate("Why is the sky blue?", max_tokens=64, temperature=0.7).text)
        for piece in bundle.stream("Write a haiku."): print(piece, end="", flush=True)

    with tapml.Bundle.open("minilm", device="phone@http://…") as bundle:
        bundle.inputs, bundle.run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]

Imports neither torch nor a compiler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tapml.deploy.answer import Answer, Asked
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.sampling import GREEDY, Sampling
from tapml.deploy.schema import Schema
from tapml.deploy.session import Session
from tapml.deploy.text import Text
from tapml.errors import UsageError
from tapml.runtime.protocol import Generating
from tapml.tensors import NUMPY, HostArray, TensorSpec


class Bundle:
    """A bundle on one device. It is loaded by what needs it first, and answers one call at a time."""

    def __init__(self, folder: BundleFolder, device: str = "local") -> None:
        self._folder = folder
        self._device = device
        self._loaded: Session | None = None

    @staticmethod
    def open(path: str | Path, device: str = "local") -> Bundle:
        """`device` is "local", or "NAME@URL" for one at a hub. Raises BundleError where there is no bundle."""
        return Bundle(BundleFolder.open(path), device)

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the device back. The next call would load the bundle again."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def name(self) -> str:
        """Of the model."""
        return self._folder.name

    @property
    def target(self) -> str:
        """What its kernels are for."""
        return str(self._folder.choice)

    @property
    def licence(self) -> str:
        """Of the weights, as the files of the model state it; "" where they do not."""
        return self._folder.licence

    @cached_property
    def inputs(self) -> dict[str, TensorSpec]:
        """What `run` takes: shape and dtype by key. Empty for a model that generates."""
        if isinstance(self._folder.protocol, Generating):
            return {}
        return {p.key: p.spec for graph in self._folder.model.graphs.values() for p in graph.inputs}

    @property
    def session(self) -> Session:
        """Kernels and weights on the device, loaded now if they are not yet. Raises UnavailableError where there is no such
        device or it does not take the bundle, BundleError for a damaged one."""
        if self._loaded is None:
            self._loaded = Session(self._folder, self._device)
        return self._loaded

    def run(self, inputs: Mapping[str, Any]) -> dict[str, HostArray]:
        """The outputs of a model that generates no text, by key; arrays of the source's shapes and dtypes. `inputs` has an array,
        or what NumPy makes one of, for each of `Bundle.inputs`. Raises UsageError for inputs that are missing, unknown, or of
        another shape or kind of number."""
        given = {key: np.asarray(value) for key, value in inputs.items()}
        if self.inputs:
            if unknown := [key for key in given if key not in self.inputs]:
                raise UsageError(f"{self.name} has no input {unknown[0]!r}. It takes {', '.join(self.inputs)}.")
            given = {key: self._as_taken(key, array) for key, array in given.items()}
        return self.session.run(given)

    def generate(self, prompt: str | Sequence[int], max_tokens: int = 128, **asked: Any) -> Answer:
        """The whole answer: `text`, `tokens`, and why it `ended`. `prompt` is one turn of a user where the model has a chat
        template, or tokens. `asked` are the settings of `stream`."""
        answer = self.stream(prompt, max_tokens, **asked)
        for _ in answer:
            pass
        return answer

    def stream(
        self, prompt: str | Sequence[int], max_tokens: int = 128, *, system: str | None = None, stop: Sequence[str] = (),
        json_schema: str | Mapping[str, Any] | None = None, published: bool = False, **sampling: Any,
    ) -> Answer:
        """An answer that is made while it is iterated over: pieces of text. `stop` has strings that end it, `json_schema` is what
        its JSON must meet; `sampling` are the settings of `tapml.deploy.sampling.Sampling`: temperature, top_k, top_p, min_p,
        repetition_penalty, seed, logit_bias. Those that are not given are greedy, or with `published` what the model's publisher
        gives. Raises UsageError for settings out of range and for a model that generates no text,
        PromptError for a prompt that does not fit."""
        try:
            chosen = replace(self._folder.published if published else GREEDY, **sampling)
        except TypeError as error:
            known = ", ".join(Sampling.__dataclass_fields__)
            others = "max_tokens, system, stop, json_schema and published"
            raise UsageError(f"{error}. Besides {others} there are {known}.") from error
        text = Text(self._folder)
        if not isinstance(self._folder.protocol, Generating):
            raise UsageError(f"{self.name} chooses no tokens: it is called with inputs, by run.")
        tokens = text.tokens(prompt, system) if isinstance(prompt, str) else [int(token) for token in prompt]
        schema = None
        if json_schema is not None:
            schema = Schema(self._folder, json_schema if isinstance(json_schema, str) else json.dumps(dict(json_schema)))
        return Answer(self.session, text, tokens, Asked(max_tokens, chosen, tuple(stop), schema))

    def _as_taken(self, key: str, array: HostArray) -> HostArray:
        """In the dtype that the model takes, unless that would change what kind of numbers they are, or a whole number."""
        kind = NUMPY[self.inputs[key].dtype]
        if array.dtype == kind:
            return array
        if np.can_cast(array.dtype, kind, "same_kind"):
            found = array.astype(kind)
            if kind.kind not in "iu" or np.array_equal(found, array):
                return found
        raise UsageError(f"{self.name} takes {key} as {self.inputs[key]}, which does not hold the {array.dtype} that is given.")

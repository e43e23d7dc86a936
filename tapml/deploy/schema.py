"""Answers that are JSON of a schema, whatever the model would say.

    schema = Schema(bundle, '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}')
    session.generate(tokens, grammar=schema.grammar())            a grammar is of one answer

The package llguidance compiles the schema and says before each token which ones may follow; a stop token is one of them only
where the JSON is whole. Which keywords it knows is in its documentation; a schema with others is refused, never followed in part.
The JSON is compact, with one space behind commas and colons: a model that may write white space may go on with it for ever.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from tapml import strict
from tapml.carving import layout as of_run
from tapml.deploy.bundle import BundleFolder
from tapml.errors import UnavailableError, UsageError
from tapml.runtime.protocol import Generating
from tapml.tensors import HostArray

# Nothing is ignored, and no white space but this. What a schema says of them itself ("x-guidance") does not count.
_WRITTEN: Any = {"lenient": False, "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Schema:
    """See the module's docstring. Raises UsageError for what is no schema that can be followed, or a bundle without a tokenizer;
    UnavailableError without llguidance."""

    def __init__(self, bundle: BundleFolder, schema: str) -> None:
        self._bundle = bundle
        protocol = bundle.protocol
        if not isinstance(protocol, Generating) or of_run.TOKENIZER not in bundle.manifest["files"]:
            raise UsageError(f"{bundle.name} has no tokenizer, so it writes no JSON. Leave out the schema.")
        self._protocol = protocol
        try:
            found = strict.parse_small(schema)
        except strict.UNREADABLE as error:
            raise UsageError(f"The JSON schema is not JSON: {error}.") from error
        if not isinstance(found, dict):
            raise UsageError(f'The JSON schema is {schema.strip()[:40]}; it has to be an object, such as {{"type": "object"}}.')
        try:
            import llguidance
        except ImportError as error:
            raise UnavailableError(f"A JSON schema needs the llguidance package ({error}): pip install 'tapml[run]'") from error
        self._matcher: Any = llguidance.LLMatcher
        try:
            self._grammar = self._matcher.grammar_from_json_schema(found, overrides=_WRITTEN)
            wrong = self._matcher(self._tokenizer, self._grammar, log_level=0).get_error()
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise UsageError(f"The JSON schema cannot be followed: {' '.join(wrong.split())[:300]}.")

    @cached_property
    def _tokenizer(self) -> Any:
        import llguidance
        from tokenizers import Tokenizer

        content = self._bundle.content(of_run.TOKENIZER).decode()
        size = max(self._protocol.vocabulary, Tokenizer.from_str(content).get_vocab_size())
        return llguidance.LLTokenizer(content, n_vocab=size, eos_token=list(self._protocol.stop) or None)

    def grammar(self) -> Writing:
        """Of a new answer."""
        return Writing(self._matcher(self._tokenizer, self._grammar, log_level=0), self._protocol.vocabulary)


class Writing:
    """How far one answer is: a `tapml.deploy.sampling.Grammar`."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def whole(self) -> bool:
        """Whether the answer so far is JSON of the schema."""
        return bool(self._matcher.is_accepting()) or self.done

    def allowed(self) -> HostArray:
        """Raises UsageError where the schema is more work than llguidance takes on."""
        found = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)[: self._vocabulary] > 0
        self._check()
        return np.pad(found, (0, self._vocabulary - len(found)))

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"The JSON schema cannot be followed further: {' '.join(self._matcher.get_error().split())[:300]}.")

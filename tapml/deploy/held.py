"""Which tokens a key-value cache holds, so that a text that goes on from them need not be taken in from its beginning.

    held = Held()
    kept = held.shared(prompt, protocol, reuse=True)
    for token in held.watched(prompt, generated(…, kept=kept)): ...

A token is held when a call that took it in was carried out. While a call is under way, and after one that failed, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from tapml.runtime.protocol import Cached, Generating
from tapml.tensors import HostArray


class Held:
    """See the module's docstring. `tokens` are those held, from the first position on; `reused`, so many first tokens of the last
    prompt were not taken in again."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.reused = 0

    def shared(self, prompt: Sequence[int], protocol: Generating, reuse: bool) -> int:
        """How many first tokens of a prompt are held; of those, whole chunks need not be taken in again, but for the last one of
        the prompt. 0 without `reuse`, and of a model without a cache."""
        self.reused = 0
        if not reuse or not isinstance(protocol, Cached):
            return 0
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, prompt, strict=False)))
        self.reused = max(0, min(kept, len(prompt) - 1)) // protocol.chunk * protocol.chunk
        return kept

    def watched(self, prompt: Sequence[int], chosen: Iterator[tuple[int, HostArray]]) -> Iterator[int]:
        """The tokens that were chosen for a prompt. Each but the first is chosen after a call that took in the one before."""
        held, last = list(prompt), -1
        while True:
            self.tokens = []
            found = next(chosen, None)
            self.tokens = held
            if found is None:
                return
            if last >= 0:
                held.append(last)
            last = found[0]
            yield last

"""Injected faults: `--inject FILE.py:FUNCTION`, a Python function that rewrites kernel source before it runs.

    def inject(operator: str, target: str, source: str) -> str

It is called once for each kernel of each operator. Programs whose source it changed are programs of their own: they are tested
alone, and share no verdict with operators whose kernels it left as they were. From Python the function itself is taken as well.

A function that changes no kernel at all is an error: its result would be that of the model without the fault, and look as if the
fault had not been noticed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence

from tapml.backends.rewrite import Rewrite
from tapml.errors import UsageError
from tapml.kernels import Program
from tapml.user_function import user_function

InjectFunction = Callable[[str, str, str], str]

Inject = str | InjectFunction | Rewrite
"""What `inject` takes from Python: the text of `--inject`, a function as described above, or any rewrite."""

# One token a function in this process: what a function does cannot be read off it, so it is equal to itself only.
_tokens: dict[InjectFunction, str] = {}


def loaded(inject: Inject | None) -> Rewrite | None:
    """Raises UsageError where `inject` is no such thing, or its file cannot be used."""
    if inject is None or isinstance(inject, Rewrite):
        return inject
    if isinstance(inject, str):
        return Injection.load(inject)
    if callable(inject):
        return Injection.of(inject)
    raise UsageError(
        f"inject takes the text FILE.py:FUNCTION or a function (operator, target, source) -> source, not {type(inject).__name__}."
    )


class Injection(Rewrite):
    """A fault that rewrites kernels. `digest` covers the file's content and the function's name; of a function given from Python
    it is good for this process only. `changed` has, for each operator whose kernels it was shown, how many it changed and how
    many there are, the first time."""

    def __init__(self, text: str, digest: str, function: InjectFunction) -> None:
        super().__init__(text, digest)
        self.function = function
        self.changed: dict[str, tuple[int, int]] = {}

    @staticmethod
    def of(function: InjectFunction) -> Injection:
        """A function given from Python, named as it is in its module."""
        name = getattr(function, "__qualname__", type(function).__name__)
        try:
            digest = _tokens.setdefault(function, uuid.uuid4().hex)
        except TypeError:  # one that cannot be hashed
            digest = uuid.uuid4().hex
        return Injection(f"{getattr(function, '__module__', None) or 'function'}:{name}", digest, function)

    @staticmethod
    def load(text: str) -> Injection:
        """Loads `FILE.py:FUNCTION`. Raises UsageError when there is no such file or function, or the file fails."""
        path, name, function = user_function("--inject", text)
        digest = hashlib.blake2b(path.read_bytes() + b"\0" + name.encode(), digest_size=16).hexdigest()
        return Injection(text, digest, function)

    def program(self, operator: str, target: str, program: Program) -> Program:
        """The program with every kernel's source rewritten; the very same object if nothing changed. Raises UsageError
        when the function raises or returns no string."""
        sources: list[str] = []
        for kernel in program.kernels:
            try:
                source = self.function(operator, target, kernel.source)
            except Exception as error:
                raise UsageError(
                    f"--inject {self.text!r} raised {type(error).__name__} for operator {operator}: {error}"
                ) from error
            if not isinstance(source, str):
                raise UsageError(
                    f"--inject {self.text!r} returned {type(source).__name__} for operator {operator}; it must return the "
                    "kernel's source as a str (unchanged where no fault is wanted)."
                )
            sources.append(source)
        changed = sum(kernel.source != source for kernel, source in zip(program.kernels, sources, strict=True))
        self.changed.setdefault(operator, (changed, len(sources)))
        return program.with_sources(tuple(sources)) if changed else program

    @property
    def kernels_changed(self) -> tuple[int, int]:
        found = list(self.changed.values())
        return sum(changed for changed, _ in found), sum(seen for _, seen in found)

    def require_change(self, operators: Sequence[str], target: str) -> None:
        """Raises UsageError where it was shown kernels of these operators, and left all of them as they were."""
        shown = {name: self.changed[name] for name in operators if name in self.changed}
        kernels = sum(seen for _, seen in shown.values())
        if not kernels or any(changed for changed, _ in shown.values()):
            return
        example = next(iter(shown))
        raise UsageError(
            f"The fault {self.text} changed none of {kernels} kernels (operators: {len(shown)}), so this would be a result "
            f"without a fault. Check what the function compares with: the target is called {target!r}, operators such as "
            f"{example!r}. Check the text that it replaces, too: `tapml explain` writes an operator's kernels into files."
        )

"""Injected faults: `--inject FILE.py:FUNCTION`, a Python function that rewrites kernel source before it runs.

    def inject(operator: str, target: str, source: str) -> str

It is called once for each kernel of each operator. Programs whose source it changed are programs of their own: they are tested
alone, and share no verdict with operators whose kernels it left as they were.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from tapml.errors import UsageError, nearest
from tapml.kernels import Program
from tapml.migrate.alteration import Alteration
from tapml.operators.graph import Operator

InjectFunction = Callable[[str, str, str], str]


class Injection(Alteration):
    """A loaded fault. `digest` covers the file's content and the function's name."""

    def __init__(self, text: str, digest: str, function: InjectFunction) -> None:
        super().__init__(text, digest)
        self.function = function

    @staticmethod
    def load(text: str) -> Injection:
        """Loads `FILE.py:FUNCTION`. The file is run as a program of the user's, like a model's file. Raises UsageError when
        there is no such file or function, or the file fails."""
        file, colon, name = text.rpartition(":")
        if not colon or not file or not name:
            raise UsageError(f"--inject {text!r} is not of the form FILE.py:FUNCTION.")
        path = Path(file)
        if not path.is_file():
            raise UsageError(f"--inject {text!r}: there is no file {file}.")
        sys.path.insert(0, str(path.resolve().parent))
        try:
            found = runpy.run_path(str(path))
        except (Exception, SystemExit) as error:
            raise UsageError(f"--inject {text!r}: running {file} failed with {type(error).__name__}: {error}") from error
        finally:
            sys.path.pop(0)
        function = found.get(name)
        if not callable(function):
            functions = [n for n, value in found.items() if callable(value) and not n.startswith("_")]
            raise UsageError(f"--inject {text!r}: {file} has no function {name!r}. {nearest(name, functions)}")
        digest = hashlib.blake2b(path.read_bytes() + b"\0" + name.encode(), digest_size=16).hexdigest()
        return Injection(text, digest, function)

    def program(self, operator: Operator, target: str, program: Program) -> Program:
        return self.apply(operator.name, target, program)

    def apply(self, operator: str, target: str, program: Program) -> Program:
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
        if all(kernel.source == source for kernel, source in zip(program.kernels, sources, strict=True)):
            return program
        return program.with_sources(tuple(sources))

"""An engine that takes whole operators, as its makers write it: the interface of engines in packages of their own.

    class MyEngine:
        interface = 1
        options = {"threads": "how many threads it uses"}

        def __init__(self, options):                       # {"threads": "4"} for --target my-engine:threads=4
            self.device, self.version = "this processor", "MyEngine 2.1"

        def compile(self, body):                           # raises NotSupported("aten.cumsum.default: …")
            return lambda inputs: [numpy.add(*inputs)]

Such a class is named by an entry point (`tapml.targets.packaged`), and nothing else of it is known here. What helps to write
one: `arguments` gives what a node is called with, `simpler` writes a body with the operators that the engine has.
docs/new-backend.md goes through all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol, TypeAlias

from tapml.errors import ModelError, NotSupported
from tapml.operators.graph import Body, Node
from tapml.tensors import HostArray

# One run of an operator: C-contiguous arrays, which cannot be written, in the order of `body.inputs`; the outputs in the order of
# `body.outputs`, each with the shape of `body.output_specs` and its dtype, both of them as they are stored.
Function: TypeAlias = Callable[[list[HostArray]], Sequence[HostArray]]


class OperatorEngine(Protocol):
    """`interface` is `tapml.targets.packaged.INTERFACE` as the engine's makers found it. `device` says what it computes on and
    `version` what computes (its name and version), a line each.

    A class may have two attributes more: `options`, what `--target NAME:option=value` takes, with what the values are, in words;
    and `storage`, the dtype that values of a dtype are computed in where the engine does not have that one ({"bfloat16":
    "float32"}). All arrays then come and go in these dtypes.

    It is made, and called, in a child process with one thread: a crash costs one verdict."""

    interface: ClassVar[int]
    device: str
    version: str

    def __init__(self, options: Mapping[str, str]) -> None:
        """What the user wrote behind the target's name, every value a text. The engine's own library is imported here, so that
        whoever does not use it does not wait for it. Raises `tapml.errors.UnavailableError`, with what to install or to do, or
        any ImportError, when it cannot run here; `tapml.errors.TargetError` for the value of an option."""

    def compile(self, body: Body) -> Function:
        """One operator, ready to run any number of times. Its weights are inputs like the others. Raises NotSupported with what
        is not supported, and why; anything else that it raises is an error of the engine."""


# What a call is made of may be made of others in turn.
_ROUNDS = 3


def arguments(node: Node, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a node is called with, by position and by name, in the words of ATen: `{"ref": "n0"}` is `values["n0"]`, numbers that
    JSON does not have are floats, dtypes and the like are their names ("float32"). Defaults that the model left out are not
    there."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((what, word),) = value.items()
        if what == "ref":
            return values[word]
        return {"float": float, "complex": complex, "seed": int}.get(what, str)(word)

    return [plain(value) for value in node.args], {key: plain(value) for key, value in node.kwargs.items()}


def simpler(body: Body, known: Callable[[str], bool]) -> Body:
    """The same operator, where every node for whose target ("aten.layer_norm.default") `known` is False is written with those for
    which it is True, as PyTorch composes it. Imports PyTorch if there is anything to do. Raises NotSupported for a node that
    PyTorch does not compose of them, with what that would take."""
    whole = list(dict.fromkeys(node.target for node in _unknown(body, known)))
    if not whole:
        return body
    from tapml.operators.decompose import NoDecomposition, decomposed

    for _ in range(_ROUNDS):
        for node in (unknown := _unknown(body, known)):
            with suppress(NoDecomposition, ModelError):  # the latter for what this PyTorch does not have
                body = decomposed(body, (node.name,), lambda name: known(f"aten.{name}"))
        left = _unknown(body, known)
        if left == unknown:
            break
    needs = [target for target in dict.fromkeys(node.target for node in left) if target not in whole]
    if left:
        more = f" (what PyTorch composes it of needs {', '.join(needs)})" if needs else ""
        raise NotSupported(f"{', '.join(whole)}: not supported{more}")
    return body


def _unknown(body: Body, known: Callable[[str], bool]) -> list[Node]:
    return [node for node in body.nodes if node.target != "getitem" and not known(node.target)]

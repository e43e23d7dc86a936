"""`tapml.testing.check_backend`: our backends keep its rules, and for each rule there is a backend that it finds to break it."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tapml.testing
from tapml.backends.forwarding import Forwarding
from tapml.backends.source import OnHost, Source
from tapml.errors import DeviceError, UsageError
from tapml.testing import BrokenRule, check_backend
from tapml.testing.rules import RULES
from tests.backends.engines import EXAMPLE, ROOT, TEXT


def test_what_is_public() -> None:
    assert tapml.testing.__all__ == ["BrokenRule", "Checked", "check_backend"]


@pytest.mark.parametrize("target", ["opencl", "cpu", "torch", "ort"])
def test_our_backends_keep_the_rules(target: str, need: Callable[[str], str]) -> None:
    found = check_backend(need(target))
    assert found.rules == (*RULES, "close") and len(found.ran) + len(found.refused) == 24
    assert set(found.refused) <= {"aten.mul.Tensor of bfloat16[40], bfloat16[40]"}, found.refused


def test_the_source_keeps_the_rules() -> None:
    assert not check_backend(Source()).refused  # type: ignore[arg-type]


def test_the_example_keeps_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import numpy_engine  # type: ignore[import-not-found]

    for options in ({}, {"precise": "0"}):
        assert not check_backend(numpy_engine.NumPy(options)).refused
    del sys.modules["numpy_engine"]


class Toy(Forwarding):
    """The source, with one thing wrong in it."""

    def __init__(self) -> None:
        super().__init__(Source())  # type: ignore[arg-type]
        self.pool.device = self  # type: ignore[assignment]

    def allocate(self, nbytes: int) -> int:
        return self.inner.allocate(nbytes)  # type: ignore[attr-defined, no-any-return]

    def free(self, buffer: int) -> None:
        self.inner.free(buffer)  # type: ignore[attr-defined]


class OtherName(Toy):
    @property
    def info(self) -> Any:
        return replace(self.inner.info, platform="opencl")


class ForgetsOffsets(Toy):
    def write(self, buffer: int, data: Any, offset: int = 0, keep: bool = False) -> None:
        self.inner.write(buffer, data, 0, keep)


class KeepsTheCallersMemory(Toy):
    def write(self, buffer: int, data: Any, offset: int = 0, keep: bool = False) -> None:
        self.late = (buffer, data, offset)

    def read_many(self, parts: Any) -> list[bytes]:
        self.inner.write(*self.late)
        return self.inner.read_many(parts)


class WholeWords(Toy):
    def read_many(self, parts: Any) -> list[bytes]:
        return [data + bytes(-len(data) % 4) for data in self.inner.read_many(parts)]


class ReadsOneForAll(Toy):
    def read_many(self, parts: Any) -> list[bytes]:
        return [self.inner.read_many([(parts[0][0], size, at)])[0] for _, size, at in parts]


class Prepares(Toy):
    """`remade` makes something else of what is prepared."""

    def prepare(self, bodies: Any, on_prepared: Any = None, way: Any = None) -> Any:
        found = {key: self.remade(bodies[key], prepared) for key, prepared in self.inner.prepare(bodies).items()}
        for key, prepared in found.items():
            on_prepared(key, prepared)
        return found

    def remade(self, body: Any, prepared: Any) -> Any:
        return prepared


class Raises(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        return prepared.compiled.run and prepared


class TakesAll(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        return replace(prepared, compiled=OnHost(body.inputs, body.output_specs, "d", lambda given: given), status="ok")


class TellsNobody(Toy):
    def prepare(self, bodies: Any, on_prepared: Any = None, way: Any = None) -> Any:
        return self.inner.prepare(bodies)


class SaysNothing(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        return replace(prepared, message="")


class OneDigest(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        return prepared if prepared.compiled is None else replace(prepared, compiled=replace(prepared.compiled, digest="kernel"))


class NewDigests(Prepares):
    count = 0

    def remade(self, body: Any, prepared: Any) -> Any:
        self.count += 1
        return prepared if prepared.compiled is None else replace(
            prepared, compiled=replace(prepared.compiled, digest=f"{body.signature} {self.count}")
        )  # fmt: skip


class SwapsAxes(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        if prepared.compiled is None or body.kind != "mm":
            return prepared
        run = prepared.compiled.run
        return replace(prepared, compiled=replace(prepared.compiled, run=lambda given: [np.flip(run(given)[0], 0)]))


class NotQuite(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        if prepared.compiled is None or body.kind != "exp":
            return prepared
        run = prepared.compiled.run
        return replace(prepared, compiled=replace(prepared.compiled, run=lambda given: [run(given)[0] * np.float32(1 + 1e-5)]))


class OtherShapes(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        if prepared.compiled is None:
            return prepared
        outputs = tuple(replace(spec, shape=spec.shape[::-1]) for spec in prepared.compiled.outputs)
        return replace(prepared, compiled=replace(prepared.compiled, outputs=outputs))


class WritesItsInputs(Toy):
    def submit(self, work: Any) -> None:
        self.inner.submit(work)
        for _, given, _ in work:
            self.inner.write(given[0], bytes(4))


class ClaimsAnOutput(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        if prepared.compiled is None:
            return prepared
        return replace(prepared, compiled=replace(prepared.compiled, forwards=tuple((k, 0) for k in range(len(body.outputs)))))


class WritesWhatItHandsOn(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        on = tuple((k, int(name[1:])) for k, name in enumerate(body.outputs) if name.startswith("i"))
        return prepared if prepared.compiled is None else replace(prepared, compiled=replace(prepared.compiled, forwards=on))


class LastFirst(Toy):
    def submit(self, work: Any) -> None:
        self.inner.submit(list(work)[::-1])


class OnceOnly(Toy):
    def submit(self, work: Any) -> None:
        self.inner.submit(work)
        work.clear()


class OneAtATime(Toy):
    """It forgets work that nobody waited for."""

    waiting: Sequence[Any] = ()

    def submit(self, work: Any) -> None:
        self.waiting = list(work)

    def read_many(self, parts: Any) -> list[bytes]:
        self.inner.submit(self.waiting)
        self.waiting = ()
        return self.inner.read_many(parts)


class BadScratch(Prepares):
    def remade(self, body: Any, prepared: Any) -> Any:
        return prepared if prepared.compiled is None else replace(prepared, compiled=replace(prepared.compiled, scratch=(-4,)))


class RunsWildly(Toy):
    def run_once(self, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("division by zero")


class TakesAndFails(Toy):
    def run_once(self, *args: Any, **options: Any) -> Any:
        raise DeviceError("launch", "too few registers")


class NotTwice(Toy):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("it is closed")
        self.closed = True


class NothingNew(Toy):
    def reopen(self) -> None:
        raise OSError("no such file")


class Leaks(Toy):
    def reopen(self) -> None:
        pass


BROKEN: dict[type[Toy], tuple[str, str]] = {
    OtherName: ("info", "it was opened as torch, and says that it is opencl"),
    ForgetsOffsets: ("memory", "reading 64 bytes at offset 0, after 8 were written at offset 24: byte 0 is 165, and should be 0"),
    KeepsTheCallersMemory: ("memory", "what was written of .* is not what is read"),
    WholeWords: ("memory", r"of float16\[\], 2 bytes, is not what is read: 4 bytes came, and 2 were asked for"),
    ReadsOneForAll: ("memory", "reading 5 bytes at offset 3"),
    Raises: ("refusals", "prepare, for an operator that does not exist, raises AttributeError.* may raise is DeviceError"),
    TakesAll: ("refusals", "it takes an operator that does not exist"),
    TellsNobody: ("refusals", r"prepare of one body gives \['an operator'\], and tells of \[\]"),
    SaysNothing: ("refusals", "prepare refuses an operator that does not exist without a message"),
    OtherShapes: ("refusals", r"the outputs of 2 x \+ 1 .* are float32\[5, 3\], and should be float32\[3, 5\]"),
    SwapsAxes: ("values", r"aten.mm.default of float32\[5, 19\], float32\[19, 6\] is off by"),
    NotQuite: ("values", r"aten.exp.default of float32\[3, 5\] is off by .*e-06, where 1.91e-06 is allowed"),
    RunsWildly: ("values", r"aten.mul.Tensor of float32\[3, 5\] was taken, and raises ZeroDivisionError: division by zero"),
    TakesAndFails: ("values", "was taken, and fails with DeviceError: too few registers"),
    WritesItsInputs: ("inputs", r"a run changes the buffer of its input: it is 0.0 at \[0, 0\], and should be -7.0"),
    ClaimsAnOutput: ("refusals", "say that output 0 is input 0, which it is not"),
    WritesWhatItHandsOn: ("forwards", "in forwards, and its buffer is written"),
    LastFirst: ("order", "after 2 of 12 runs in one submit, each on the output of the one before, is wrong"),
    OnceOnly: ("order", "work that is submitted a second time is wrong"),
    OneAtATime: ("order", "work that is submitted a second time is wrong"),
    BadScratch: ("scratch", "are no sizes in bytes"),
    OneDigest: ("digests", "have one digest, 'kernel'"),
    NewDigests: ("digests", "one body has the digests"),
    NothingNew: ("digests", "it raises OSError: no such file"),
    Leaks: ("reopen", "bytes of its pool are still in use"),
    NotTwice: ("close", "close, called twice, raises RuntimeError: it is closed"),
}


@pytest.mark.parametrize("toy", BROKEN, ids=lambda toy: toy.__name__)
def test_a_broken_one_is_told_which_rule_it_breaks(toy: type[Toy]) -> None:
    rule, words = BROKEN[toy]
    with pytest.raises(BrokenRule, match=f"^{rule}: .*{words}") as caught:
        check_backend(toy())  # type: ignore[arg-type]
    assert caught.value.rule == rule and isinstance(caught.value, AssertionError)


def test_every_rule_can_be_broken() -> None:
    assert {rule for rule, _ in BROKEN.values()} | {"in flight"} == {*RULES, "close"}


@pytest.mark.parametrize(("edit", "words"), [
    (("", ""), "values: it does not take aten.mul.Tensor of float32|"),
    (("raise NotSupported(f", "raise KeyError(f"), "refusals: .*KeyError.*what an engine does not have is refused with NotS"),
    (("values[name] for", "values[name] + 1 for"), "values: aten.mul.Tensor .* is off by"),
    (("made = [", "inputs[0] *= 2; made = ["), "values: .*was taken, and fails with DeviceError: .*read-only"),
    (('"a toy", "Toy 3"', '"a toy", "Toy\\n3"'), "info: its driver is 'Toy\\\\n3', and should be one line"),
], ids=["whole", "wild", "wrong", "writes", "lines"])
def test_an_engine_that_is_handed_in(edit: tuple[str, str], words: str) -> None:
    space: dict[str, Any] = {}
    assert edit[0] in TEXT
    exec(TEXT.replace(*edit), space)
    engine = space["Engine"]({})
    if not edit[0]:
        found = check_backend(engine)
        assert len(found.ran) == 7 and all("a toy has none" in why for why in found.refused.values())
        return
    with pytest.raises(BrokenRule, match=words):
        check_backend(engine)


def test_the_engine_of_the_page_keeps_the_rules() -> None:
    """And the table of rules is that of `rules.py`."""
    page = (ROOT / "docs" / "new-backend.md").read_text()
    block = page[page.index("    import numpy as np\n") : page.index("| part | meaning |")]
    space: dict[str, Any] = {}
    exec(textwrap.dedent(block), space)
    found = check_backend(space["Mine"]({}))
    assert len(found.ran) == 7 and all("there is no such call" in why for why in found.refused.values())
    assert tuple(re.findall(r"^\| `([a-z ]+)` \| ", page[page.index("| rule |") :], re.MULTILINE)) == found.rules


def test_what_is_no_backend() -> None:
    with pytest.raises(UsageError, match="not SimpleNamespace"):
        check_backend(SimpleNamespace())  # type: ignore[arg-type]
    assert Path(tapml.testing.__file__).name == "__init__.py"

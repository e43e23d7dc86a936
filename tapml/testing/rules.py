"""The rules that every backend keeps, a function each, in the order in which `check_backend` checks them.

They follow from `tapml.backends.interface` and `tapml.runtime.engine`: what migrating, bisecting and diagnosing do with a
backend is wrong, without an error, where one of these is broken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tapml.backends.source import Functions, Source
from tapml.carving.distance import distance
from tapml.carving.tolerance import compound_bound
from tapml.operators.to_json import body_of, json_text
from tapml.runtime.buffers import as_bytes
from tapml.runtime.engine import Compiled
from tapml.tensors import FLOATS, NUMPY, HostArray, TensorSpec, as_read, dtype_name
from tapml.testing.checking import BrokenRule, Checking, told
from tapml.testing.operators import HANDED_ON, OTHER_STEP, SPEC, STEP, SUM, UNKNOWN, Sample, samples

# How many runs are under way at once, and how many follow each other.
AT_ONCE = 12
GARBAGE = 0xA5


def info(check: Checking) -> None:
    """What it says of itself: the device is of the target that was asked for, and is told the same each time."""
    backend = check.backend
    found, name = backend.info, backend.choice.name
    for what, text in (("name", found.name), ("driver", found.driver), ("platform", found.platform)):
        if not isinstance(text, str) or "\n" in text:
            raise BrokenRule("info", f"its {what} is {text!r}, and should be one line of text")
    if not found.name:
        raise BrokenRule("info", "it does not name what it computes on")
    if found.platform != name or backend.target.name != name:
        raise BrokenRule("info", f"it was opened as {name}, and says that it is {found.platform}, target {backend.target.name}")
    if backend.info != found:
        raise BrokenRule("info", "it says something else of itself when it is asked again")
    if wrong := [dtype for dtype in NUMPY if backend.target.stored(dtype) not in NUMPY]:
        raise BrokenRule("info", f"it stores {wrong[0]} as {backend.target.stored(wrong[0])!r}, which is no dtype")


def memory(check: Checking) -> None:
    """What was written is what is read, in every dtype and at every offset, and nothing else changes."""
    random = np.random.default_rng(3)
    for dtype, kind in NUMPY.items():
        for shape in ((), (0,), (1,), (3, 0, 2), (3, 5), (4099,)):
            size = int(np.prod(shape)) * kind.itemsize
            data = bytes(random.integers(0, 2 if dtype == "bool" else 256, size, np.uint8))
            buffer = check.backend.pool.allocate(size)
            given = bytearray(data)
            check.backend.write(buffer, memoryview(given))
            given[:] = bytes(size)  # whoever writes may use its memory again at once
            (found,) = check.backend.read_many([(buffer, size, 0)])
            if bytes(found) != data:
                where = f"of {TensorSpec(shape, dtype)}, {size} bytes,"
                raise BrokenRule("memory", f"what was written {where} is not what is read: {_differ(bytes(found), data)}")
            check.backend.pool.release(buffer)
    one, other = (check.buffer(np.arange(start, start + 64, dtype=np.uint8)) for start in (0, 100))
    check.backend.write(one, bytes([GARBAGE] * 8), 24)
    parts = [(one, 64, 0), (other, 5, 3), (one, 8, 24), (other, 0, 0)]
    expected = bytearray(range(64))
    expected[24:32] = bytes([GARBAGE] * 8)
    wanted = [bytes(expected), bytes(range(103, 108)), bytes([GARBAGE] * 8), b""]
    for part, found, right in zip(parts, check.backend.read_many(parts), wanted, strict=True):
        if bytes(found) != right:
            what = f"{part[1]} bytes at offset {part[2]}, after 8 were written at offset 24"
            raise BrokenRule("memory", f"reading {what}: {_differ(bytes(found), right)}")
    check.backend.pool.release(one)
    check.backend.pool.release(other)


def refusals(check: Checking) -> None:
    """What it does not have is refused with a message, and it goes on working."""
    if not isinstance(check.taken("refusals", UNKNOWN, "an operator that does not exist"), str):
        raise BrokenRule("refusals", "it takes an operator that does not exist, aten.tapml_no_such_operator")
    check.compiled("refusals", STEP, "2 x + 1 in float32, after it refused something")


def digests(check: Checking) -> None:
    """Equal bodies have equal digests, also when they are prepared anew; others have others."""
    one, other = (check.compiled("digests", body, "2 x + 1 in float32") for body in (STEP, OTHER_STEP))
    if one.digest == other.digest:
        raise BrokenRule("digests", f"2 x + 1 and 2 x + 3 have one digest, {one.digest!r}: one would run for the other")
    again = check.compiled("digests", body_of(json_text(STEP)), "2 x + 1 in float32")
    if again.digest != one.digest:
        raise BrokenRule("digests", f"one body has the digests {one.digest!r} and {again.digest!r}")
    check.backend.reopen()
    again = check.compiled("digests", STEP, "2 x + 1 in float32, after it was opened anew")
    if again.digest != one.digest:
        raise BrokenRule("digests", f"after it was opened anew, one body has the digest {again.digest!r} and not {one.digest!r}")


def values(check: Checking) -> None:
    """Every operator that it takes gives the values that PyTorch gives, within the bounds of `tapml.carving.tolerance`."""
    bodies = {sample.body.signature: sample.body for sample in samples()}
    source, exact = (Functions(Source(dtype), bodies) for dtype in (None, "float64"))
    for number, sample in enumerate(samples()):
        name = f"{sample.name} of {', '.join(map(str, sample.body.inputs))}"
        compiled = check.taken("values", sample.body, name)
        if isinstance(compiled, str):
            if number < 2:
                raise BrokenRule("values", f"it does not take {name}, which every backend must have: {compiled}")
            check.refused[name] = compiled
            continue
        with told("values", f"{name} was taken, and"):
            (found,) = check.backend.run_once(compiled, sample.inputs, poison=True)
        _judged(name, found, compiled, sample, source, exact)
        check.ran.append(name)


def _judged(name: str, found: HostArray, compiled: Compiled, sample: Sample, source: Functions, exact: Functions) -> None:
    spec, (stored,) = sample.body.output_specs[0], compiled.outputs
    if tuple(found.shape) != stored.shape or dtype_name(found) != stored.dtype:
        raise BrokenRule("values", f"{name} gives {dtype_name(found)}{list(found.shape)}, and should give {stored}")
    (own,), (right,) = (function(sample.body.signature)(sample.inputs) for function in (source, exact))
    error = distance(as_read(found, spec.dtype), np.asarray(right))
    off = distance(np.asarray(own), np.asarray(right)) if spec.dtype in FLOATS else 0.0
    bound = compound_bound(off, spec.dtype)
    if not error <= bound:
        raise BrokenRule("values", f"{name} is off by {error:.3g}, where {bound:.3g} is allowed (PyTorch itself: {off:.3g})")


def inputs(check: Checking) -> None:
    """A run leaves its inputs as they are, and may be given one buffer twice."""
    compiled = check.compiled("inputs", SUM, "a sum of two float32")
    x = _x()
    buffer = check.buffer(x)
    outputs = _outputs(check, compiled)
    with told("inputs", "a sum whose two inputs are one buffer"):
        check.backend.submit(check.backend.record(compiled, [buffer, buffer], outputs))
        found, left = check.read(outputs[0], SPEC), check.read(buffer, SPEC)
    if not np.array_equal(left, x):
        raise BrokenRule("inputs", f"a run changes the buffer of its input: {_off(left, x)}")
    if not np.array_equal(found, x + x):
        raise BrokenRule("inputs", f"a sum whose two inputs are one buffer is wrong: {_off(found, x + x)}")


def handed_on(check: Checking) -> None:
    """An output that is an input unchanged is in `forwards`, and its buffer is not written; or it is computed like the others."""
    compiled = check.compiled("forwards", HANDED_ON, "an operator one of whose outputs is its input")
    x = _x()
    for name, found, right in zip(("the input", "2 x"), check.backend.run_once(compiled, [x]), (x, 2 * x), strict=True):
        if not np.array_equal(found, right):
            raise BrokenRule("forwards", f"the output that is {name} is wrong: {_off(found, right)}")
    buffer, buffers = check.buffer(x), _outputs(check, compiled)
    check.backend.submit(check.backend.record(compiled, [buffer], buffers))
    left = check.read(buffers[0], SPEC)
    untouched = np.full(SPEC.nbytes, GARBAGE, np.uint8).view(np.float32).reshape(SPEC.shape)
    if not np.array_equal(left, untouched if compiled.forwards else x):
        said = "in forwards, and its buffer is written" if compiled.forwards else "not in forwards, and its buffer is not written"
        raise BrokenRule("forwards", f"the output that is the input is {said}")


def order(check: Checking) -> None:
    """Work runs in the order in which it was submitted, each seeing what came before it, without anybody waiting in between; and
    what was recorded once can be submitted again."""
    compiled, x = check.compiled("order", STEP, "2 x + 1 in float32"), _x()
    chain = [check.buffer(x), *(buffer for _ in range(AT_ONCE) for buffer in _outputs(check, compiled))]
    work = [item for at in range(AT_ONCE) for item in check.backend.record(compiled, [chain[at]], [chain[at + 1]])]
    expected = x
    with told("order", "a row of runs, each on the output of the one before,"):
        check.backend.submit(work)
        for at, buffer in enumerate(chain):
            _same("order", f"after {at} of {AT_ONCE} runs in one submit, each on the output of the one before,",
                  check.read(buffer, SPEC), expected)
            expected = expected * 2 + 1
        # The same work again, over another input, which is overwritten as soon as it was submitted.
        check.backend.write(chain[0], as_bytes(x + 1))
        check.backend.submit(work)
        check.backend.write(chain[0], as_bytes(x))
        _same("order", "work that is submitted a second time", check.read(chain[1], SPEC), (x + 1) * 2 + 1)


def in_flight(check: Checking) -> None:
    """Several runs may be under way at once, over buffers of their own."""
    compiled, x = check.compiled("in flight", STEP, "2 x + 1 in float32"), _x()
    given = [check.buffer(x + at) for at in range(AT_ONCE)]
    made = [_outputs(check, compiled)[0] for _ in range(AT_ONCE)]
    with told("in flight", f"{AT_ONCE} runs under way"):
        for one, other in zip(given, made, strict=True):
            check.backend.submit(check.backend.record(compiled, [one], [other]))
        found = check.backend.read_many([(buffer, SPEC.nbytes, 0) for buffer in made])
    for at, data in enumerate(found):
        _same("in flight", f"run {at} of {AT_ONCE} under way at once", np.frombuffer(data, np.float32).reshape(SPEC.shape),
              (x + at) * 2 + 1)


def scratch(check: Checking) -> None:
    """`scratch` are sizes of buffers, and a run over buffers of these sizes is as right as one over the backend's own."""
    body = next(sample.body for sample in samples() if sample.name == "aten.softmax.int")
    compiled = check.taken("scratch", body, "softmax")
    if isinstance(compiled, str):
        compiled, body = check.compiled("scratch", STEP, "2 x + 1 in float32"), STEP
    if not all(isinstance(size, int) and size >= 0 for size in compiled.scratch):
        raise BrokenRule("scratch", f"{compiled.scratch!r} are no sizes in bytes")
    x = np.linspace(-2, 2, body.inputs[0].elements, dtype=np.float32).reshape(body.inputs[0].shape)
    (wanted,) = check.backend.run_once(compiled, [x])
    given = check.buffer(x)
    for _ in range(2):
        own = [check.backend.pool.allocate(size) for size in compiled.scratch]
        for buffer, size in zip(own, compiled.scratch, strict=True):
            check.backend.write(buffer, bytes([GARBAGE]) * size)
        (made,) = _outputs(check, compiled)
        with told("scratch", "a run with scratch buffers of the sizes that were asked for"):
            check.backend.submit(check.backend.record(compiled, [given], [made], own))
            found = check.read(made, compiled.outputs[0])
        _same("scratch", "a run over scratch buffers with garbage in them", found, wanted)


def reopened(check: Checking) -> None:
    """Opened anew, it works, with nothing left on it."""
    with told("reopen", "reopen"):
        check.backend.reopen()
    if check.backend.pool.in_use:
        raise BrokenRule("reopen", f"after it was opened anew, {check.backend.pool.in_use} bytes of its pool are still in use")
    compiled = check.compiled("reopen", STEP, "2 x + 1 in float32, after it was opened anew")
    _same("reopen", "a run after it was opened anew", check.backend.run_once(compiled, [_x()])[0], _x() * 2 + 1)


def _x() -> HostArray:
    """Whole numbers, so that 2 x + 1 is exact."""
    return np.arange(SPEC.elements, dtype=np.float32).reshape(SPEC.shape) - 7


def _outputs(check: Checking, compiled: Compiled) -> list[int]:
    """Buffers for its outputs, with garbage in them."""
    buffers = [check.backend.pool.allocate(spec.nbytes) for spec in compiled.outputs]
    for buffer, spec in zip(buffers, compiled.outputs, strict=True):
        check.backend.write(buffer, bytes([GARBAGE]) * spec.nbytes)
    return buffers


def _same(rule: str, what: str, found: HostArray, right: HostArray) -> None:
    if not np.array_equal(found, right):
        raise BrokenRule(rule, f"{what} is wrong: {_off(found, right)}")


def _off(found: HostArray, right: HostArray) -> str:
    at = tuple(map(int, np.argwhere(np.asarray(found != right))[0])) if found.shape == right.shape else ()
    return f"it is {found[at]} at {list(at)}, and should be {right[at]}"


def _differ(found: bytes, right: bytes) -> str:
    if len(found) != len(right):
        return f"{len(found)} bytes came, and {len(right)} were asked for"
    at = next(k for k, (a, b) in enumerate(zip(found, right, strict=True)) if a != b)
    return f"byte {at} is {found[at]}, and should be {right[at]}"


RULES: dict[str, Callable[[Checking], None]] = {
    "info": info, "memory": memory, "refusals": refusals, "values": values, "inputs": inputs, "forwards": handed_on,
    "order": order, "in flight": in_flight, "scratch": scratch, "digests": digests, "reopen": reopened,
}  # fmt: skip

"""`torch.export` in one trace instead of two, and its failures put in the terms of the model's code.

    program = trace(module, kwargs)         an ExportedProgram of functional ATen, which keeps linear, silu, attention, … whole,
                                            and has pairs of real numbers for complex ones (`tapml.source.pairs`)
    program = trace(module, kwargs, notes)  the same, with the sizes of the example where sizes depend on data
                                            (`tapml.source.by_example`)

`torch.export.export(…).run_decompositions({})` traces a model, then traces the result again to make it functional: 14 s for
SmolLM2. The first trace can be functional itself, which takes 5 s with the garbage collector held off. The parts of torch that
do so have no public name; TapML pins torch's minor version, and a test holds this path equal to the public one.
"""

from __future__ import annotations

import gc
import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tapml.errors import ModelError, message_of
from tapml.operators.buffers import buffers_kept
from tapml.source.by_example import by_example, depends_on_data, gave_up_on_data, is_machinery
from tapml.source.pairs import in_pairs
from tapml.source.recurrent import unrolled

_OPERATOR = re.compile(r"\baten[.:]+(\w+)(?:\.(\w+))?")
# Calls that depend on data, in a note.
_LISTED = 3
ADVICE = "Replace it with something whose shapes and control flow do not depend on data."


def trace(module: torch.nn.Module, kwargs: Mapping[str, Any], notes: list[str] | None = None) -> torch.export.ExportedProgram:
    """Exports a module called with keyword arguments; all shapes are those of the example. Weights are not copied. Where sizes
    or the course depend on the data, a caller that gives `notes` gets a program of those that the example gives, and a note that
    says so. Raises ModelError, naming the operator and the line of the model's code, when it does not export."""
    try:
        program = _traced(module, kwargs)
        if notes is None or not depends_on_data(program):
            return program
    except ModelError:
        raise
    except Exception as error:
        # A model's own code can raise anything, and torch wraps it in many ways.
        if notes is None or not gave_up_on_data(chain(error)):
            raise _refused(error) from error
    try:
        with by_example() as seen:
            program = _traced(module, kwargs)
    except ModelError:
        raise
    except Exception as error:
        raise _refused(error) from error
    notes.append(_fixed(seen))
    return program


def _fixed(seen: Iterable[tuple[str, str]]) -> str:
    calls = [f"{word} at {place}" if place else word for word, place in seen]
    listed = ", ".join(calls[:_LISTED]) + (f" and {len(calls) - _LISTED} more" if len(calls) > _LISTED else "")
    return (
        f"sizes or control flow depend on data ({listed}); the run has those of the example inputs, and is valid only for "
        "inputs that give the same"
    )


def _traced(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> torch.export.ExportedProgram:
    from torch.export._trace import _export
    from torch.export.exported_program import _override_composite_implicit_decomp, _split_decomp_table_to_cia_and_python_decomp
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    keep_whole, _ = _split_decomp_table_to_cia_and_python_decomp({})
    with (
        warnings.catch_warnings(), _no_gradients(module), _no_collection(), _no_records(), _use_lazy_graph_module(True),
        unrolled(module), _attributes_kept(module), buffers_kept(module), _flex_attention_written_out(),
        _override_composite_implicit_decomp(keep_whole),
    ):
        warnings.simplefilter("ignore")
        program = _export(module, (), dict(kwargs), strict=False, pre_dispatch=False)
        in_pairs(program)
        return program


@contextmanager
def _no_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Parameters that want gradients would be traced for them."""
    wanting = [p for p in module.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def _attributes_kept(module: torch.nn.Module) -> Iterator[None]:
    """What a model's code sets on its modules while it is traced (`self.count = …`, a tensor kept for the next call) is of the
    trace: afterwards they are what they were."""
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    kept = [(value, dict(value)) for _, held in before if (value := held.get("_parameters"))]
    try:
        yield
    finally:
        for part, held in before:
            for name in part.__dict__.keys() - held.keys():
                del part.__dict__[name]
            part.__dict__.update(held)
        for value, was in kept:
            value.clear()
            value.update(was)


@contextmanager
def _flex_attention_written_out() -> Iterator[None]:
    """As products, the scores' own function and softmax, which PyTorch has for it too; not as a call that holds programs."""
    from torch._higher_order_ops.flex_attention import math_attention
    from torch.nn.attention import flex_attention as home

    wanted = {"flex_attention_hop": math_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True}
    before = {name: vars(home)[name] for name in wanted}
    vars(home).update(wanted)
    try:
        yield
    finally:
        vars(home).update(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Tracing makes millions of objects and few cycles: collecting them costs a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _no_records() -> Iterator[None]:
    """Torch describes each step of a trace to the first logger in detail, as soon as anyone listens to all loggers, and warns
    through the second of symbols that a program of numbers has no use for."""
    loggers = [logging.getLogger(name) for name in ("torch.__trace", "torch.fx.experimental.symbolic_shapes")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _refused(error: BaseException) -> ModelError:
    """In one line: which operator, at which line of the model's code, and why."""
    frames = [frame for one in chain(error) for frame in traceback.extract_tb(one.__traceback__)]
    own = [frame for frame in frames if not is_machinery(frame.filename)]
    message = " ".join(str(one) for one in chain(error))
    named = next((f"aten.{m[1]}" + (f".{m[2]}" if m[2] else "") for m in _OPERATOR.finditer(message)), None)
    operator = named or _operator_under_way(error)
    if own:
        last = own[-1]
        line = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
        place = f"{Path(last.filename).name}:{last.lineno}, `{line}` in {last.name}"
        where = f"{operator} at {place}" if operator else place
    else:
        where = operator or "torch.export"
    reason = f"{where}: {type(error).__name__}: {message_of(error)[:300]}"
    return ModelError(f"The model does not export: {reason}. {ADVICE}", reason)


def _operator_under_way(error: BaseException) -> str | None:
    """What torch was asked for when it gave up: its dispatchers hold that in a variable `func` of their frames. Where none of
    them was at work, it is the method that the model's code called."""
    for one in chain(error):
        found = called = None
        inside = False
        for frame, _ in traceback.walk_tb(one.__traceback__):
            function: Any = frame.f_locals.get("func")
            if isinstance(function, torch._ops.OpOverload):
                found = str(function)
            elif hasattr(function, "__objclass__"):
                found = f"{_plain(function.__objclass__)}.{function.__name__}"
            machinery = is_machinery(frame.f_code.co_filename)
            if inside and machinery and "self" in frame.f_locals:
                called = f"{_plain(type(frame.f_locals['self']))}.{frame.f_code.co_name}"
            inside = not machinery
        if found or called:
            return found or called
    return None


def _plain(kind: type) -> str:
    """`Tensor` for the classes that stand for it in a trace."""
    return "Tensor" if issubclass(kind, torch.Tensor | torch._C.TensorBase) else kind.__name__


def chain(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first cause last."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found

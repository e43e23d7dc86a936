"""`FILE.py:FUNCTION`: the function takes nothing and returns `(torch.nn.Module, example_inputs)`.

    module, inputs = call_function("net.py:build")

The example inputs are a dict of keyword arguments or a tuple of positional ones. The file runs as a module of its own, with its
folder first on the import path while it does.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from tapml.errors import ModelError, TapmlError, message_of, nearest
from tapml.source.model import LoadedModel
from tapml.source.readers.module import from_module
from tapml.source.readers.reader import Reader, Request


def call_function(spec: str) -> tuple[torch.nn.Module, Any]:
    """Raises ModelError, with the line of the file where there is one, when the file or the function is missing, raises, or
    returns something else."""
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"No such file: {path} (for the model {spec}). Give FILE.py:FUNCTION with a file that exists.")
    found = _run(path, spec)
    function = getattr(found, name, None)
    if not callable(function):
        own = [key for key, value in vars(found).items() if inspect.isfunction(value) and value.__module__ == found.__name__]
        raise ModelError(f"{path} has no function {name!r}. " + (nearest(name, own) if own else "It defines no functions."))
    try:
        result = function()
    except TapmlError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name}() in {path} raised {_where(error, path)}.") from error
    return _checked(result, name, path)


def _run(path: Path, spec: str) -> Any:
    module_name = f"tapml_model_{path.stem}"
    loader = importlib.util.spec_from_file_location(module_name, path.resolve())
    if loader is None or loader.loader is None:
        raise ModelError(f"{path} is not a Python file (for the model {spec}). Its name must end in .py.")
    module = importlib.util.module_from_spec(loader)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        loader.loader.exec_module(module)
    except TapmlError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{path} could not be run: {_where(error, path)}.") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _checked(result: Any, name: str, path: Path) -> tuple[torch.nn.Module, Any]:
    wanted = f"{name}() in {path} must return (torch.nn.Module, example_inputs)"
    if not isinstance(result, tuple) or len(result) != 2:
        raise ModelError(f"{wanted}; it returned {type(result).__name__}.")
    module, inputs = result
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{wanted}; the first of the two is {type(module).__name__}.")
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, dict | tuple):
        raise ModelError(f"{wanted}, the inputs as a dict of keyword arguments or a tuple; they are {type(inputs).__name__}.")
    return module, inputs


def _where(error: BaseException, path: Path) -> str:
    """The error in one line, with the last line of the file that led to it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    return f"{type(error).__name__}: {message_of(error)}" + (f" (line {lines[-1]})" if lines else "")


def _means(text: str) -> bool:
    return re.search(r"\.py:\w+$", text) is not None


def _read(request: Request) -> LoadedModel:
    module, own = call_function(request.text)
    inputs = own if request.example_inputs is None else request.example_inputs
    file, _, function = request.text.rpartition(":")
    # With the file's name: many functions are called model.
    return from_module(module, f"{Path(file).name}:{function}", request.text, inputs, request.dtype)


READER = Reader("FILE.py:FUNCTION", _means, _read)

"""A module as it comes, made fit for export: what wraps it is taken off, what no other platform can run is refused by name.

    module, notes = plain_module(module)        notes: what was done, for its owner
    notes = evaluated(module)                   puts it in evaluation mode, and says what that switches off
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tapml.errors import ModelError

WRAPPED = "_orig_mod"


def plain_module(module: torch.nn.Module) -> tuple[torch.nn.Module, list[str]]:
    """Raises ModelError for TorchScript, for a layer quantized with torch.ao, and for weights that are no plain tensors. Parts
    that are such (`unseen_parts`) stay on the source."""
    notes = []
    if is_compiled(module):
        module = getattr(module, WRAPPED)
        notes.append("the module came from torch.compile; the module inside it was carved as it runs eagerly")
    elif any(is_compiled(part) or part._compiled_call_impl is not None for part in module.modules()):
        notes.append("parts of the module come from torch.compile; they were carved as they run eagerly")
    if why := _unseen(module):
        raise ModelError(f"{type(module).__name__} cannot be exported: it is {why}.")
    unseen = [f"{path}." for path in unseen_parts(module)]
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.startswith(tuple(unseen)):
            continue
        if tensor.is_meta:
            raise ModelError(
                f"{type(module).__name__} has no numbers: its weight {name} is on the meta device. Give the module with its "
                "weights (to_empty, then load_state_dict)."
            )
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and type(tensor.data) is not torch.Tensor:
            raise ModelError(
                f"{type(module).__name__} cannot be exported: its weight {name} is a {type(tensor.data).__name__}, not a "
                "plain tensor. Give the module as it was before it was quantized or distributed."
            )
        if tensor.layout != torch.strided:
            raise ModelError(
                f"{type(module).__name__} cannot be exported: its weight {name} is sparse ({tensor.layout}), which TapML does "
                "not carry. Make it dense with to_dense()."
            )
    return module, notes


def unseen_parts(module: torch.nn.Module) -> dict[str, str]:
    """The parts whose code no trace sees, each the outermost of its kind, and why."""
    found: dict[str, str] = {}
    for path, part in module.named_modules():
        if path and not any(path.startswith(f"{outer}.") for outer in found) and (why := _unseen(part)):
            found[path] = why
    return found


def _unseen(part: torch.nn.Module) -> str:
    """What a module is of which torch.export sees no Python code; "" for any other."""
    kind, home = type(part).__name__, type(part).__module__
    if isinstance(part, torch.jit.ScriptModule):
        return (
            f"TorchScript ({kind}), whose Python code torch.export needs and cannot see. Give the module from which "
            "torch.jit.script or torch.jit.trace made it"
        )
    if home.startswith(("torch.ao.nn.", "torch.nn.")) and ".quantized" in home:
        how = "quantize_dynamic" if ".dynamic" in home else "torch.ao.quantization"
        return (
            f"a layer that {how} quantized ({home}.{kind}); its weights are packed for PyTorch's own kernels. Give the module as "
            "it was before it was quantized"
        )
    return ""


def is_compiled(module: Any) -> bool:
    """Whether torch.compile made it around another module."""
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, WRAPPED, None), torch.nn.Module)


def evaluated(module: torch.nn.Module) -> list[str]:
    """Evaluation mode; a line if that changes what the module's dropout and batch norm layers do."""
    dropouts = norms = 0
    for part in module.modules():
        if part.training:
            dropouts += isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0
            norms += isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    module.eval()
    found = []
    if dropouts:
        found.append(f"dropout ({dropouts} module{'s' if dropouts > 1 else ''}) is switched off")
    if norms:
        found.append(f"batch norm ({norms}) uses its running statistics")
    return [f"the module was in training mode; {' and '.join(found)}"] if found else []


def transformers_parts(module: torch.nn.Module) -> list[Any]:
    """The transformers models in a module, each before those within it."""
    import transformers

    return [part for part in module.modules() if isinstance(part, transformers.PreTrainedModel)]


def batch_experts(module: torch.nn.Module) -> None:
    """Mixtures of experts, wherever they are in the module, as products of whole batches: by default tokens are gathered by
    expert, in numbers that depend on the data, and there is no float64."""
    for part in transformers_parts(module):
        if part._can_set_experts_implementation():
            part.set_experts_implementation("batched_mm")


@contextmanager
def eagerly(module: torch.nn.Module) -> Iterator[None]:
    """While it lasts, parts of the module that came from torch.compile run as they are written."""
    if not any(is_compiled(part) or part._compiled_call_impl is not None for part in module.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield

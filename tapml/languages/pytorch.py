"""PyTorch: a module of Python with one function of tensors, for operators that PyTorch itself runs.

Such a text holds `device`, `inputs` and `outputs` (see `tapml.operators.to_text`), and a function with the kernel's name. It is
executed, so a device takes it only from its own process's parent, never across a connection.
"""

from __future__ import annotations

from tapml.languages.language import TRIAL, TRIAL_COUNT, Language, Reproducer

LANGUAGE = Language(
    name="torch",
    title="PyTorch",
    suffix="py",
    lexer="python",
    generated=False,
    native=False,
    threads=False,
    optional_dtypes={"float64": "float64"},
    trial=f"""
import torch

inputs = [(({TRIAL_COUNT},), torch.float32, None, 0)]
outputs = [(({TRIAL_COUNT},), torch.float32)]


def {TRIAL}(i0):
    return (2.0 * i0 + 1.0,)
""",
    reproducer=Reproducer("run_torch.py", "torch"),
)

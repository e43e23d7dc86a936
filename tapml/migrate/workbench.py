"""What testing and migrating both stand on: one target, its device, the compiled operators, the weights that went up.

    with Workbench(run, "opencl") as bench:
        bench.compile(signatures)
        program = bench.program(operator)          None where compiling failed: bench.failure(operator) is the verdict
        with bench.guard(): ...                    a lost device is opened anew, and the loss told as DeviceLost

Each signature is compiled once. An injected fault is applied here, per operator, so everybody runs the same kernels. A device that is
lost takes its weights and buffers along: `device`, `weights` and `runner` are new objects afterwards, and `generation`
counts how often that happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType

from tapml.carve.folder import RunFolder
from tapml.compile.compiler import Compiler, Result
from tapml.devices.buffers import WeightCache
from tapml.devices.interface import Device
from tapml.devices.open import open_device
from tapml.devices.runner import ProgramRunner
from tapml.errors import DeviceLost, UnavailableError
from tapml.kernels import Program
from tapml.migrate.inject import Injection
from tapml.migrate.model import Model
from tapml.operators.graph import Operator
from tapml.targets.parse import parse
from tapml.targets.resolve import resolve
from tapml.verdicts import Verdict

# A device may be lost this often before the work stops: every loss costs seconds, and a driver that dies at everything
# will not do better at the next operator.
MOST_LOSSES = 32

Progress = Callable[[str, int, int], None]

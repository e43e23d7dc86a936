"""What a kernel language is: all that TapML knows of one beyond what the compiler's generator for it knows.

    language = LANGUAGES[kernel.language]
    language.suffix, language.barrier, language.finished(text)

Who needs to treat languages differently asks for a field here, and never for a name. A field left away says the usual thing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Extent = tuple[int, int, int]

# The kernel by which a device is tried computes y = 2 x + 1 over so many float32: no multiple of the workgroup, so that the
# condition at its end is tried as well.
TRIAL = "tapml_trial"
TRIAL_COUNT = 1000
TRIAL_BLOCK = 64

# The kernel by which the speed of a device's memory is measured copies x to y in words of so many bytes, one an invocation.
COPY = "tapml_copy"
COPY_WORD = 16
COPY_BLOCK = 256


def unchanged(text: str) -> str:
    return text


def launched_as_scheduled(grid: Extent, most: int | None) -> tuple[Extent, tuple[int, ...]]:
    return grid, ()


@dataclass(frozen=True)
class Reproducer:
    """`template` is the script beside this file, in `templates/`, that runs a reproducer's kernels; `package` what it needs
    besides numpy, "" for a C compiler."""

    template: str
    package: str = ""

    @property
    def needs(self) -> str:
        return self.package or "a C compiler"


@dataclass(frozen=True)
class Language:
    """One language. `name` stands in programs, JSON and messages, `title` in prose, `suffix` on files with its text (no dot),
    `lexer` is what Pygments highlights it as. The rest, in groups:

    What its compilers are: `generated`, whether its texts are kernels that TapML's compiler makes; `native`, whether its text
    reaches a C compiler, so that it may include files and hold assembly, and is native code where it runs on a processor;
    `threads`, whether there are workgroups, or a kernel is one call that does all the work; `plain_pointers`, whether buffers are
    pointers without bindings; `zeroes_memory`, whether private and workgroup memory are zeros at the start by the language's
    definition; `lanes_in_step`, how many lanes run in step on all that takes it, in words; `has_half`, whether it has a type for
    float16. `optional_dtypes` maps a dtype that a device may compute in or not to what its specification calls the feature.
    `lanes` are the lengths of its vectors, the longest first; `threads_as_vector` how many threads of a workgroup its drivers on
    a processor run as one vector.

    Its words: `barrier` is the statement that brings a workgroup together, `lane` a pattern for the number of a thread in it,
    `private_array` and `shared_array` patterns of lines that declare one (None: its text is not searched for hazards),
    `rounding` one for a call that rounds half to even, with its bracket.

    How a kernel's text is made: `generator` are attributes of the compiler's target where they are not those of the target in
    `targets/`; `own_tanh` is the name of a function that `finished` defines, called where the generator's own tanh is wrong;
    `unknown` the name of one that hides a number from compilers that take floats for real numbers; `rest_by_division`, whether
    a % b is not to be trusted where a is negative. `finished` puts the generator's text right; `functions` takes functions that
    kernels bring along, written in the part of WGSL that `compile/function_texts.py` describes, to this language (None: it has
    none); `prelude` stands before everything. `launched` takes the workgroups of the schedule, and the most that a dimension
    has, to the grid and the uniform words of the launch; it raises LimitError.

    `packed` makes a text the file that engines read, where that is another, and `packed_suffix` stands on such files. It raises
    ValueError for what is no such text.

    `trial` is the text of the kernel that a device is tried with, `trial_uniform` its uniform words; "" for a language that
    nothing here runs. `copy` gives the text of one that copies so many words of `COPY_WORD` bytes (None: the language has none).
    `reproducer` is None for a language that nothing here runs."""

    name: str
    title: str
    suffix: str
    lexer: str

    generated: bool = True
    native: bool = True
    threads: bool = True
    plain_pointers: bool = False
    zeroes_memory: bool = False
    lanes_in_step: str = ""
    has_half: bool = True
    optional_dtypes: Mapping[str, str] = field(default_factory=dict)
    lanes: tuple[int, ...] = (8, 4)
    threads_as_vector: int = 1

    barrier: str = ""
    lane: str = "threadIdx"
    private_array: re.Pattern[str] | None = None
    shared_array: re.Pattern[str] | None = None
    rounding: str = r"\b(?:rint|nearbyint)f?\("

    generator: Mapping[str, Any] | None = None
    own_tanh: str = ""
    unknown: str = ""
    rest_by_division: bool = False
    finished: Callable[[str], str] = unchanged
    functions: Callable[[str], str] | None = None
    prelude: str = ""
    launched: Callable[[Extent, int | None], tuple[Extent, tuple[int, ...]]] = launched_as_scheduled

    packed: Callable[[str], bytes] | None = None
    packed_suffix: str = ""

    trial: str = ""
    trial_uniform: tuple[int, ...] = ()
    copy: Callable[[int], str] | None = None
    reproducer: Reproducer | None = None

    def waits(self, text: str) -> bool:
        """Whether the text, or a line of it, calls the barrier."""
        return bool(self.barrier) and re.search(rf"\b{re.escape(self.barrier.partition('(')[0])}\(", text) is not None

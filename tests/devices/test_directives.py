"""What a kernel's text may not ask a compiler for, however it is spelled; and that TapML's own kernels ask for none of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tapml.devices.cpu import FLAGS, find_compiler
from tapml.devices.directives import reaches_out
from tapml.kernels import Kernel
from tapml.languages.plain_c import PRELUDE

BODY = "void f(float* x) { x[0] = 1; }\n"


def kernel(source: str, language: str = "c") -> Kernel:
    return Kernel(language, "f", source, ("read_write",), (1, 1, 1), (1, 1, 1))


INCLUDES = [
    '#include "NAME"', '  #  include "NAME"', '#\tinclude"NAME"', '%:include "NAME"', '%: include "NAME"', '??=include "NAME"',
    '#\\\ninclude "NAME"', '#inc\\\nlude "NAME"', '#inc\\ \nlude "NAME"', '%\\\n:include "NAME"', '#/**/include "NAME"',
    '#/* a\n b */include "NAME"', '/**/#include "NAME"', '/* a */ # /* b */ include "NAME"', '#include_next "NAME"',
    '#import "NAME"', '#\v\finclude "NAME"', '#define HERE "NAME"\n#include HERE', '#if 1\n#include "NAME"\n#endif',
    '#include \\\n"NAME"', 'char* a = "/*";\n#include "NAME"\nchar* b = "*/";', '#include <math.h>\n#include "NAME"',
    '#??/\ninclude "NAME"',
]  # fmt: skip
OTHERS = [
    '#embed "NAME"', 'const char a[] = {\n#embed "NAME"\n};', '#line 1 "NAME"\nint a = ;', '# 1 "NAME"\nint a = ;',
    '#if __has_include("NAME")\n#endif', '#ifdef __has_embed\n#endif', '#pragma GCC dependency "NAME"',
    '#pragma GCC pch_preprocess "NAME"', '#pragma clang module import a', '_Pragma("GCC dependency \\"NAME\\"") int a;',
    '#define P(x) _Pragma(#x)\nP(GCC dependency "NAME")', 'asm(".incbin \\"NAME\\"");', '__asm__(".inc" "lude \\"NAME\\"");',
    'void g(void) { __asm volatile("syscall"); }', '#define J(a, b) a##b\nJ(as, m)("syscall");', 'int a %:%: b;',
    'int a __attribute__((section(".data\\n.incbin \\"NAME\\"\\n#")));', 'int a __attribute__((__section__ (".x")));',
    '__attribute__((symver("a@b"))) void g(void) {}', '#\\u0069nclude "NAME"', '#ident "a"', '#assert a(b)',
]  # fmt: skip


@pytest.mark.parametrize("language", ["c", "opencl-c"])
@pytest.mark.parametrize("text", INCLUDES + OTHERS)
def test_what_reaches_out_is_found(text: str, language: str) -> None:
    for around in ("{}", BODY + "{}", "{}\n" + BODY):
        assert reaches_out(kernel(around.replace("{}", text), language))


@pytest.mark.parametrize("text", [text for text in INCLUDES if "import" not in text])
def test_these_spellings_do_include(text: str, tmp_path: Path) -> None:
    """With this machine's compiler: else the list above would prove nothing. Trigraphs are for older standards of C."""
    found = find_compiler()
    if found is None:
        pytest.skip("not run: there is no C compiler")
    (tmp_path / "named.h").write_text("int this_came_from_a_file;\n")
    standard = ["-std=c99"] if "??" in text else []
    done = subprocess.run(
        [found[0], *FLAGS, *standard, "-x", "c", "-E", "-I", str(tmp_path), "-"],
        input=text.replace("NAME", "named.h") + "\n", capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
    )
    assert "this_came_from_a_file" in done.stdout, done.stderr


@pytest.mark.parametrize("text", [
    BODY, PRELUDE + BODY, "#define TWO 2\n#ifdef TWO\n#endif\n#undef TWO\n" + BODY, "#pragma unroll 4\n", "#pragma unroll\n",
    "#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n", "#pragma OPENCL FP_CONTRACT OFF\n", "#if 0\n#elif 1\n#else\n#endif",
    "__kernel __attribute__((reqd_work_group_size(8, 1, 1))) void f(__global float* x) { x[0] = 1; }",
    "#define NAME(x) #x\n", "#error this is no device\n",
    "int including, imports, embedded, asmuch, section;", "float a = 5 % 3;",
])
def test_what_keeps_to_itself_passes(text: str) -> None:
    assert reaches_out(kernel(text)) == reaches_out(kernel(text, "opencl-c")) == ""


def test_wgsl_has_nothing_of_the_kind() -> None:
    assert reaches_out(kernel('#include "a"', "wgsl")) == ""


@pytest.mark.parametrize("piece", ["# ", "#", "__", "section ", "??/"])
def test_no_text_takes_long(piece: str) -> None:
    """16 MB is the most that an agent takes; a search that goes back and forth would take hours, and the test would not end."""
    reaches_out(kernel(piece * (2**24 // len(piece))))

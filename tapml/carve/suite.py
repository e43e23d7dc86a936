"""Writes RUN/tests: the recorded calls as a pytest suite that people can read, and that stands alone given the run.

    write_suite(writer, operators, bodies, cases, model="…")

    test_operators.py   a table of the cases, grouped by signature, and the one test over them
    conftest.py         the options, from `tapml.carve.pytest_plugin`, and the platform that the tests run on
    README.md           how to run it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tapml.carve.case import Case
from tapml.carve.layout import TEST_FOLDER
from tapml.carve.writer import RunWriter
from tapml.operators.graph import Body, Operator

_HEAD = '''"""Operator tests carved from {model}: {cases} recorded calls of {signatures} different operators.

    pytest {folder} --target opencl [--device NAME@URL] [--junitxml FILE] [-k q_proj]

Each test runs one recorded call on the target and compares with what the source answered. The bound follows from the source's own
error, measured against float64: see `tapml.carve.tolerance`.
"""

import pytest

# (operator, case). Operators with equal graph, shapes and dtypes share their kernels, and with them their cases.
CASES = [
'''

_TAIL = """]


@pytest.mark.parametrize(("operator", "case"), CASES, ids=[f"{operator}-{case}" for operator, case in CASES])
def test_operator(check, operator: str, case: str) -> None:
    check(operator, case)
"""

_CONFTEST = '''"""Options --target, --device and --inject, and what runs a recorded call."""

import pytest

from tapml.carve.pytest_plugin import Platform, check, pytest_addoption, pytest_configure  # noqa: F401
from tapml.migrate.operator_test import OperatorTester


@pytest.fixture(scope="session")
def platform(pytestconfig):
    """Compilers, device and uploaded weights: made once, closed when the last test is done."""
    with Platform(pytestconfig, OperatorTester) as made:
        yield made
'''

_README = """# Operator tests of {model}

{cases} recorded calls of {operators} operators ({signatures} different ones), {why}.

    pytest {folder} --target opencl
    pytest {folder} --target vulkan --junitxml results.xml
    pytest {folder} --target opencl -k "layers.0 and q_proj"

The tests need this run, an installed TapML with its compiler (`pip install "tapml[compile]"`) and the platform's binding. A
platform that is not there skips every test and says why; `tapml doctor` tells more. Weights are read from where the model is:

{weights}

A failing test prints the operator, the stage that failed, the error, the bound and the source's own error, and the worst element.
"""


def write_suite(
    run: RunWriter,
    operators: Sequence[Operator],
    bodies: Mapping[str, Body],
    cases: Sequence[Case],
    model: str,
    weight_files: Sequence[str],
) -> None:
    """Writes the three files into the run."""
    signatures = list(dict.fromkeys(case.signature for case in cases))
    facts = {
        "model": model.replace("\\", "/").replace('"""', "'''"), "cases": len(cases), "operators": len(operators),
        "signatures": len(signatures), "folder": run.path / TEST_FOLDER, "why": "recorded while the model ran",
        "weights": "\n".join(f"    {file}" for file in weight_files),
    }  # fmt: skip
    lines = [_HEAD.format(**facts)]
    for signature in signatures:
        lines.append(f"    # {describe(signature, bodies[signature])}\n")
        for case in cases:
            if case.signature == signature:
                error = max(case.source_error, default=0.0)
                pair = f"({json.dumps(case.operator)}, {json.dumps(case.id)}),"
                lines.append(f"    {pair}  # {', '.join(case.reasons)}; source error {error:.2g}\n")
    run.text(f"{TEST_FOLDER}/test_operators.py", "".join([*lines, _TAIL]))
    run.text(f"{TEST_FOLDER}/conftest.py", _CONFTEST)
    run.text(f"{TEST_FOLDER}/README.md", _README.format(**facts))


def describe(signature: str, body: Body) -> str:
    """One line about a body: "linear 1f2e…: float32[1, 32, 576], weight float32[576, 576] -> float32[1, 32, 576]"."""
    inputs = [f"{'' if role == 'value' else role + ' '}{spec}" for spec, role in zip(body.inputs, body.roles, strict=True)]
    return f"{body.kind} {signature}: {', '.join(inputs)} -> {', '.join(map(str, body.output_specs))}"

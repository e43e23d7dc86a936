"""Writes RUN/tests: the operators of the run as a pytest suite that people can read, and that stands alone given the run.

    write_suite(writer, operators, bodies, cases, model="…")

    test_operators.py   the operators, grouped by signature with the recorded calls of each, and the one test over them
    pytest.ini          ends pytest's search for settings here: nothing above this folder, which is data, is read or run
    conftest.py         the options, from `tapml.carving.pytest_plugin`, and the platform that the tests run on
    README.md           how to run it

One test an operator, whatever kernels it shares with others: it runs with its own weights, and its name ends a test's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tapml.carving.case import Case
from tapml.carving.layout import TEST_FOLDER
from tapml.carving.writer import RunWriter
from tapml.devices.known import PLATFORMS
from tapml.operators.graph import Body, Operator
from tapml.printable import printable

_HEAD = '''"""Tests of the {operators} operators carved from {model}, on {cases} recorded calls of {signatures} different ones.

    pytest {folder} --target {target} [--device NAME@URL] [--junitxml FILE] [-k q_proj]

Each test runs one operator on the target, as `tapml test` does, and compares with what the source answered: on its own recorded
calls where it has some, else on the inputs of a call of an operator with equal kernels and with its own weights. The bound
follows from the source's own error, measured against float64: see `tapml.carving.tolerance`.

This folder is code: pytest runs it. Of a run that somebody sent you, read it first, or use `tapml test`, which runs no code of
a run.
"""

import pytest

# Operators with equal graph, shapes and dtypes share their kernels, and with them their recorded calls.
OPERATORS = [
'''

_TAIL = """]


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(check, operator: str) -> None:
    check(operator)
"""

_SETTINGS = """# pytest looks no further than here for settings, plugins and conftest.py: the rest of the run is data.
[pytest]
"""

_CONFTEST = '''"""Options --target, --device, --inject and --skip-missing, and what runs an operator. This is code."""

import pytest

from tapml.carving.pytest_plugin import Platform, check, pytest_addoption, pytest_configure, pytest_sessionfinish  # noqa: F401


@pytest.fixture(scope="session")
def platform(pytestconfig):
    """Compilers, device and uploaded weights: made once, closed when the last test is done."""
    from tapml.migrate.operator_test import OperatorTester  # loads PyTorch, which collecting the tests does not need

    with Platform(pytestconfig, OperatorTester) as made:
        yield made
'''

_README = """# Operator tests of {model}

{operators} operators, {signatures} of them different; {cases} calls of them were recorded while the model ran.

    pytest {folder} --target {target}
    pytest {folder} --target {other} --junitxml results.xml
    pytest {folder} --target {target} -k "layers.0 and q_proj"

The name of a test ends in that of its operator, as `tapml explain` takes it: `test_operator[{example}]`.

`test_operators.py` and `conftest.py` are code that pytest runs. Of a run that somebody sent you, read them first, or use
`tapml test`, which checks the same operators and runs no code of a run. The rest of the run is data, and pytest loads nothing of
it: `pytest.ini` ends its search for settings and plugins in this folder. (`python -m pytest` also looks for modules in the
directory that you are in, so do not call it so from within a run.)

The tests need this run, an installed TapML with its compiler (`pip install "tapml[compile]"`) and the platform's binding. A
platform that is not there fails the first test, says why, and ends the session with exit code 3; with `--skip-missing` every test
is skipped instead. `tapml doctor` tells more. Weights are read from where the model is:

{weights}

A failing test prints the operator, the stage that failed, the error, the bound and the source's own error, and the worst element.
The JUnit file has these numbers as properties of each test.
"""


def write_suite(
    run: RunWriter,
    operators: Sequence[Operator],
    bodies: Mapping[str, Body],
    cases: Sequence[Case],
    model: str,
    weight_files: Sequence[str],
) -> None:
    """Writes the four files into the run. Operators are in execution order within their signature."""
    signatures = list(dict.fromkeys(operator.signature for operator in operators))
    facts = {
        "model": _told(model), "cases": len(cases), "operators": len(operators),
        "signatures": len(signatures), "folder": _told(str(run.path / TEST_FOLDER)),
        "target": PLATFORMS[0], "other": PLATFORMS[1],
        "example": operators[0].name if operators else "OPERATOR", "weights": "\n".join(f"    {file}" for file in weight_files),
    }  # fmt: skip
    lines = [_HEAD.format(**facts)]
    for signature in signatures:
        lines.append(f"    # {_told(describe(signature, bodies[signature]))}\n")
        alike = [case for case in cases if case.signature == signature]
        lines += [f"    #   {_told(_recorded(case))}\n" for case in alike] or ["    #   no call was recorded\n"]
        lines += [f"    {json.dumps(o.name)},\n" for o in operators if o.signature == signature]
    run.text(f"{TEST_FOLDER}/test_operators.py", "".join([*lines, _TAIL]))
    run.text(f"{TEST_FOLDER}/conftest.py", _CONFTEST)
    run.text(f"{TEST_FOLDER}/pytest.ini", _SETTINGS)
    run.text(f"{TEST_FOLDER}/README.md", _README.format(**facts))


def _told(text: str) -> str:
    """Within a comment or a docstring of Python, of which nothing in a name is to be the end: the rest would be code."""
    return " ".join(printable(text).split()).replace("\\", "/").replace('"""', "'''")


def _recorded(case: Case) -> str:
    error = max(case.source_error, default=0.0)
    return f"{case.id} of {case.operator}: {', '.join(case.reasons)}; source error {error:.2g}"


def describe(signature: str, body: Body) -> str:
    """One line about a body: "linear 1f2e…: float32[1, 32, 576], weight float32[576, 576] -> float32[1, 32, 576]"."""
    inputs = [f"{'' if role == 'value' else role + ' '}{spec}" for spec, role in zip(body.inputs, body.roles, strict=True)]
    return f"{body.kind} {signature}: {', '.join(inputs)} -> {', '.join(map(str, body.output_specs))}"

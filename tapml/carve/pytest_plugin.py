"""What the carved test suites share: the options `--target` and `--device`, and the test of one recorded call.

A suite's `conftest.py` imports the options and the fixture `check` from here, and makes the fixture `platform`, to which it hands
the class that tests operators (`tapml.migrate.operator_test.OperatorTester`). The suite is written by `tapml.carve.suite`.

    pytest RUN/tests --target opencl                         local driver
    pytest RUN/tests --target vulkan --device NAME@URL       a device at a tapml hub
    pytest RUN/tests --target cpu --inject FILE.py:FUNCTION  with a fault in the kernels

A target that is not there skips every test with the reason; a device that is lost for good while the tests run ends them with
exit code 3. Numbers of each test become JUnit properties.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import pytest

from tapml.carve.folder import RunFolder
from tapml.errors import UnavailableError, UsageError
from tapml.verdicts import Verdict


class Tester(Protocol):
    """What tests operators on one target."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def test_case(self, case: str) -> Verdict: ...


MakeTester = Callable[[RunFolder, str, str, str | None], Tester]
Check = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tapml", "carved operator tests")
    try:
        group.addoption("--target", help="what to compile for and run on, e.g. opencl, vulkan, cpu (required)")
        group.addoption("--device", default="local", help="where to run: local, or NAME@URL at a tapml hub (default: local)")
        group.addoption("--inject", help="FILE.py:FUNCTION that changes kernel text, to see the tests fail")
    except ValueError:
        return  # a second suite in the same pytest call: the options are there already


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--target") and not config.getoption("--collect-only") and not config.getoption("--help"):
        raise pytest.UsageError("Carved tests need a platform: add --target opencl (or vulkan, cpu, …; see tapml doctor).")


class Platform:
    """The tester of each run in this session, opened when the first test needs it; or the reason why there is none. A context
    manager: closes them all."""

    def __init__(self, config: pytest.Config, make: MakeTester) -> None:
        self._stack = ExitStack()
        self._config = config
        self._make = make
        self._testers: dict[Path, Tester | str] = {}

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def tester(self, run: Path) -> Tester | str:
        if run not in self._testers:
            self._testers[run] = self._open(run)
        return self._testers[run]

    def _open(self, run: Path) -> Tester | str:
        target, device, inject = (self._config.getoption(name) for name in ("--target", "--device", "--inject"))
        try:
            return self._stack.enter_context(self._make(RunFolder.open(run), target, device, inject))
        except UnavailableError as error:
            return f"not run: {error}"
        except UsageError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture
def check(request: pytest.FixtureRequest, platform: Platform, record_property: Callable[[str, object], None]) -> Check:
    """`check(operator, case)`: runs one recorded call on the target, and fails or skips with the verdict's reason."""
    tester = platform.tester(request.path.parent.parent)

    def run(operator: str, case: str) -> None:
        if isinstance(tester, str):
            pytest.skip(tester)
        try:
            verdict = tester.test_case(case)
        except UnavailableError as error:
            pytest.exit(str(error), returncode=error.exit_code)
        for name in ("operator", "signature", "op", "status", "stage", "error", "bound", "source_error", "schedule"):
            record_property(name, getattr(verdict, name))
        if verdict.status == "skipped":
            pytest.skip(verdict.reason)
        if verdict.status != "pass":
            pytest.fail(explain(operator, case, verdict), pytrace=False)

    return run


def explain(operator: str, case: str, verdict: Verdict) -> str:
    """What a failed test prints."""
    stage = "" if verdict.stage is None else f" at stage {verdict.stage}"
    lines = [f"{operator} ({verdict.op}), {case}: {verdict.status}{stage}", verdict.reason]
    if verdict.error is not None:
        lines.append(f"error {verdict.error:.3g}, bound {verdict.bound:.3g}, source's own error {verdict.source_error:.3g}")
    if verdict.schedule is not None:
        lines.append(f"schedule {verdict.schedule}, kernels {verdict.kernel}")
    return "\n".join(lines)

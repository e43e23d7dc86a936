"""What the carved test suites share: the options `--target` and `--device`, and the test of one operator.

A suite's `conftest.py` imports the options, the hooks and the fixture `check` from here, and makes the fixture `platform`, to
which it hands the class that tests operators (`tapml.migrate.operator_test.OperatorTester`). The suite is written by
`tapml.carving.suite`.

    pytest RUN/tests --target opencl                         local driver
    pytest RUN/tests --target vulkan --device NAME@URL       a device at a tapml hub
    pytest RUN/tests --target cpu --inject FILE.py:FUNCTION  with a fault in the kernels

A target that is not there, or a device that is lost for good while the tests run, fails the test that met it, with the reason,
and ends the session with exit code 3: a file of results then holds a failure too. With `--skip-missing`, a target that is not
there skips every test instead. An operator of which nothing was recorded fails, as it does in `tapml test`.

Numbers of each test become properties in the JUnit file. pytest's `record_property` does the same and warns, because the schema
of the default `junit_family` has no properties of a test; readers of such files know them all the same, and
`-o junit_family=xunit1` is the family that has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import pytest

from tapml.carving.folder import RunFolder
from tapml.devices.known import PLATFORMS
from tapml.errors import UnavailableError, UsageError
from tapml.printable import cut, printable
from tapml.verdicts import Verdict

_PROPERTIES = ("operator", "signature", "op", "status", "stage", "error", "bound", "source_error", "schedule", "cases")
_MISSING = pytest.StashKey[int]()


class Tester(Protocol):
    """What tests operators on one target."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def prepare(self, names: Sequence[str]) -> None: ...

    def test(self, name: str) -> Verdict: ...


MakeTester = Callable[[RunFolder, str, str, str | None], Tester]
Check = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tapml", "carved operator tests")
    try:
        group.addoption("--target", help=f"the target to compile for and run on, e.g. {', '.join(PLATFORMS)} (required)")
        group.addoption("--device", default="local", help="where to run: local, or NAME@URL at a tapml hub (default: local)")
        group.addoption("--inject", help="FILE.py:FUNCTION that changes kernel text, to see the tests fail")
        group.addoption("--skip-missing", action="store_true", help="skip the tests if the target is not available")
    except ValueError:
        return  # a second suite in the same pytest call: the options are there already


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--target") and not config.getoption("--collect-only") and not config.getoption("--help"):
        first, *more = PLATFORMS
        raise pytest.UsageError(f"Carved tests need a platform: add --target {first} (or {', '.join(more)}; see tapml doctor).")


def pytest_sessionfinish(session: pytest.Session) -> None:
    code = session.config.stash.get(_MISSING, None)
    if code is not None:
        session.exitstatus = code


class Platform:
    """The tester of each run in this session, opened when the first test needs it; or why there is none. A context manager:
    closes them all."""

    def __init__(self, config: pytest.Config, make: MakeTester) -> None:
        self._stack = ExitStack()
        self._config = config
        self._make = make
        self._testers: dict[Path, Tester | UnavailableError] = {}

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def tester(self, run: Path, names: Sequence[str]) -> Tester | UnavailableError:
        """`names` are the operators that this session tests: all of them are compiled at once."""
        if run not in self._testers:
            self._testers[run] = self._open(run, names)
        return self._testers[run]

    def _open(self, run: Path, names: Sequence[str]) -> Tester | UnavailableError:
        target, device, inject = (self._config.getoption(name) for name in ("--target", "--device", "--inject"))
        try:
            tester = self._stack.enter_context(self._make(RunFolder.open(run), target, device, inject))
            tester.prepare(names)
        except UnavailableError as error:
            return error
        except UsageError as error:
            pytest.exit(shown(str(error)), returncode=pytest.ExitCode.USAGE_ERROR)
        return tester


@pytest.fixture
def check(request: pytest.FixtureRequest, platform: Platform) -> Check:
    """`check(operator)`: tests one operator on the target, and fails with the verdict's reason."""
    suite = request.path.parent
    tester = platform.tester(suite.parent, _operators(request, suite))

    def run(operator: str) -> None:
        if isinstance(tester, UnavailableError):
            _missing(request, tester)
        try:
            verdict = tester.test(operator)
        except UnavailableError as error:
            _stop(request, f"{operator} was not tested: {error}", error.exit_code)
        except UsageError as error:
            _stop(request, str(error), error.exit_code)
        found = ((name, getattr(verdict, name)) for name in _PROPERTIES)
        properties = ((name, printable(value) if isinstance(value, str) else value) for name, value in found if value is not None)
        request.node.user_properties.extend(properties)
        if verdict.status != "pass":
            pytest.fail(explain(operator, verdict), pytrace=False)

    return run


def _operators(request: pytest.FixtureRequest, suite: Path) -> list[str]:
    """The operators of this suite that are to be tested. One of several processes that share the session (pytest-xdist) does not
    know which will be its own: it compiles each as it comes."""
    if hasattr(request.config, "workerinput"):
        return []
    calls = [item.callspec for item in request.session.items if item.path.parent == suite and hasattr(item, "callspec")]
    return [call.params["operator"] for call in calls if "operator" in call.params]


def _missing(request: pytest.FixtureRequest, error: UnavailableError) -> NoReturn:
    reason = shown(f"not run: {error}")
    if request.config.getoption("--skip-missing"):
        pytest.skip(reason)
    _stop(request, f"{reason}\nWith --skip-missing the tests are skipped if the target is not available.", error.exit_code)


def _stop(request: pytest.FixtureRequest, reason: str, code: int) -> NoReturn:
    """Fails this test and ends the session after it."""
    reason = shown(reason)
    request.config.stash[_MISSING] = code
    request.session.shouldfail = reason.partition("\n")[0]
    pytest.fail(reason, pytrace=False)


def explain(operator: str, verdict: Verdict) -> str:
    """What a failed test prints."""
    stage = "" if verdict.stage is None else f" at stage {verdict.stage}"
    lines = [f"{operator} ({verdict.op}): {verdict.status}{stage}", verdict.reason]
    if verdict.error is not None:
        lines.append(f"error {verdict.error:.3g}, bound {verdict.bound:.3g}, source's own error {verdict.source_error:.3g}")
    if verdict.schedule is not None:
        lines.append(f"schedule {verdict.schedule}, kernels {verdict.kernel}")
    return shown("\n".join(lines))


def shown(text: str) -> str:
    """As pytest may print it, which prints what it is handed."""
    return cut(printable(text))

"""For all tests: small models, carved once, and the targets that are here."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import tapml
from tapml.carving.folder import RunFolder
from tapml.devices.open import probe
from tests.kept_workers import kept_workers
from tests.models import CAUSAL_LMS, VOCABULARY, causal_lm, conv_net, encoder
from tests.remote.processes import Agent, Hub, running_agent, running_hub

# Machines are slow and busy at times, which says nothing about what is tested.
settings.register_profile("tapml", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tapml")

MakeRun = Callable[[str], RunFolder]

# The files that take longest, longest first: they are begun first, so that no process waits for another at the end. Most have few
# tests, and pytest-xdist by itself would begin those last.
LONGEST = (
    "remote/test_faults.py", "migrate/test_real_models.py", "remote/test_browser.py", "diagnose/test_bisect.py",
    "remote/test_verbs.py", "diagnose/test_explain.py", "operators/test_cut.py", "migrate/test_integers.py",
    "report/test_html_browser.py", "carving/test_smollm2.py", "migrate/test_unchecked.py", "test_tutorial.py",
    "carving/test_suite.py", "compile/test_ordinary.py", "test_ci.py", "cli/test_bad_input.py",
    "remote/test_client.py", "compile/test_architectures.py", "cli/test_schemas.py", "remote/test_share.py",
    "migrate/test_late_positions.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    rank = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Processes that tests start can be interrupted. A shell that runs the tests in the background (or `nohup`) has Ctrl-C
    ignored, which a process hands on to those it starts; a handler it does not."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def workers_kept() -> Iterator[None]:
    """The compiler is loaded once or twice a session, not in each test. What compiles in a process of its own is as always."""
    with kept_workers():
        yield


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """`make_run("llama")`: the run of a small model, carved when first asked for. An architecture of `tests.models`,
    "conv_net" or "encoder"."""
    folder = tmp_path_factory.mktemp("runs")
    made: dict[str, RunFolder] = {}

    def make(name: str) -> RunFolder:
        if name not in made:
            made[name] = _carve(name, folder / name)
        return made[name]

    return make


def _carve(name: str, out: Path) -> RunFolder:
    if name in CAUSAL_LMS:
        generator = torch.Generator().manual_seed(7)
        prompts = {"input_ids": torch.randint(3, VOCABULARY, (2, 11), generator=generator)}
        return tapml.carve(causal_lm(name), prompts, out=out, decode_steps=6, chunk=8, max_len=32).folder
    module, inputs = conv_net() if name == "conv_net" else encoder()
    return tapml.carve(module, inputs, out=out).folder


_absent: dict[str, str] = {}


@pytest.fixture
def need() -> Callable[[str], str]:
    """`need("vulkan")` gives the target back, or skips the test with the reason why it is not here."""

    def check(target: str) -> str:
        if target not in _absent:
            found = probe(target)
            _absent[target] = "" if found.available else found.reason
        if _absent[target]:
            pytest.skip(f"{target} is not here: {_absent[target]}")
        return target

    return check


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Agent]]:
    """A hub and an agent called "bench", each in a process of its own. For tests that break neither."""
    folder = tmp_path_factory.mktemp("served")
    targets = [word for target in ("opencl", "vulkan", "webgpu", "cpu") for word in ("--target", target)]
    with running_hub(folder) as hub, running_agent(hub.url, "bench", *targets) as agent:
        yield hub, agent

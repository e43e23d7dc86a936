"""What goes wrong with connections, machines and devices changes no verdict, no token, and doubles nothing.

Real processes and real sockets throughout. Each migration of a tiny llama is compared, verdict by verdict and token by token,
with one over the same connection that nobody disturbed.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tapml.backends.kernels import Kernels
from tapml.carving.folder import RunFolder
from tapml.targets.parse import parse
from tests.conftest import MakeRun
from tests.remote.disturbed import Bench, HastyHub, Migration, Moments, bench, facts, journal
from tests.remote.namespace import NotPermitted, namespace
from tests.remote.processes import Agent

Undisturbed = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """`undisturbed("llama")`: the facts of a migration of that run that nothing happens to."""
    known: dict[str, dict[str, Any]] = {}

    def migrated(name: str) -> dict[str, Any]:
        if name not in known:
            with bench(tmp_path_factory.mktemp("undisturbed"), "--target", "cpu") as remote:
                remote.wait_ready("cpu")
                result = remote.migrate(make_run(name), "cpu")
                assert result.passed
                known[name] = facts(result)
        return known[name]

    return migrated


@pytest.fixture
def llama(make_run: MakeRun, need: Callable[[str], str]) -> RunFolder:
    need("cpu")
    return make_run("llama")


def test_an_agent_killed_again_and_again(llama: RunFolder, undisturbed: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(2)
    with bench(tmp_path, "--target", "cpu") as remote:
        remote.wait_ready("cpu")
        moments = Moments(seed=2)
        for done in rng.sample(range(len(llama.operators)), 2):
            moments.at("test", done, remote.agent.restart)
        moments.at("compare", 1, remote.agent.restart)
        assert facts(remote.migrate(llama, "cpu", moments)) == undisturbed("llama")
        assert moments.happened == 3


class Dropper(threading.Thread):
    """Breaks connections in the client's leg, the device's or both, by RST and by FIN, soon after both stand again."""

    def __init__(self, remote: Bench, seed: int) -> None:
        super().__init__(daemon=True)
        self.legs = [leg for leg in (remote.near, remote.far) if leg is not None]
        self.stopping = threading.Event()
        self._rng = random.Random(seed)

    @property
    def dropped(self) -> int:
        return sum(leg.dropped for leg in self.legs)

    def run(self) -> None:
        while not self.stopping.wait(self._rng.uniform(0.02, 0.08)):
            if all(leg.open for leg in self.legs):
                for leg in self._rng.choice((self.legs, self.legs[:1], self.legs[1:])):
                    leg.drop(reset=self._rng.random() < 0.5)

    def wait(self, count: int) -> None:
        """Until so many were dropped."""
        until = time.monotonic() + 60
        while self.dropped < count:
            assert time.monotonic() < until, f"{self.dropped} connections were dropped"
            time.sleep(0.005)


# A kernel that takes its time, so that connections break while it runs: what is sent again then has been taken already.
SLOW = """
def inject(operator, target, source):
    return source.replace("{", "{ for (volatile int i = 0; i < 30000000; i++) ;", 1) if "o_proj" in operator else source
"""


def test_200_dropped_connections(llama: RunFolder, tmp_path: Path) -> None:
    """In both legs, by RST and by FIN, spread over the whole migration: the session on the device goes on over all of them, and
    no kernel is launched twice."""
    fault = tmp_path / "slow.py"
    fault.write_text(SLOW)
    inject = f"{fault}:inject"

    class Steady(Kernels):
        def reopen(self) -> None:
            pytest.fail("the session was lost")

    with bench(tmp_path, "--target", "cpu", near={}, far={}) as remote:
        remote.wait_ready("cpu")
        with closing(Steady(parse("cpu"), remote.device)) as backend:
            whole = facts(remote.migrate(llama, "cpu", backend=backend, inject=inject))
        launches = remote.launches()
        dropper = Dropper(remote, seed=3)
        dropper.start()

        def progress(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("compare", 1):
                dropper.wait(200)

        with closing(Steady(parse("cpu"), remote.device)) as backend:
            result = remote.migrate(llama, "cpu", backend=backend, inject=inject, progress=progress)
        dropper.stopping.set()
        dropper.join()
        assert min(leg.dropped for leg in dropper.legs) > 50
        assert facts(result) == whole
        assert remote.launches() == 2 * launches


def test_a_slow_link(make_run: MakeRun, need: Callable[[str], str], undisturbed: Undisturbed, tmp_path: Path) -> None:
    """200 ms there and back, 1 MB a second: a small model has all that goes over it, and few enough round trips."""
    need("cpu")
    with bench(tmp_path, "--target", "cpu", far={"latency": 0.1, "bandwidth": 1e6}) as remote:
        remote.wait_ready("cpu")
        assert facts(remote.migrate(make_run("conv_net"), "cpu")) == undisturbed("conv_net")
        assert remote.agent.said().count("Connected") == 1
        assert "Back" not in remote.agent.said()


def test_connections_that_fall_silent(llama: RunFolder, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Half-open: in the client's leg, then in the device's, nothing passes any more and nobody is told."""
    with bench(tmp_path, "--target", "cpu", heartbeat=1.0, near={}, far={}) as remote:
        assert remote.near is not None
        assert remote.far is not None
        remote.wait_ready("cpu")
        moments = Moments(seed=4).at("test", 15, remote.near.silence).at("test", 50, remote.far.silence)
        assert facts(remote.migrate(llama, "cpu", moments)) == undisturbed("llama")
        assert remote.near.accepted >= 2 and remote.far.accepted >= 2


def test_a_hub_killed_and_restarted(llama: RunFolder, undisturbed: Undisturbed, tmp_path: Path) -> None:
    with bench(tmp_path, "--target", "cpu") as remote:
        remote.wait_ready("cpu")
        moments = Moments(seed=5).at("test", 30, remote.hub.restart).at("compare", 1, remote.hub.restart)
        assert facts(remote.migrate(llama, "cpu", moments)) == undisturbed("llama")
        assert remote.agent.said().count("In use") == 1, "the device kept its session"


def test_an_agent_killed_for_good(llama: RunFolder, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The command ends with 3 and says how to go on; with another agent of that name, --resume finishes it."""
    with bench(tmp_path, "--target", "cpu") as remote:
        remote.wait_ready("cpu")
        migration = Migration(llama, remote.device, patience=3.0)
        migration.wait_verdicts(10)
        remote.agent.kill()
        code, error = migration.ended()
        assert (code, error["code"]) == (3, 3)
        assert "--resume" in error["error"]
        before = journal(llama, "cpu")
        assert "done" not in [record["record"] for record in before]
        remote.agent.start()
        remote.wait_ready("cpu")
        assert facts(remote.migrate(llama, "cpu", fresh=False, resume=True)) == undisturbed("llama")
        assert journal(llama, "cpu")[: len(before)] == before


def test_a_client_killed_while_another_waits(llama: RunFolder, undisturbed: Undisturbed, tmp_path: Path) -> None:
    other = RunFolder.open(Path(shutil.copytree(llama.path, tmp_path / "other")))
    with bench(tmp_path, "--target", "cpu", hub_class=HastyHub) as remote, ThreadPoolExecutor(1) as pool:
        remote.wait_ready("cpu")
        first = Migration(llama, remote.device)
        first.wait_verdicts(3)
        first.freeze()
        second = pool.submit(remote.migrate, other, "cpu")
        while not remote.hub.devices()[0]["waiting"]:
            assert not second.done()
        first.kill()
        assert facts(second.result()) == undisturbed("llama")
        remote.wait_idle()


INJECTED = """
def inject(operator, target, source):
    return source if operator != "{operator}" else source.replace("{{", "{{ for (volatile int i = 0;;) i = i;", 1)
"""


def test_a_kernel_that_never_ends(llama: RunFolder, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Costs its operator, and only that one, a verdict; the device is there again for the next."""
    undisturbed("llama")  # and what the C compiler makes of it is there from then on
    operator = llama.operators[12].name
    fault = tmp_path / "fault.py"
    fault.write_text(INJECTED.format(operator=operator))
    with bench(tmp_path, "--target", "cpu") as remote:
        remote.wait_ready("cpu")
        with closing(Kernels(parse("cpu"), remote.device, deadline=6.0)) as backend:
            result = remote.migrate(llama, "cpu", backend=backend, inject=f"{fault}:inject")
        wrong = [v for v in result.verdicts if v.status != "pass"]
        assert [(v.operator, v.status, v.stage) for v in wrong] == [(operator, "crash", "launch")]
        assert "deadline of 6 s" in wrong[0].reason
        assert result.kept_on_source == (operator,)
        assert without(operator, facts(result)) == without(operator, undisturbed("llama"))
        assert facts(result)["tokens"] == undisturbed("llama")["tokens"]
        assert remote.agent.process.poll() is None


def without(operator: str, all_facts: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The verdicts on the other operators."""
    return [verdict for verdict in all_facts["verdicts"] if verdict[0] != operator]


def test_a_device_without_room(make_run: MakeRun, need: Callable[[str], str], tmp_path: Path) -> None:
    """Room for any operator and for the model, but not for all that gathers: it is emptied, and nothing fails. Too little room
    for good: what does not fit stays on the source with that reason, and the model answers all the same."""
    need("cpu")
    run = make_run("conv_net")
    with bench(tmp_path, "--target", "cpu") as remote:
        remote.wait_ready("cpu")
        whole = facts(remote.migrate(run, "cpu"))
        assert remote.agent.said().count("In use") == 1
    with bench(tmp_path, "--target", "cpu", "--memory", "100K") as remote:
        remote.wait_ready("cpu")
        assert facts(remote.migrate(run, "cpu")) == whole
        assert remote.agent.said().count("In use") > 1, "it was never out of memory, so nothing is shown"
    with bench(tmp_path, "--target", "cpu", "--memory", "45K") as remote:
        remote.wait_ready("cpu")
        result = remote.migrate(run, "cpu")
        wrong = [v for v in result.verdicts if v.status != "pass"]
        assert 0 < len(wrong) < len(result.verdicts)
        assert {(v.status, v.stage) for v in wrong} == {("error", "launch")}
        assert all("--memory" in v.reason for v in wrong)
        assert result.kept_on_source == tuple(v.operator for v in wrong)
        assert result.end_to_end.passed


def test_an_agent_in_another_network(llama: RunFolder, make_run: MakeRun, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A namespace of its own behind a veth pair, TLS with the certificate that the hub made, pinned: over a cable that is pulled
    out in the middle, and over a slow link."""
    with ExitStack() as stack:
        try:
            there = stack.enter_context(namespace())
        except NotPermitted as error:
            pytest.skip(f"not run: {error}")

        class AgentThere(Agent):
            launcher = there.launcher

        flags = ("--target", "cpu")
        with bench(tmp_path, *flags, heartbeat=0.3, host=there.here, agent_class=AgentThere) as remote:
            assert remote.hub.url.startswith(f"https://{there.here}:")
            assert len(remote.hub.address.fingerprint) == 64
            remote.wait_ready("cpu")
            moments = Moments().at("test", 20, lambda: there.unplugged(1.5))
            assert facts(remote.migrate(llama, "cpu", moments)) == undisturbed("llama")
            assert "Back" in remote.agent.said()
        far = None if there.slow(0.1, 1e6) else {"latency": 0.1, "bandwidth": 1e6, "host": there.here}
        with bench(tmp_path, *flags, host=there.here, agent_class=AgentThere, far=far) as remote:
            remote.wait_ready("cpu")
            assert facts(remote.migrate(make_run("conv_net"), "cpu")) == undisturbed("conv_net")

"""Migrating SmolLM2-135M to a device across a connection, next to the same on a local child process.

    remote.py [--rounds 3] [--only PART]...        parts: loopback, step, network, slow, browser

loopback  OpenCL (PoCL), 16 tokens, warm kernel cache: a local child; a hub and an agent as processes on loopback, the agent just
          started (nothing stored), and the same agent again (weights and kernels stored). In turn, `--rounds` times; medians.
step      what one decode step costs: round trips, bytes on the wire, milliseconds, on a local child and across loopback.
network   the agent in a network namespace of its own, behind a veth pair, over TLS with the hub's own certificate.
slow      across loopback with 200 ms there and back and 1 MB a second, weights stored before.
browser   a tab of headless Chromium (WebGPU on SwiftShader), 4 tokens: nothing stored, then stored. Next to it wgpu on llvmpipe
          in a local child, the other software WebGPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from measure import PROMPTS, Finished, brief, save, smollm2, tapml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tapml.carving.folder import RunFolder  # noqa: E402
from tapml.migrate.operator_test import OperatorTester  # noqa: E402
from tapml.runtime.decoder import Decoder  # noqa: E402
from tests.remote.disturbed import Bench, bench  # noqa: E402
from tests.remote.namespace import NotPermitted, namespace  # noqa: E402
from tests.remote.processes import Agent, running_hub  # noqa: E402

TOKENS = "16"
STEPS = 20
PARTS = ("loopback", "step", "network", "slow", "browser")


class Remote:
    """The run that is migrated, and where the parts put their figures and checks."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.figures: dict[str, Any] = {}
        self.checks: dict[str, bool] = {}
        self.run = folder / "run"
        words = ("carve", smollm2(), "-o", str(self.run), "--decode-steps", "16", "--prompt", PROMPTS[0])
        carve = tapml(*words)
        if carve.code:
            sys.exit(carve.log)

    def migrate(self, target: str, device: str = "local", tokens: str = TOKENS) -> Finished:
        words = ("migrate", str(self.run), "--target", target, "--tokens", tokens, "--fresh")
        done = tapml(*words, *(() if device == "local" else ("--device", device)))
        if not done.data or "error" in done.data:
            sys.exit(done.log)
        return done

    def told(self, name: str, runs: list[Finished]) -> None:
        """Keeps the runs of one kind, and says their median."""
        self.figures[name] = {"seconds": median(run.seconds for run in runs), "runs": [shown(run) for run in runs]}
        self.checks[f"{name}: everything passes and moves, tokens equal"] = all(
            run.code == 0 and not run.data["kept_on_source"] and run.data["end_to_end"]["tokens_match"] for run in runs
        )
        print(f"{name}: {', '.join(f'{run.seconds:.1f}' for run in runs)} s", flush=True)

    def loopback(self) -> None:
        self.migrate("opencl")  # kernels and page cache
        kinds: dict[str, list[Finished]] = {"local": [], "cold store": [], "warm store": []}
        counts: list[dict[str, int]] = []
        with bench(self.folder, "--target", "opencl") as remote:
            for _ in range(self.rounds):
                kinds["local"].append(self.migrate("opencl"))
                remote.agent.restart()
                remote.wait_ready("opencl")
                for kind in ("cold store", "warm store"):
                    before = moved(remote)
                    kinds[kind].append(self.migrate("opencl", remote.device))
                    counts.append({"store": kind == "warm store", **{k: moved(remote)[k] - before[k] for k in before}})
        for kind, runs in kinds.items():
            self.told(kind, runs)
        local = self.figures["local"]["seconds"]
        most = {"cold store": 1.5, "warm store": 1.2}
        for kind in most:
            self.figures[kind]["to local"] = self.figures[kind]["seconds"] / local
            self.figures[kind]["bytes"] = [one for one in counts if one["store"] == (kind == "warm store")]
            print(f"{kind}: {self.figures[kind]['to local']:.2f} of local; {self.figures[kind]['bytes']}", flush=True)
            held = self.figures[kind]["to local"] <= most[kind]
            self.checks[f"{kind}: at most {most[kind]} times the local child's time"] = held

    def step(self) -> None:
        with bench(self.folder, "--target", "opencl") as remote:
            remote.wait_ready("opencl")
            places = {"local": "local", "remote": remote.device}
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in places}
            for _ in range(self.rounds):
                for name, device in places.items():
                    rounds[name].append(decode_steps(self.run, device))
        self.figures["step"] = {
            name: {key: median(one[key] for one in found) for key in found[0]} for name, found in rounds.items()
        }
        print(f"decode step: {self.figures['step']}", flush=True)
        self.checks["one round trip a decode step"] = self.figures["step"]["remote"]["round_trips"] == 1.0

    def network(self) -> None:
        with ExitStack() as stack:
            try:
                there = stack.enter_context(namespace())
            except NotPermitted as error:
                self.not_run("network", str(error))
                return
            agent = type("AgentThere", (Agent,), {"launcher": there.launcher})
            remote = stack.enter_context(bench(self.folder, "--target", "opencl", host=there.here, agent_class=agent))
            remote.wait_ready("opencl")
            for kind in ("network, cold store", "network, warm store"):
                self.told(kind, [self.migrate("opencl", remote.device)])

    def slow(self) -> None:
        with bench(self.folder, "--target", "opencl", far={}) as remote:
            assert remote.far is not None
            remote.wait_ready("opencl")
            self.migrate("opencl", remote.device)  # stored
            remote.far.slow(0.1, 1e6)
            up, down = remote.far.up, remote.far.down
            self.told("200 ms and 1 MB/s, warm store", [self.migrate("opencl", remote.device)])
            self.figures["200 ms and 1 MB/s, warm store"]["bytes"] = {
                "from the device": remote.far.up - up, "to the device": remote.far.down - down,
            }

    def browser(self) -> None:
        try:
            tab = tab_at_a_hub(self.folder)
            with tab as device:
                for kind in ("browser, cold store", "browser, warm store"):
                    self.told(kind, [self.migrate("webgpu", device, "4")])
        except NotHere as error:
            self.not_run("browser", str(error))
            return
        self.told("wgpu on llvmpipe, local", [self.migrate("webgpu", tokens="4")])

    def not_run(self, part: str, why: str) -> None:
        self.figures[part] = f"not run: {why}"
        print(f"{part}: not run: {why}", flush=True)


class NotHere(Exception):
    """What a part needs is not here."""


def shown(run: Finished) -> dict[str, Any]:
    """A run as a figure, without the hub's token."""
    figure = brief(run)
    figure["command"] = [word.partition("@")[0] if "@" in word else word for word in figure["command"]]
    figure["data"] = {k: figure["data"][k] for k in ("seconds", "summary", "offloaded", "kept_on_source", "compiled")}
    return figure


def moved(remote: Bench) -> dict[str, int]:
    """Bytes that went to the agent and came from it, and launches, since its start."""
    time.sleep(1.5)  # it tells once a second
    (device,) = remote.hub.devices()
    return {"to the device": device["received"], "from the device": device["sent"], "launches": device["launches"]}


def decode_steps(run: Path, device: str) -> dict[str, float]:
    """The mean of STEPS decode steps with every operator on the target, after a few that warm up."""
    folder = RunFolder.open(run)
    protocol = folder.protocol
    assert isinstance(protocol, Decoder)
    with OperatorTester(folder, "opencl", device) as tester:
        tester.bench.compile(folder.operators)
        hybrid = tester.bench.hybrid()
        hybrid.offload(tester.bench.programs([operator.name for operator in folder.operators]))
        hybrid.reset()
        prompt = folder.prompts[0].tokens
        for call in protocol.read(prompt):
            hybrid.step(call.graph, call.inputs)
        calls = [protocol.append(1, len(prompt) + count) for count in range(STEPS + 4)]
        for call in calls[:4]:
            hybrid.step(call.graph, call.inputs)
        before, start = counters(tester.bench.device), time.perf_counter()
        for call in calls[4:]:
            hybrid.step(call.graph, call.inputs)
        seconds, after = time.perf_counter() - start, counters(tester.bench.device)
    return {"milliseconds": 1000 * seconds / STEPS, **{key: (after[key] - before[key]) / STEPS for key in before}}


def counters(device: Any) -> dict[str, int]:
    """What a remote device counted so far; nothing for a local one."""
    if not hasattr(device, "traffic"):
        return {}
    traffic = asdict(device.traffic)
    return {"round_trips": device.round_trips, "bytes_up": traffic["sent"], "bytes_down": traffic["received"]}


@contextmanager
def tab_at_a_hub(folder: Path) -> Iterator[str]:
    """What `--device` takes for a tab of a headless Chromium."""
    import pytest

    from tests.remote.chromium import Chromium

    with ExitStack() as stack:
        hub = stack.enter_context(running_hub(folder))
        try:
            browser = stack.enter_context(Chromium())
        except pytest.skip.Exception as error:
            raise NotHere(str(error)) from error
        browser.open(hub.url)
        until = time.monotonic() + 60
        while not any(device["offers"].get("webgpu", {}).get("state") == "ready" for device in hub.devices()):
            if time.monotonic() > until:
                raise NotHere(f"Chromium offers no WebGPU: {hub.devices()}")
            time.sleep(0.2)
        yield f"any@{hub.url}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=PARTS, help="default: all parts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        remote = Remote(Path(scratch), args.rounds)
        for part in args.only or PARTS:
            work: Callable[[], None] = getattr(remote, part)
            work()
    return save("remote", {"rounds": args.rounds, **remote.figures}, remote.checks)


if __name__ == "__main__":
    sys.exit(main())

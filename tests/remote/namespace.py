"""A second network namespace, joined to this one by a cable of its own: as near to another machine as one machine gets.

    with namespace() as there:              NotPermitted, with the reason, where there can be none
        there.here, there.address           the addresses of the cable's two ends, ours and the namespace's
        there.launcher                      what starts `tapml` inside of it, for `tests.remote.processes.Process`
        there.unplugged(2.0)                no link for so many seconds; nobody is told
        there.slow(0.1, 1e6)                a delay each way in seconds and bytes a second, if the kernel has netem: else False
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class NotPermitted(Exception):
    """No second network can be made here. The message says why."""


@dataclass(frozen=True)
class Namespace:
    name: str
    cable: str
    here: str
    address: str

    @property
    def launcher(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name, sys.executable, "-m", "tapml")

    def unplugged(self, seconds: float) -> None:
        _ip("link", "set", self.cable, "down")
        time.sleep(seconds)
        _ip("link", "set", self.cable, "up")

    def slow(self, latency: float, bandwidth: float) -> bool:
        netem = ("netem", "delay", f"{latency * 1000:.0f}ms", "rate", f"{bandwidth * 8:.0f}bit")
        for inside, dev in (((), self.cable), (("ip", "netns", "exec", self.name), "eth0")):
            done = subprocess.run([*inside, "tc", "qdisc", "add", "dev", dev, "root", *netem], capture_output=True, check=False)
            if done.returncode:
                return False
        return True


@contextmanager
def namespace() -> Iterator[Namespace]:
    if shutil.which("ip") is None:
        raise NotPermitted("there is no command `ip` here (iproute2)")
    number = os.getpid() % 250
    there = Namespace(f"tapml-{os.getpid()}", f"tapml{os.getpid()}"[:15], f"10.213.{number}.1", f"10.213.{number}.2")
    try:
        try:
            _ip("netns", "add", there.name)
            _ip("link", "add", there.cable, "type", "veth", "peer", "name", "eth0", "netns", there.name)
            _ip("addr", "add", f"{there.here}/30", "dev", there.cable)
            _ip("link", "set", there.cable, "up")
            _ip("-n", there.name, "addr", "add", f"{there.address}/30", "dev", "eth0")
            _ip("-n", there.name, "link", "set", "eth0", "up")
        except subprocess.CalledProcessError as error:
            raise NotPermitted(f"no network namespace with a veth pair can be made ({error.stderr.decode().strip()})") from error
        yield there
    finally:
        subprocess.run(["ip", "link", "del", there.cable], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", there.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, check=True)

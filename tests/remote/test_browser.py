"""The hub's page in a real browser: it becomes a device, shows what there is, and survives what happens to pages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.api import Run
from tapml.carving.folder import RunFolder
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.session import Session
from tapml.deploy.verify import verify
from tapml.devices.interface import Launch
from tapml.errors import DeviceError, DeviceLost, OutOfMemory
from tapml.kernels import Kernel
from tapml.remote.address import RemoteName
from tapml.remote.client.client import RemoteDevice
from tapml.remote.wire import control
from tapml.targets.parse import parse
from tests.backends.test_own import EXAMPLES, WRONG_IN_WGSL, edit, statuses
from tests.conftest import MakeRun
from tests.devices import kernels
from tests.devices.kernels import COUNT, NBYTES
from tests.remote.chromium import Chromium
from tests.remote.processes import ROOT, Hub, running_hub

WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub"), "--heartbeat", "1") as hub:
        yield hub


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture
def tab(hub: Hub, browser: Chromium) -> Iterator[str]:
    tab = browser.open(hub.url)
    browser.wait_ready(tab)
    yield tab
    print(hub.said()[-2000:], *browser.shown(), sep="\n")  # for a test that failed
    browser.close_tabs()
    until(lambda: all(device["state"] == "away" for device in hub.devices()))


def until(holds: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return value


def here(hub: Hub) -> list[dict[str, Any]]:
    """The devices that are connected."""
    return [device for device in hub.devices() if device["state"] != "away"]


def opened(hub: Hub, deadline: float = 60.0, label: str = "test") -> RemoteDevice:
    return RemoteDevice(RemoteName.parse(f"any@{hub.url}"), parse("webgpu"), deadline=deadline, label=label)


def adds_up(device: RemoteDevice) -> None:
    """Memory, a kernel, and a launch of it."""
    kernel = device.load(kernels.elementwise("wgsl", "y[i] + x[i]"))
    x, y = device.allocate(NBYTES), device.allocate(NBYTES)
    for buffer, value in ((x, 2), (y, 1)):
        device.write(buffer, np.full(COUNT, value, np.float32).tobytes())
    device.run([Launch(kernel, (x, y))] * 3)
    np.testing.assert_array_equal(np.frombuffer(device.read(y, NBYTES), np.float32), np.float32(7))


def text_of(browser: Chromium, tab: str, selector: str) -> str:
    return str(browser.evaluate(tab, f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))


# What the page's own adapter says, asked for without TapML's code.
ADAPTER = """navigator.gpu.requestAdapter().then(({ limits, info, features }) => ({
  limits: [limits.maxBufferSize, limits.maxStorageBufferBindingSize, limits.maxStorageBuffersPerShaderStage,
    limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupStorageSize, limits.maxComputeWorkgroupsPerDimension],
  architecture: info.architecture, fallback: info.isFallbackAdapter, subgroups: features.has("subgroups"),
}))"""


LIMITS = (
    "max_buffer_bytes", "max_binding_bytes", "max_storage_buffers", "max_workgroup_invocations", "max_workgroup_memory_bytes",
    "max_workgroups_per_dimension",
)  # fmt: skip


def test_the_page_is_a_device_and_says_the_truth_of_itself(hub: Hub, browser: Chromium, tab: str) -> None:
    (listed,) = here(hub)
    info = listed["offers"]["webgpu"]["info"]
    found = browser.evaluate(tab, ADAPTER)
    assert listed["kind"] == "browser" and listed["state"] == "idle"
    assert [info["limits"][name] for name in LIMITS] == found["limits"]
    assert info["platform"] == "webgpu" and info["software"] is found["fallback"] is True
    assert found["architecture"] in info["name"] and "Chrom" in info["name"]
    assert ("subgroups" in info["features"]) == found["subgroups"]
    until(lambda: text_of(browser, tab, "#devices .device-name").startswith(listed["name"]))


# What becomes of a request to somebody else: where it was stopped.
ELSEWHERE = """new Promise(resolve => {
  addEventListener("securitypolicyviolation", event => resolve(event.blockedURI));
  fetch("http://127.0.0.1:9/elsewhere").then(() => resolve("it went out"), () => null);
})"""


def test_nothing_is_asked_of_anybody_else(hub: Hub, browser: Chromium, tab: str) -> None:
    """Neither by the page nor by its worker; and it could not be."""
    base = hub.url.partition("?")[0]
    by_page, by_worker = browser.reload_watched(tab, sockets=2)
    assert f"{base}web/panel.js" in by_page and f"{base}web/session.js" in by_worker
    assert all(name.startswith((base, base.replace("http", "ws"))) for name in by_page + by_worker)
    browser.wait_ready(tab)
    for evaluate in (browser.evaluate, browser.evaluate_in_worker):
        assert evaluate(tab, ELSEWHERE) == "http://127.0.0.1:9/elsewhere"


def test_text_from_the_network_stays_text(hub: Hub, browser: Chromium, tab: str) -> None:
    label = "<img src=x onerror=alert(1)> <b>model</b> \u202egnp"
    device = opened(hub, label=label)
    browser.wait(tab, "document.querySelector('#what').textContent.includes('<b>model</b>')")
    until(lambda: "<img src=x onerror=alert(1)>" in text_of(browser, tab, "#devices .label"))
    assert browser.evaluate(tab, "document.querySelectorAll('#devices img, #devices b, #mine img, #mine b').length") == 0
    device.close()


def test_the_driver_speaks_of_a_refused_kernel(hub: Hub, tab: str) -> None:
    device = opened(hub)
    device.load(kernels.elementwise("wgsl", "no_such_name[i]"))
    with pytest.raises(DeviceError, match=r"Error while parsing WGSL: :7:\d+ error: unresolved value 'no_such_name'") as caught:
        device.synchronize()
    assert caught.value.stage == "driver"
    adds_up(device)
    device.close()


def test_no_room_is_told_apart(hub: Hub, tab: str) -> None:
    """The memory of a browser's process is what ends first, so this asks for what no driver gives."""
    device = opened(hub)
    held = []
    with pytest.raises((OutOfMemory, DeviceLost)) as caught:
        for _ in range(200):
            held.append(device.allocate(2**30))
    assert isinstance(caught.value, OutOfMemory), caught.value
    for buffer in held:
        device.free(buffer)
    adds_up(device)
    device.close()


def test_a_step_is_one_packet_there_and_one_back(hub: Hub, tab: str) -> None:
    device = opened(hub)
    kernel = device.load(kernels.elementwise("wgsl", "y[i] + x[i]"))
    x, y = device.allocate(NBYTES), device.allocate(NBYTES)
    batch = [Launch(kernel, (x, y))] * 20
    device.write(y, bytes(NBYTES))
    for value in range(4):
        before = (device.traffic.packets_sent, device.traffic.packets_received) if value > 2 else (0, 0)
        device.write(x, np.full(COUNT, value, np.float32).tobytes())
        device.run(batch)
        result = np.frombuffer(device.read(y, NBYTES), np.float32)
    assert (device.traffic.packets_sent, device.traffic.packets_received) == (before[0] + 1, before[1] + 1)
    np.testing.assert_array_equal(result, np.float32(20 * (1 + 2 + 3)))
    device.close()


def test_a_model_migrates_though_its_tab_is_loaded_again(
    hub: Hub, browser: Chromium, tab: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run, result = make_run("llama").path, tmp_path / "result.json"
    command = ["migrate", str(run), "--target", "webgpu", "--device", f"any@{hub.url}", "--fresh", "--json", str(result)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tapml", *command], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until(lambda: process.poll() is not None or any(device["launches"] > 150 for device in here(hub)), 180.0)
    assert process.poll() is None, process.communicate()
    browser.reload(tab)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = json.loads(result.read_text())
    assert found["summary"]["pass"] == len(found["offloaded"]) == sum(found["summary"].values())
    assert found["end_to_end"]["tokens_match"] and found["end_to_end"]["tokens_target"]
    browser.wait_ready(tab)
    bundle = BundleFolder.open(build(RunFolder.open(run), "webgpu", tmp_path / "bundle").path)
    runs_as_a_bundle(bundle, f"any@{hub.url}")


def runs_as_a_bundle(bundle: BundleFolder, device: str) -> None:
    """In the tab: the source's tokens, weights sent once, one packet each way a token, and the same bits every way."""
    with Session(bundle, device) as session:
        assert "Chrom" in session.info.name + session.info.driver
        prompt = bundle.prompts[0]
        for _ in range(2):
            assert list(session.generate(prompt["tokens"], len(prompt["generated"]))) == prompt["generated"]
        sent = session.uploaded
        made = []
        remote = session._device
        assert isinstance(remote, RemoteDevice)
        for _ in session.generate(prompt["tokens"], 12):
            made.append((remote.traffic.packets_sent, remote.traffic.packets_received))
        assert [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(made)][-3:] == [(1, 1)] * 3
        assert session.uploaded == sent
        assert verify(session, repeat=2, max_tokens=2).passed


def test_kernels_of_ones_own_run_in_a_tab(hub: Hub, tab: str, make_run: MakeRun, tmp_path: Path) -> None:
    """The right ones pass, and each of the wrong ones fails in its own operator alone."""
    run, device = Run(make_run("llama")), f"any@{hub.url}"
    folder = Path(shutil.copytree(EXAMPLES, tmp_path / "kernels"))
    right = run.test("webgpu", device, kernels=folder, operator="decode/layers.0.*")
    assert statuses(right) == {"rms_norm": {"pass"}, "attention": {"pass"}} and "Chrom" in right.device.name
    for file, before, after in WRONG_IN_WGSL:
        edit(folder, file, before, after)
        found = statuses(run.test("webgpu", device, kernels=folder, operator="decode/layers.0.*"))
        wrong = file.removesuffix(".wgsl")
        assert "fail" in found.pop(wrong) and set.union(*found.values()) == {"pass"}, before
        shutil.copy(EXAMPLES / file, folder)


def test_a_session_outlives_the_hub(hub: Hub, browser: Chromium, tab: str) -> None:
    device = opened(hub)
    buffer = device.allocate(16)
    device.write(buffer, b"0123456789abcdef")
    assert device.read(buffer, 2) == b"01"
    hub.restart()
    assert device.read(buffer, 16) == b"0123456789abcdef"
    adds_up(device)
    device.close()
    browser.wait_ready(tab)


def test_weights_are_remembered_over_reload_and_restart(hub: Hub, tmp_path: Path) -> None:
    data = [np.random.default_rng(n).integers(0, 256, 3 * 2**20 + n, np.uint8).tobytes() for n in range(3)]

    def upload() -> int:
        device = opened(hub)
        for content in data:
            buffer = device.allocate(len(content))
            device.write(buffer, content, keep=True)
            assert device.read(buffer, len(content)) == content
        uploaded = device.uploaded
        device.close()
        return uploaded

    for turn in range(2):
        with Chromium(tmp_path / "profile") as browser:
            tab = browser.open(hub.url)
            browser.wait_ready(tab)
            assert upload() == (sum(map(len, data)) if turn == 0 else 0)
            browser.wait(tab, f"{KEPT}.then(count => count === {len(data)})")
            browser.reload(tab)
            browser.wait_ready(tab)
            assert upload() == 0
            browser.quit()


KEPT = "caches.open('tapml-store-1').then(cache => cache.keys()).then(keys => keys.length)"
ALL_BUT_ONE_GONE = """caches.open("tapml-store-1").then(cache => cache.keys()
  .then(keys => Promise.all(keys.slice(1).map(key => cache.delete(key)))))"""


def test_weights_that_the_browser_threw_away_cost_no_session(hub: Hub, browser: Chromium, tab: str) -> None:
    data = [np.random.default_rng(n).integers(0, 256, 2**18, np.uint8).tobytes() for n in range(4)]

    def upload() -> int:
        device = opened(hub)
        for content in data:
            device.write(device.allocate(len(content)), content, keep=True)
        device.synchronize()
        device.close()
        return device.uploaded

    browser.evaluate(tab, "caches.delete('tapml-store-1')")
    assert upload() == 4 * 2**18
    browser.wait(tab, f"{KEPT}.then(count => count === 4)")
    browser.reload(tab)
    browser.wait_ready(tab)
    browser.evaluate(tab, ALL_BUT_ONE_GONE)
    assert upload() == 3 * 2**18
    browser.wait(tab, f"{KEPT}.then(count => count === 4)")
    browser.evaluate(tab, "caches.delete('tapml-store-1')")
    assert upload() == 4 * 2**18
    browser.wait(tab, f"{KEPT}.then(count => count === 4)")


def test_a_phone_pairs_and_stays_paired(hub: Hub, browser: Chromium, tab: str) -> None:
    browser.evaluate(tab, "document.querySelector('#add').click()")
    code = browser.wait(tab, "document.querySelector('#code')?.textContent")
    assert browser.evaluate(tab, "document.querySelector('.qr').naturalWidth") > 0
    phone = browser.open(f"{hub.url.partition('?')[0]}?pair={code}")
    browser.wait_ready(phone)
    until(lambda: len(here(hub)) == 2)
    name = browser.evaluate(phone, "document.querySelector('#name').value")
    browser.wait(tab, f"document.querySelector('#pairing').textContent.includes('{name} is here')")
    assert text_of(browser, tab, "#code") == code  # beside it, since another browser may have come
    for _ in range(2):
        assert browser.wait(phone, "location.search === '?device'")
        assert browser.evaluate(phone, "document.cookie") == ""
        assert browser.evaluate(phone, "document.querySelector('#all').hidden")
        browser.reload(phone)
        browser.wait_ready(phone)
    used = browser.open(f"{hub.url.partition('?')[0]}?pair={code}")
    browser.wait(used, "document.querySelector('#word').textContent === 'Refused'")
    assert "was used already" in text_of(browser, used, "#what")


# All that a script of the page could find its token in, were there one.
KNOWN = """[location.href, document.cookie, document.referrer, document.documentElement.outerHTML, ...Object.values(localStorage),
  ...Object.values(sessionStorage), ...performance.getEntries().map(({ name }) => name)].join(" ")"""


def test_the_token_is_in_no_address_no_history_and_no_reach_of_a_script(hub: Hub, browser: Chromium) -> None:
    base, token = hub.url.partition("?")[0], hub.address.token
    tab = browser.open(hub.url)
    browser.wait_ready(tab)
    for _ in range(2):
        assert browser.evaluate(tab, "[location.href, history.length, document.cookie]") == [base, 1, ""]
        assert token not in browser.evaluate(tab, KNOWN)
        assert [entry["url"] for entry in browser.history(tab)] == [base]
        assert all(token not in str(entry) for entry in browser.history(tab))
        browser.wait(tab, "!document.querySelector('#all').hidden")
        browser.reload(tab)  # by the cookie
        browser.wait_ready(tab)
    for asked in browser.loading(tab, hub.url):
        assert not asked["headers"].get("Referer"), asked["url"]
        assert (token in asked["url"]) == (asked["url"] == hub.url)
    second = browser.open(base)  # the same browser, without any token
    browser.wait_ready(second)
    hub.restart()
    browser.wait_ready(tab)
    browser.wait(second, "document.querySelector('#link').textContent === 'Connected'")
    browser.close_tabs()


def test_with_https_and_the_hubs_own_certificate_it_is_the_same(tmp_path: Path) -> None:
    with running_hub(tmp_path, "--host", "0.0.0.0") as hub, Chromium(flags=("--ignore-certificate-errors",)) as browser:
        base = f"https://127.0.0.1:{hub.port}/"
        mine, phone = (str(url).replace(hub.address.host, "127.0.0.1") for url in (hub.told["page"], hub.told["pairing"]["url"]))
        for url, place in ((mine, base), (phone, f"{base}?device")):
            tab = browser.open(url)
            browser.wait(tab, f"location.href === '{place}'")
            browser.reload(tab)
            browser.wait_ready(tab)
            assert browser.evaluate(tab, "[location.href, document.cookie, document.querySelector('#all').hidden]") == [
                place, "", place != base,
            ]  # fmt: skip


# A page of another site that tries to be taken for the hub's own; what the hub answers to it.
OTHER_SITE = """new Promise(resolve => {
  const socket = new WebSocket("ws://127.0.0.1:%d/wire");
  socket.binaryType = "arraybuffer";
  socket.onopen = () => socket.send(new Uint8Array([0, ...%s]));
  socket.onmessage = ({ data }) => resolve(new TextDecoder().decode(data));
  socket.onerror = () => resolve("nothing");
})"""


def test_a_page_of_another_port_cannot_use_the_browsers_cookie(hub: Hub, browser: Chromium, tab: str) -> None:
    """It is of the same site, since sites have no ports, so the browser sends the cookie along: its origin gives it away."""
    hello = list(control("hello", {"version": 1, "role": "watch", "token": ""})[1:])
    assert browser.evaluate(tab, OTHER_SITE % (hub.port, hello)).startswith("\0\ufffd\ufffdwelcome")
    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = browser.open(f"http://127.0.0.1:{server.server_port}/")
        browser.wait(other, "document.readyState === 'complete'")
        assert "origin" in browser.evaluate(other, OTHER_SITE % (hub.port, hello))
        server.shutdown()


class Empty(BaseHTTPRequestHandler):
    """Another site: an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def test_the_dialog_outlives_the_hub(hub: Hub, browser: Chromium, tab: str) -> None:
    """A hub that was restarted knows no older code, and one that is away gives none."""
    browser.evaluate(tab, "document.querySelector('#add').click()")
    code = browser.wait(tab, "document.querySelector('#code')?.textContent")
    hub.kill()
    browser.wait(tab, "document.querySelector('#pairing').textContent.includes('The hub does not answer')")
    browser.evaluate(tab, "document.querySelector('#pairing').close(); document.querySelector('#add').click()")
    assert "A code comes when it is back" in text_of(browser, tab, "#pairing")
    hub.start()
    new = browser.wait(tab, "document.querySelector('#code')?.textContent")
    assert new != code and "is here" not in text_of(browser, tab, "#pairing")
    phone = browser.open(f"{hub.url.partition('?')[0]}?pair={new}")
    browser.wait_ready(phone)
    browser.wait(tab, "document.querySelector('#pairing').textContent.includes('is here')")


# The dialog, told of devices that come: what it says then.
COMING = """import("/web/pairing.js").then(({ Pairing }) => {
  const dialog = document.body.appendChild(document.createElement("dialog"));
  const answer = { code: "1234", url: "https://hub/?pair=1234", svg: "<svg/>", seconds: 300 };
  const pairing = new Pairing(dialog, () => pairing.show(answer));
  const came = (...names) => {
    pairing.devices(names.map(name => ({ name, kind: name.startsWith("agent") ? "agent" : "browser", state: "idle" })), "own");
    return dialog.textContent.includes("is here");
  };
  pairing.devices([{ name: "old", kind: "browser", state: "idle" }], "own");
  pairing.open();
  const said = [came("old", "own", "agent"), came(), came("old", "own", "agent")];
  pairing.setLink("connecting", "the connection broke");
  pairing.setLink("connected", "");
  pairing.again();
  said.push(came("old"), came("old", "phone"));
  const shown = dialog.querySelector("#code").textContent;
  const button = [...dialog.querySelectorAll("button")].find(({ textContent }) => textContent === "New code");
  button.focus();
  button.click();
  said.push(came("old", "phone"));
  return [said, shown, dialog.contains(document.activeElement) && document.activeElement !== dialog];
})"""


def test_only_a_new_browser_is_the_phone_that_came(browser: Chromium, tab: str) -> None:
    assert browser.evaluate(tab, COMING) == [[False, False, False, False, True, False], "1234", True]


def test_two_tabs_keep_their_names(hub: Hub, browser: Chromium, tab: str) -> None:
    def name_of(tab: str) -> str:
        browser.wait_ready(tab)
        return str(browser.evaluate(tab, "document.querySelector('#name').value"))

    second = browser.open(hub.url)
    names = [name_of(tab), name_of(second)]
    assert names[0] != names[1]
    joined = hub.said().count("joined (browser")
    browser.evaluate_in_worker(second, "setTimeout(() => { throw new Error('on purpose') }, 10)")
    until(lambda: hub.said().count("joined (browser") > joined)
    assert name_of(second) == names[1]
    for _ in range(2):
        browser.reload(second)
        assert [name_of(tab), name_of(second)] == names
    assert sorted(device["name"] for device in here(hub)) == sorted(names)


def test_it_can_be_stopped_and_named(hub: Hub, browser: Chromium, tab: str) -> None:
    type_in = "var box = document.querySelector('#name'); box.value = 'my phone!'; box.dispatchEvent(new Event('change'));"
    assert browser.evaluate(tab, f"{type_in} box.value") == "my-phone"
    until(lambda: [device["name"] for device in here(hub)] == ["my-phone"])
    browser.reload(tab)
    browser.wait_ready(tab)
    until(lambda: [device["name"] for device in here(hub)] == ["my-phone"])
    device = opened(hub)
    browser.wait(tab, "document.querySelector('#name').readOnly")
    assert browser.evaluate(tab, f"{type_in.replace('my phone!', 'other')} box.value") == "my-phone"
    assert "when its work is over" in text_of(browser, tab, "#fixed")
    adds_up(device)
    device.close()
    browser.wait_ready(tab)
    assert not browser.evaluate(tab, "document.querySelector('#name').readOnly")
    browser.evaluate(tab, "document.querySelector('#toggle').click(); localStorage.clear()")
    until(lambda: not here(hub))
    browser.evaluate(tab, "document.querySelector('#toggle').click()")
    browser.wait_ready(tab)


def test_a_worker_that_fails_is_replaced(hub: Hub, browser: Chromium, tab: str) -> None:
    device = opened(hub)
    adds_up(device)
    before = hub.said().count("joined (browser")
    browser.evaluate_in_worker(tab, "setTimeout(() => { throw new Error('on purpose') }, 200)")
    until(lambda: hub.said().count("joined (browser") > before)
    device.close()
    browser.wait_ready(tab)
    device = opened(hub)
    adds_up(device)
    device.close()
    browser.evaluate(tab, "document.querySelector('#toggle').click()")
    assert browser.evaluate(tab, "document.querySelector('#problem').hidden")  # it is not started again now


def test_a_browser_without_webgpu_says_so_and_shows_the_list(hub: Hub) -> None:
    with Chromium(webgpu=False) as browser:
        tab = browser.open(hub.url)
        browser.wait(tab, "document.querySelector('#word')?.textContent === 'No WebGPU'")
        assert "gives no adapter" in text_of(browser, tab, "#problem")
        (listed,) = here(hub)
        assert listed["offers"]["webgpu"]["state"] == "absent" and "no adapter" in listed["offers"]["webgpu"]["reason"]
        until(lambda: "no adapter" in text_of(browser, tab, "#devices"))
        assert text_of(browser, tab, "#devices .badge") == "nothing to offer"
        cut_off = "(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth)(document.querySelector('#devices .offer-text'))"
        assert not browser.evaluate(tab, cut_off)


SPIN = Kernel(
    "wgsl", "spin",
    "@group(0) @binding(0) var<storage, read_write> x : array<f32>;\n"
    "@compute @workgroup_size(1) fn spin() { while (x[0] < 2.0) { x[1] += 1.0; } }",
    ("read_write",), (1, 1, 1), (1, 1, 1),
)  # fmt: skip


def test_a_hung_kernel_costs_a_session(hub: Hub) -> None:
    """In a browser of its own, whose processor it keeps busy to the end."""
    with Chromium() as browser:
        tab = browser.open(hub.url)
        browser.wait_ready(tab)
        device = opened(hub, deadline=1.0)
        buffer = device.allocate(16)
        device.write(buffer, bytes(16))
        device.run([Launch(device.load(SPIN), (buffer,))])
        with pytest.raises(DeviceLost, match="did not answer within the deadline of 1 s"):
            device.read(buffer, 4)
        device.close()
        browser.wait(tab, "document.querySelector('#mine').textContent.includes('1 time')")
        browser.wait_ready(tab)


def test_a_crashed_driver_costs_a_session(hub: Hub) -> None:
    with Chromium() as browser:
        tab = browser.open(hub.url)
        browser.wait_ready(tab)
        device = opened(hub)
        adds_up(device)
        browser.gpu_process().kill()
        with pytest.raises(DeviceLost, match="was lost"):
            adds_up(device)
        device.close()
        browser.wait(tab, "document.querySelector('#mine').textContent.includes('1 time')")
        browser.wait_ready(tab)
        device = opened(hub)
        adds_up(device)
        device.close()

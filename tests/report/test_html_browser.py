"""The report in a browser: headless Chromium opens the file itself, with nothing that serves it."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from tapml.carving.folder import RunFolder
from tapml.carving.tolerance import of_source
from tapml.diagnose.probes.launches import Grid
from tapml.diagnose.probes.running import AsItIs
from tapml.migrate.picture import keep_picture, picture
from tapml.migrate.records import Records, target_folder
from tapml.report.html.page import write_report
from tests.report.results import HOSTILE, bare, copy, pretend

playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")

FAILING = "prefill/layers.1.input_layernorm"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium is here: install it, or name it in CHROMIUM")
    with playwright.sync_playwright() as drivers:
        opened = drivers.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(results: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = copy(results, tmp_path_factory.mktemp("report") / "run")
    run.manifest["model"]["name"] = f"small llama {HOSTILE}"
    out = run.path.parent / "report.html"
    write_report(run, out)
    return out


class Page:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, file: Path, address: str = "", width: int = 1280, **settings: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        self.page = context.new_page()
        self.page.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(f"{file.as_uri()}{address}")
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)
        self.page.wait_for_function(DRAWN)

    def colours(self) -> list[str]:
        """Of the cells of the first map, as Bokeh draws them."""
        found: list[str] = self.page.evaluate(COLOURS)
        return found

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


# The last document with a source of cells is that of the map which was built last.
COLOURS = """() => {
  const sources = Bokeh.documents.flatMap(d => d.roots()).flatMap(root => root.renderers ?? []).map(r => r.data_source?.data);
  return [...(sources.filter(data => data?.colour && data.w && data.colour.length).at(-1)?.colour ?? [])];
}"""
DRAWN = f"() => ({COLOURS})().length > 0 && document.querySelectorAll('.map-plot').length > 0"


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Page]:
    page = Page(browser, file)
    yield page
    page.page.context.close()


def test_opens_without_a_word_and_without_a_request(opened: Page, file: Path) -> None:
    assert opened.asked == [file.as_uri()]
    assert opened.said == []
    assert opened.text("h1").startswith("small llama </script>") and opened.page.title().startswith("small llama </script>")
    assert "6 of 71 operators did not pass on opencl" in opened.text(".lead")
    assert opened.page.locator(".target").count() == 2 and "A device </script>" in opened.text(".device")


def test_the_slider_changes_the_map(opened: Page) -> None:
    opened.page.locator("#controls button", has_text="One").click()
    before, shot = opened.colours(), opened.page.locator(".map").screenshot()
    opened.page.locator("#step").fill("2")
    assert opened.text("#step-text") == "Step 2"
    after = opened.colours()
    assert len(after) == len(before) and sum(a != b for a, b in zip(after, before, strict=True)) > len(before) // 2
    opened.page.wait_for_timeout(300)
    assert opened.page.locator(".map").screenshot() != shot
    opened.page.locator("#step").fill("0")
    assert opened.colours() == before


def test_search_and_filters_narrow(opened: Page) -> None:
    whole = opened.page.locator(".row").count()
    opened.press("/")
    opened.page.keyboard.type("q_proj")
    assert opened.page.locator(".row").count() == 2 < whole and opened.text("#list-count") == "2 of 36 operators"
    opened.page.locator("#search").fill("no such thing")
    assert "Nothing matches" in opened.text("#rows")
    opened.page.locator(".filter-row button", has_text="Clear").click()
    opened.page.locator(".chips button", has_text="crash").click()
    assert opened.page.locator(".row").count() == 1
    opened.page.locator("#search").fill("decode")
    assert "Nothing matches" in opened.text("#rows")


def test_the_keyboard(opened: Page) -> None:
    opened.press("n")
    assert opened.text("#panel h3") == FAILING and "fail" in opened.text("#panel .badge")
    assert opened.page.url.endswith("#prefill%2Flayers.1.input_layernorm")
    opened.press("n")
    assert opened.text("#panel h3") == "prefill/layers.1.self_attn.q_proj"
    opened.page.locator(".map").first.focus()
    opened.press("ArrowRight")
    assert opened.text("#panel h3") == "prefill/layers.1.self_attn.k_proj" and "k_proj" in opened.text("#map-live")
    opened.press("ArrowUp")
    assert opened.text("#panel h3") == "prefill/layers.0.self_attn.k_proj"
    opened.press("j")
    assert opened.text("#panel h3") == "prefill/layers.0.self_attn.v_proj"
    opened.press("g")
    assert opened.page.locator("#panel h3", has_text="Worst operators").count() == 1
    opened.press("?")
    assert opened.page.locator("#help[open]").count() == 1
    opened.press("Escape")
    assert opened.page.locator("#help[open]").count() == 0


def test_a_click_and_the_pointer(opened: Page) -> None:
    opened.page.locator("#controls button", has_text="One").click()
    opened.page.wait_for_function("() => document.querySelectorAll('.map-plot').length === 1")
    opened.page.locator(".map").first.scroll_into_view_if_needed()
    box = opened.page.locator(".map").first.bounding_box()
    # The rows from below: lm_head, gather, norm, layer 1.
    x, y = box["x"] + box["width"] - 20, box["y"] + box["height"] - 12
    opened.page.mouse.move(x, y)
    assert "lm_head" in opened.text("#tooltip") and "×" in opened.text("#tooltip")
    opened.page.mouse.click(x, y)
    assert opened.text("#panel h3") == "prefill/lm_head"
    assert opened.page.locator(".map").first.bounding_box() == box  # choosing scrolls the list, never the page
    opened.page.mouse.click(x, y - 3 * 26)
    assert opened.text("#panel h3") == "prefill/layers.1.mlp.down_proj"


def test_the_panel_of_an_operator(browser: Any, file: Path) -> None:
    page = Page(browser, file, "#decode%2Flayers.1.mlp.down_proj")
    text = page.text("#panel")
    for part in (
        "model.layers.1.mlp.down_proj", "modeling_llama.py:", "linear(i0, i1)", "weight model.layers.1.mlp.down_proj.weight",
        "grid 8 × 1 × 1 · block 64 × 1 × 1", "get_group_id(0) * 64",
    ):  # fmt: skip
        assert part in text
    assert page.page.locator("#panel .t-k", has_text="__kernel").count() == 2  # of both targets
    assert page.page.locator("#panel .chart").count() == 2
    assert page.page.locator("#panel .bars").count() == 4  # two values, a weight, the result
    assert page.said == []


def test_two_sides(opened: Page, results: RunFolder) -> None:
    assert opened.page.locator(".map").count() == 2
    opened.page.locator("#controls button", has_text="Difference").click()
    opened.page.wait_for_function("() => document.querySelectorAll('.map').length === 1")
    assert "0 operators with another status" in opened.text("#compare") and "3×" in opened.text("#compare")
    opened.page.get_by_label("Other side").select_option("reference")
    recorded = len({case.operator for case in results.cases})
    assert f"{len(results.operators) - recorded} operators with a verdict on one of them only" in opened.text("#compare")


@pytest.fixture(scope="module")
def diagnosed(results: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a side that passes, and of one with a picture, a diagnosis and a reproducer of `FAILING`."""
    run = copy(results, tmp_path_factory.mktemp("diagnosed") / "run")
    passing = pretend(run, "cpu")
    (target_folder(run, "cpu") / "migrate.jsonl").unlink()
    clean = [replace(v, status="pass", stage=None, error=1e-9, bound=2e-6, source_error=1e-9) for v in passing]
    clean = [replace(v, elements=4096, excluded=12) if v.operator == FAILING else v for v in clean]
    header = Records.of(run, "opencl").migration.header | {"target": "cpu"}  # type: ignore[union-attr]
    lines = [header, *({"record": "verdict", "verdict": v.to_json()} for v in clean)]
    (target_folder(run, "cpu") / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = Records.of(run, "opencl")
    verdict = records.isolated.verdicts[FAILING]  # type: ignore[union-attr]
    expected = np.linspace(-1, 1, 512).reshape(1, 8, 64)
    wrong = expected * np.where(np.arange(64) % 4 == 3, 1.02, 1.0)
    drawn = {"trial": "case0", "output": 0, **picture(wrong, of_source(expected, 1e-7), (0, 0, 3))}
    keep_picture(records.folder, FAILING, str(verdict.kernel), drawn, injected=False)
    folder = records.folder / "explain" / FAILING.replace("/", "__")
    (folder / "reproducer").mkdir(parents=True)
    (folder / "reproducer" / "run.py").write_text("print('wrong')\n")
    array = {"shape": [2], "dtype": "float32", "values": [1.0, 2.0]}
    evidence = {
        "operator": FAILING, "stage": "codegen", "because": "of this", "elements_before": 9, "elements_after": 2,
        "reproducer": "reproducer", "minimised": {"inputs": [array], "expected": [array], "actual": [array]},
        "evidence": [AsItIs().gave("wrong", "").to_json(), Grid().gave("wrong", "").to_json()],
    }  # fmt: skip
    (folder / "evidence.json").write_text(json.dumps(evidence))
    write_report(run, run.path.parent / "r.html", ["cpu", "opencl"])
    return run.path.parent / "r.html"


def test_a_wrong_output_is_drawn_and_its_reproducer_handed_out(browser: Any, diagnosed: Path, tmp_path: Path) -> None:
    page = Page(browser, diagnosed, f"#{quote(FAILING, safe='')}")
    assert "128 of 512 elements: every 4th of axis 2, from 3" in page.text(".picture")
    # The third and the fourth column of the first row, as they are painted.
    paint = page.page.locator(".error-map").evaluate("c => [...c.getContext('2d').getImageData(2, 0, 2, 1).data]")
    right, wrong = paint[:3], paint[4:7]
    assert wrong[0] > wrong[2] and right[2] >= right[0], "red where it is wrong, blue where it is right"
    page.page.locator(".error-map").hover(position={"x": 3.5 * 380 / 64, "y": 5})
    assert "axis 1: 0, axis 2: 3" in page.text(".map-at") and "× the tolerance" in page.text(".map-at")
    assert page.page.locator(".spread-bars i").count() == 96
    assert "12 of 4,096 elements" in page.text(".verdict:has-text('cpu')"), "what was not compared is counted"
    said = page.page.locator(".evidence li").all_inner_texts()
    assert "It is wrong on the target." in said[0] and "More workgroups do not help" in said[1]
    colour = "e => getComputedStyle(e).color"
    marks = [page.page.locator(".outcome").nth(k).evaluate(colour) for k in (0, 1)]
    assert marks[0] != marks[1] == page.page.locator(".evidence .note").first.evaluate(colour), "harmless is not red"
    with page.page.expect_download() as made:
        page.page.locator(".download").click()
    made.value.save_as(tmp_path / "got.zip")
    with zipfile.ZipFile(tmp_path / "got.zip") as archive:
        assert archive.read(f"{FAILING.replace('/', '__')}/run.py") == b"print('wrong')\n"
    assert [url for url in page.asked if not url.startswith("blob:")] == [diagnosed.as_uri()] and page.said == []


def test_the_side_that_failed_comes_first_and_a_link_keeps_side_and_step(browser: Any, diagnosed: Path) -> None:
    page = Page(browser, diagnosed)
    assert page.page.locator(".target h2").all_inner_texts() == ["opencl", "cpu"]
    assert page.page.get_by_label("Side", exact=True).evaluate("e => e.selectedOptions[0].text") == "opencl"
    page.page.locator("#controls button", has_text="One").click()
    page.press("n")
    page.page.locator("#step").fill("2")
    assert page.text("#step-text") == "Step 2"
    address = page.page.url.partition("#")[2]
    assert address.startswith("prefill%2Flayers.1.input_layernorm&") and "step=2" in address and "view=one" in address
    again = Page(browser, diagnosed, f"#{address}")
    assert again.text("#step-text") == "Step 2" and again.text("#panel h3") == FAILING
    assert again.page.locator(".map").count() == 1 and again.page.url.endswith(address)
    other = Page(browser, diagnosed, "#&side=cpu&view=one")
    assert other.page.get_by_label("Side", exact=True).evaluate("e => e.selectedOptions[0].text") == "cpu"
    broken = Page(browser, diagnosed, "#%2&side=nothing&step=x&view=three&mode=none")
    assert broken.said == [] and broken.page.locator(".target").count() == 2


def test_kernels_of_two_sides_stand_beside_each_other(browser: Any, file: Path) -> None:
    page = Page(browser, file, "#decode%2Flayers.1.mlp.down_proj")
    page.page.locator(".beside-button").click()
    left, right = (box.bounding_box() for box in page.page.locator("#beside section").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert page.page.locator("#beside .t-k", has_text="__kernel").count() == 2
    page.press("Escape")
    assert page.page.locator("#beside[open]").count() == 0 and page.said == []


def test_light_and_dark(browser: Any, file: Path) -> None:
    def background(page: Page) -> list[int]:
        found = page.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return list(found)

    light, dark = (Page(browser, file, color_scheme=scheme) for scheme in ("light", "dark"))
    assert min(background(light)) > 200 > 60 > max(background(dark))
    assert light.colours() != dark.colours()
    dark.page.locator("#theme").click()
    assert background(dark) == background(light)
    dark.page.wait_for_function(DRAWN)
    assert dark.colours() == light.colours() and dark.said == []


@pytest.mark.parametrize("address", ["", f"#{FAILING}"])
def test_a_phone(browser: Any, file: Path, address: str) -> None:
    page = Page(browser, file, address, width=360, has_touch=True)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    if address:
        assert page.page.locator("#panel.open").bounding_box()["width"] == 360
        page.page.locator("#panel .close").click()
    assert page.page.locator("#panel").is_hidden() and page.said == []


def test_a_phone_and_a_target_with_a_long_name(browser: Any, results: Any, tmp_path: Path) -> None:
    run = copy(results, tmp_path / "run")
    pretend(run, "opencl:device=the second processor of a rented machine,f16=0,schedule=simple")
    write_report(run, tmp_path / "r.html")
    page = Page(browser, tmp_path / "r.html", "", width=360, has_touch=True)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_report_without_targets(browser: Any, make_run: Any, tmp_path: Path) -> None:
    write_report(bare(make_run("conv_net"), tmp_path / "run"), tmp_path / "r.html")
    page = Page(browser, tmp_path / "r.html")
    assert "not yet run on any target" in page.text(".lead") and page.said == []
    assert len(page.colours()) == 6 and page.page.locator(".row").count() == 6

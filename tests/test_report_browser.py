"""The report in a real browser, from a file: what is shown, what the keys do, and that nothing that is named runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_files import make_files

from boxsup_d2.report import MaskSet, write_report

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright drives the browser: pip install boxsup_d2[dev]"
)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is on the path: install one to test reports"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
# Relative luminance contrast (WCAG 2.1) of every text on the page with what is painted below it; the lowest, and where.
CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest("button:disabled, script")) continue;
    const style = getComputedStyle(node);
    const text = parse(node.closest("svg") ? style.fill : style.color);
    const [low, high] = [light(text), light(behind(node))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data.trim().slice(0, 40)];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A report of one set, one that compares two with the truth, one of many images, all of hostile names."""
    folder = tmp_path_factory.mktemp("report #1")
    masks = make_files(folder, images=90)
    name = "<img src=x onerror=window.hacked=3>.jpg"
    os.rename(folder / "images" / "0001.jpg", folder / "images" / name)
    for file in ("masks", "truth"):
        data = json.loads((folder / f"{file}.json").read_text())
        data["images"][1]["file_name"] = name
        data["categories"][0]["name"] = EVIL
        (folder / f"{file}.json").write_text(json.dumps(data))
    masks = MaskSet("first", str(folder / "masks.json"))
    other = MaskSet(EVIL, str(folder / "truth.json"))
    root = str(folder / "images")
    write_report([masks], root, str(folder / "one"), progress=False)
    write_report([masks, other], root, str(folder / "two"), truth=other.path, title=EVIL, progress=False)
    write_report([masks], root, str(folder / "many"), max_embedded=9, progress=False)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, folder) -> Iterator[Any]:
    """Opens a page from its file, by default with the worst objects first; at the end, nothing may have failed, run or
    been fetched."""
    contexts, errors, asked = [], [], []

    def opened(name: str, *, worst: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        context.set_default_timeout(120_000)  # milliseconds; machines that test are busy
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto((folder / f"{name}.html").as_uri())
        if worst:
            page.locator("#worst").click()
        return page

    yield opened
    hacked = [page.evaluate("window.hacked") for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert errors == []
    assert set(hacked) == {None}
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def cards(page) -> Any:
    return page.locator("#cards button")


def focused(page) -> int:
    """Position of the card that has the focus, -1 if none has."""
    return page.evaluate("[...document.querySelectorAll('#cards button')].indexOf(document.activeElement)")


def close_viewer(page) -> None:
    """Escape; browsers tell the page of a closed dialog in a task of its own, so wait for that."""
    page.evaluate(
        "() => { const viewer = document.querySelector('#viewer');"
        " window.told = new Promise(told => viewer.addEventListener('close', told, { once: true })); }"
    )
    page.keyboard.press("Escape")
    page.evaluate("() => window.told.then(() => null)")


def values(page, label: str) -> list[float]:
    """The numbers of this name on the cards, in order."""
    script = (
        "(nodes, label) => nodes.filter((n) => n.textContent.startsWith(label)).map((n) => +n.lastChild.textContent)"
    )
    return page.locator("#cards .numbers > span").evaluate_all(script, label)


def test_page_opens_on_images_and_the_worst_masks_are_a_click_away(show):
    page = show("one", worst=False)
    data = json.loads(page.locator("#data").text_content())
    with_objects = list(dict.fromkeys(data["image"]))
    assert page.locator("#cards").get_attribute("class") == "images"
    names = [data["files"][image].split("/")[-1] for image in with_objects]
    assert page.locator("#cards .file").all_text_contents() == names[:60], "in the order of the file"
    top = cards(page).first.bounding_box()["y"]
    assert top < 500, "no figures before them"
    worst = page.locator("#worst")
    for pressed, press in (("true", worst.click), ("false", lambda: page.keyboard.press("w"))):
        press()
        assert worst.get_attribute("aria-pressed") == pressed
        shown = values(page, "conf")
        assert bool(shown) == (pressed == "true"), "numbers are of objects"
        assert shown == sorted(shown)
    page.fill("#below", "0.5")
    assert page.input_value("#sort") == "confidence:0", "below of what"


def test_suspicious_masks_are_a_filter(show):
    page = show("one", worst=False)
    data = json.loads(page.locator("#data").text_content())
    page.select_option("#view", "objects")
    confidences = data["values"]["confidence"][0]
    low = sum(value < 0.7 for value in confidences)
    assert 0 < low < len(confidences)
    for label, count in (("low quality", low), ("nearly empty", data["areas"][0].count(0))):
        page.select_option("#masks", label=f"{label} ({count})")
        assert page.locator("#status").text_content().startswith(f"{count} of ")
    page.select_option("#masks", "any")
    assert page.locator("#status").text_content().startswith(f"{sum(map(bool, data['suspect']))} of ")


def test_worst_come_first_and_class_and_text_filter(show):
    page = show("one")
    data = json.loads(page.locator("#data").text_content())
    total = len(data["ids"])
    assert page.locator("#status").text_content() == f"{total} of {total} objects"
    assert cards(page).count() == 60
    first = values(page, "conf")
    assert first == sorted(first)
    assert first[0] == pytest.approx(min(data["values"]["confidence"][0]), abs=0.005)
    page.select_option("#order", "-1")
    assert values(page, "conf") == sorted(values(page, "conf"), reverse=True)
    page.select_option("#order", "1")
    for key in ("box_iou:0", "size:0"):
        page.select_option("#sort", key)
        names = cards(page).evaluate_all("(nodes) => nodes.map((n) => n.getAttribute('aria-label'))")
        shown = [float(re.search(r"([\d.]+)( px)?$", name)[1]) for name in names]
        assert shown == sorted(shown), key
        assert shown[0] < shown[-1]
    page.select_option("#sort", "box_iou:0")
    limit = sorted(data["values"]["box_iou"][0])[total // 3]
    page.fill("#below", str(limit))
    count = sum(value < limit for value in data["values"]["box_iou"][0])
    assert page.locator("#status").text_content() == f"{count} of {total} objects"
    page.fill("#below", "")
    assert page.locator("#status").text_content() == f"{total} of {total} objects"
    page.select_option("#class", label="dog")
    count = data["labels"].count(data["classes"].index("dog"))
    assert page.locator("#status").text_content() == f"{count} of {total} objects"
    assert set(page.locator("#cards .class").all_text_contents()) == {"dog"}
    page.select_option("#class", label="all")
    page.fill("#find", "0007")
    page.wait_for_function("document.querySelectorAll('#cards button').length < 9")
    assert set(page.locator("#cards .file").all_text_contents()) == {"0007.jpg"}
    page.fill("#find", "no such thing")
    page.wait_for_function("!document.querySelector('#cards button')")
    assert "Nothing passes" in page.locator("#cards").text_content()


def test_keys_walk_enlarge_and_close(show):
    page = show("one")
    assert focused(page) == -1
    page.keyboard.press("j")
    assert focused(page) == 0
    for key, position in (("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("End", 59), ("Home", 0)):
        page.keyboard.press(key)
        assert focused(page) == position, key
    page.keyboard.press("ArrowDown")
    row = focused(page)
    tops = cards(page).evaluate_all("(nodes) => nodes.map((n) => n.getBoundingClientRect().top)")
    assert tops[row] > tops[0]
    assert row == sum(top == tops[0] for top in tops), "the card below"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is seen"
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    title = page.locator("#viewer-title").text_content()
    assert title.endswith(
        f"{row + 1} of {page.evaluate('JSON.parse(document.getElementById(`data`).textContent).ids.length')}"
    )
    assert viewer.locator("img").count() == 3, "the object, the image, the image with masks"
    page.wait_for_function("[...document.querySelectorAll('#viewer img')].every((i) => i.complete && i.naturalWidth)")
    page.keyboard.press("j")
    assert page.locator("#viewer-title").text_content() != title
    close_viewer(page)
    assert not viewer.is_visible()
    assert focused(page) == row + 1
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("jn?")
    assert page.input_value("#find") == "jn?", "keys are letters while one types"
    page.fill("#find", "")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.wait_for_function("document.querySelectorAll('#cards.images button').length > 0")
    assert page.locator("#status").text_content().endswith("images")


def test_pages_bound_what_is_drawn(show):
    page = show("one")
    assert page.locator("#previous").is_disabled()
    page.keyboard.press("n")
    assert cards(page).count() <= 60
    assert page.locator("#page").text_content().startswith("Page 2 of ")
    page.keyboard.press("p")
    page.keyboard.press("End")
    page.keyboard.press("j")
    assert page.locator("#page").text_content().startswith("Page 2 of "), "walking on turns the page"
    assert focused(page) == 0
    page.keyboard.press("k")
    assert focused(page) == 59
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    close_viewer(page)
    assert page.locator("#page").text_content().startswith("Page 2 of "), "so does walking in the viewer"
    assert focused(page) == 0


def test_sets_and_truth_lie_side_by_side(show):
    page = show("two")
    assert page.title() == EVIL
    assert cards(page).first.locator("img").count() == 3
    assert cards(page).first.locator(".name").all_text_contents() == ["first", EVIL, "ground truth"]
    options = page.locator("#sort option").all_text_contents()
    assert options[:2] == ["IoU with truth, first", f"IoU with truth, {EVIL}"]
    shown = values(page, "IoU")[::2]
    assert shown == sorted(shown), "worst first by IoU where there is a truth"
    page.select_option("#sort", "agreement:1")
    assert EVIL in page.locator("#class").text_content()
    page.keyboard.press("Escape")
    cards(page).first.click()
    assert page.locator("#viewer table tr").first.locator("th").all_text_contents() == ["", "first", EVIL]
    page.locator("#viewer [data-step='1']").click()
    assert " 2 of " in page.locator("#viewer-title").text_content()
    page.locator("#viewer [data-close]").click()
    assert not page.locator("#viewer").is_visible()


def test_pictures_beside_the_page_are_loaded_when_seen(show, folder):
    page = show("many")
    page.wait_for_function("document.querySelector('#cards img').naturalWidth > 0")
    script = "(nodes) => nodes.filter((n) => n.naturalWidth > 0).length"
    assert page.locator("#cards img").evaluate_all("(nodes) => nodes.every((n) => n.loading === 'lazy')")
    assert "many_files/objects/" in cards(page).first.locator("img").get_attribute("src")
    assert page.locator("#cards img").evaluate_all(script) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(show, scheme):
    page = show("two", color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    cards(page).first.click()
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text


def test_phone_needs_no_sideways_scrolling(show):
    page = show("two", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.evaluate("document.getElementById('figures').open")
    sides = page.locator("#toolbar input, #toolbar select, #toolbar button").evaluate_all(
        "(nodes) => nodes.filter((n) => n.checkVisibility()).map((n) => n.getBoundingClientRect().height)"
    )
    assert min(sides) >= 44, "large enough for a finger"
    page.locator("#figures > summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    cards(page).first.tap()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_every_control_has_a_name_and_every_id_is_one(show):
    page = show("two")
    cards(page).first.click()
    nameless = page.locator("button, select, input, [role=img], [role=region], dialog").evaluate_all(
        """(nodes) => nodes.filter((n) => !(n.getAttribute('aria-label') || n.getAttribute('aria-labelledby')
            || (n.labels && n.labels.length) || n.textContent.trim())).map((n) => n.outerHTML)"""
    )
    assert nameless == []
    ids = page.locator("[id]").evaluate_all("(nodes) => nodes.map((n) => n.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("#viewer img[alt='']").count() == 0

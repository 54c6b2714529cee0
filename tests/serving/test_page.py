"""The page in a real Chromium: upload, ask, see the mask, click, ask again; also at a phone's
width.
"""

import io
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from reasonseg import InputError
from reasonseg.serving.page import brushed
from reasonseg.structures.overlay import enlargement

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
SHOTS = Path(os.environ.get("REASONSEG_SHOTS", "")) if os.environ.get("REASONSEG_SHOTS") else None


@pytest.fixture(scope="module")
def address(segmenter):
    from reasonseg.serving.api import make_app
    from reasonseg.serving.page import mount

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(mount(make_app(segmenter)), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip(
            "LOUD: no Chromium here (Debian: apt-get install chromium); the page is NOT tested"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def seen(page) -> np.ndarray:
    """The picture of the result as the browser has it, in its own pixels."""
    source = page.locator("#result img").first.get_attribute("src")
    return np.array(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


def asked(page, text, before):
    page.locator("#ask textarea").fill(text)
    page.locator("#send").click()
    page.wait_for_function(
        "source => document.querySelector('#result img')?.src !== source",
        arg=before,
        timeout=60_000,
    )
    page.wait_for_timeout(300)


def source(page):
    return page.locator("#result img").first.get_attribute("src")


def shot(page, name):
    if SHOTS is not None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)


def upload(page, address, file):
    page.goto(address)
    page.locator("#picture input[type=file]").first.set_input_files(str(file))
    page.locator("#result img").first.wait_for(timeout=60_000)


@pytest.fixture
def scene(scenes, segmenter, tmp_path):
    """A drawn scene, its question, and what the model marks there."""
    sample = next(s for s in scenes if len(segmenter(s.query).masks) == 1)
    Image.fromarray(sample.query.image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png", sample, segmenter(sample.query)


def test_upload_ask_see_click_ask_again(browser, address, scene):
    file, sample, answer = scene
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    upload(page, address, file)
    plain, before = seen(page), source(page)
    asked(page, sample.query.text, before)
    drawn = seen(page)
    shot(page, "asked")
    factor = enlargement(sample.query.image)
    changed = (np.abs(drawn.astype(int) - plain).sum(-1) > 30)[::factor, ::factor]
    mask = answer.masks[0]
    assert changed[mask].mean() > 0.9, "the mask of the right thing is not on the page"
    assert changed[~mask].mean() < 0.2
    assert answer.labels[0] in page.locator("#layers").inner_text()
    before = source(page)
    page.locator("#layers input[type=checkbox]").first.uncheck()
    page.wait_for_function(
        "source => document.querySelector('#result img').src !== source", arg=before, timeout=60_000
    )
    assert np.abs(seen(page).astype(int) - plain).max() <= 8
    before = source(page)
    page.locator("#layers input[type=checkbox]").first.check()
    page.wait_for_function(
        "source => document.querySelector('#result img').src !== source", arg=before, timeout=60_000
    )
    before = source(page)
    page.locator("#result img").first.click(position={"x": 20, "y": 20})
    page.wait_for_function(
        "source => document.querySelector('#result img').src !== source", arg=before, timeout=60_000
    )
    assert "a click at" in page.locator("#chat").inner_text()
    asked(page, "the biggest thing", source(page))
    assert page.locator("#chat").inner_text().count("SEG") >= 1
    shot(page, "again")
    page.close()


def test_downloads(browser, address, scene):
    file, sample, _ = scene
    page = browser.new_page()
    upload(page, address, file)
    asked(page, sample.query.text, source(page))
    for button, start in (("#png", b"\x89PNG"), ("#coco", b'{"images"')):
        with page.expect_download(timeout=60_000) as got:
            page.locator(button).click()
        assert Path(got.value.path()).read_bytes().startswith(start)
    page.close()


def test_on_a_phone(browser, address, scene):
    file, sample, _ = scene
    page = browser.new_page(viewport={"width": 390, "height": 844})
    upload(page, address, file)
    asked(page, sample.query.text, source(page))
    shot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400, (
        "the page is wider than the phone"
    )
    page.close()


def test_brushed():
    picture = np.zeros((8, 9, 4), np.uint8)
    layer = np.zeros((8, 9, 4), np.uint8)
    layer[2:5, 3:6] = 255
    reference = brushed({"background": picture, "layers": [layer]}, " cup ")
    assert (
        reference.label == "cup"
        and reference.mask.sum() == 9
        and reference.image.shape == (8, 9, 3)
    )
    for drawing, words in (
        (None, "give a picture"),
        ({"background": picture, "layers": []}, "nothing is brushed"),
    ):
        with pytest.raises(InputError, match=words):
            brushed(drawing, "")

"""A real browser teaches, forgets and undoes on the page.

``PROTOCL_PICTURES=FOLDER`` keeps a picture of each step, as the documentation shows them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protocl import PrototypeClassifier
from protocl.backbones import BackboneConfig
from protocl.serve.server import Settings
from tests.model.changes.test_ledger import made
from tests.serve.process import Server, served
from tests.serve.shapes import draw, folder_of

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="takes chromium and chromium-driver"),
]
DESKTOP, PHONE = (1000, 760), (390, 844)
HOSTILE = "<img src=x onerror=document.title='broken'> & "
PATIENCE = 120


class Page:
    """The page in a browser, by its words."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def look(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """Show it in a window of that size."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.driver.find_elements("css selector", selector)]

    def wait(self, what: Callable[[], Any]) -> None:
        """Until something is so, and the page has stopped working."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(Exception):  # what is looked at is being replaced
                if what() and not self.driver.find_elements("css selector", "[aria-busy]"):
                    return
            time.sleep(0.1)
        raise AssertionError(f"{self.find('body').text}\n{self.driver.get_log('browser')}")

    def press(self, *keys: str) -> None:
        """Type on whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def keep(self, name: str) -> None:
        """Keep a picture of it, if they are asked for, in few colours."""
        root = os.environ.get("PROTOCL_PICTURES")
        if root is None:
            return
        time.sleep(0.5)  # until bars have grown
        file = Path(root) / f"{name}.png"
        self.driver.save_screenshot(str(file))
        Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
            file, optimize=True
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                     "--hide-scrollbars"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(driver: Any, server: Server, size: tuple[int, int] = DESKTOP) -> Page:
    page = Page(driver)
    page.look(size)
    driver.get("about:blank")
    driver.get(server.link)
    page.wait(lambda: page.find("#summary").text)
    return page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("pictures"), ("cross", "house", "ring", "tree"), 8)


@pytest.fixture
def shapes(pictures: Path, tmp_path: Path) -> Path:
    files = sorted(map(str, pictures.rglob("*.png")))
    backbone = BackboneConfig(name="efficientnet_lite0", image_size=96)
    model = PrototypeClassifier("ridge", backbone=backbone, exact=True)
    model.fit(files, [Path(file).parent.name for file in files]).save(tmp_path / "shapes")
    return tmp_path / "shapes"


@pytest.fixture
def stars(tmp_path: Path) -> list[str]:
    (tmp_path / "new").mkdir()
    files = [tmp_path / "new" / f"star {n}.png" for n in range(4)]
    for n, file in enumerate(files):
        draw("star", 100 + n).save(file)
    return [str(file) for file in files]


def best(page: Page) -> list[str]:
    return page.texts(".guess.first .label")


def test_teach_see_forget_and_undo(browser: Any, shapes: Path, stars: list[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    before = (shapes / "memory.safetensors").read_bytes()
    with served(shapes, Settings(port=0, thumbnails=True)) as server:
        page = opened(browser, server)
        assert "token" not in browser.current_url
        assert page.find("#summary").text == "4 classes, 32 samples"
        page.keep("1-open")

        page.find("#files").send_keys("\n".join(stars[:2]))
        page.wait(lambda: len(best(page)) == 2)
        assert "star" not in best(page)
        assert all(text.startswith("unknown") for text in page.texts(".mark"))
        assert len(page.texts(".mark")) == 2
        page.keep("2-unknown")

        page.find("#name").send_keys("star\n")
        page.wait(lambda: best(page) == ["star", "star"])
        assert page.find("#message").text == "Taught star."
        assert len(page.texts(".before")) == 2
        assert page.driver.find_elements("css selector", ".neighbour img")
        page.keep("3-taught")

        page.find("[aria-label='Forget star']").click()
        page.wait(lambda: page.find("dialog").is_displayed())
        page.keep("4-forget")
        page.find("dialog button[value=later]").click()
        page.wait(lambda: page.find("#summary").text == "4 classes, 32 samples")
        assert "star" not in best(page)

        page.find("[aria-label='Undo: forgot star']").click()
        page.wait(lambda: best(page) == ["star", "star"])
        page.keep("5-undone")
        page.look(PHONE, dark=True)
        page.keep("6-phone-dark")
        browser.execute_script("scrollTo(0, 650)")
        page.keep("7-phone-dark-below")
        assert not wider(page)

        page.look(DESKTOP, dark=True)
        page.find("[aria-label='Forget star']").click()
        page.find("dialog button[value=now]").click()
        page.wait(lambda: page.find("#message").text == "Forgot star for good.")
        assert not page.find("#changes-section").is_displayed()
        browser.execute_script("scrollTo(0, 0)")
        page.keep("8-desktop-dark")
        assert browser.get_log("browser") == []
    assert (shapes / "memory.safetensors").read_bytes() == before
    assert sorted(file.name for file in shapes.iterdir()) == ["memory.safetensors", "model.json"]


def test_by_keyboard_with_hostile_names(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    PrototypeClassifier("lda").fit([[0.0, 0], [0, 1], [5, 5], [5, 6]], ["a", "a", "b", "b"]).save(
        tmp_path / "m"
    )
    names = [HOSTILE, "x" * 1000, "日本/é"]
    with served(tmp_path / "m", Settings(port=0)) as server:
        page = opened(browser, server, PHONE)
        page.find("#vectors").send_keys("9 0\n9, 1", Keys.TAB, Keys.NULL)
        page.press(Keys.ENTER)
        page.wait(lambda: len(best(page)) == 2)
        for n, name in enumerate(names, start=3):
            field = page.find("#name")
            browser.execute_script("arguments[0].value = arguments[1]", field, name)
            field.send_keys(Keys.ENTER)
            page.wait(lambda n=n: page.find("#summary").text.startswith(f"{n} classes"))
        assert set(page.texts("#classes .label")) == {"a", "b", *(n.strip() for n in names)}
        assert browser.title != "broken"
        assert not page.driver.find_elements("css selector", "#classes img, .answer .label img")
        assert not wider(page)
        page.keep("9-phone-names")

        page.find("[aria-label='Forget b']").send_keys(Keys.ENTER)
        page.wait(lambda: page.find("dialog").is_displayed())
        page.press(Keys.ESCAPE)
        page.wait(lambda: not page.find("dialog").is_displayed())
        page.find("[aria-label='Forget b']").send_keys(Keys.ENTER)
        page.press(Keys.ENTER)
        page.wait(lambda: page.find("#message").text == "Forgot b.")
        page.find("[aria-label='Undo: forgot b']").send_keys(Keys.ENTER)
        page.wait(lambda: "b" in page.texts("#classes .label"))
        page.find("#vectors").clear()
        page.find("#vectors").send_keys("1 2 3")
        page.find("#vectors-form button").click()
        page.wait(lambda: "features" in page.find("#message.error").text)


def test_without_the_token_it_only_answers(browser: Any, tmp_path: Path) -> None:
    with served(made(tmp_path / "m"), Settings(port=0)) as server:
        address = server.link.partition("#")[0]
        page = opened(browser, server._replace(link=address))
        assert page.find("#no-token").is_displayed()
        assert "Forget" not in page.find("#classes").text
        page.find("#vectors").send_keys("1 1 1 1 1 1")
        page.find("#vectors-form button").click()
        page.wait(lambda: len(best(page)) == 1)
        assert not page.find("#teach").is_displayed()


def wider(page: Page) -> bool:
    """Whether the page is wider than its window."""
    return bool(
        page.driver.execute_script(
            "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
    )


def test_an_answer_says_why(browser: Any, tmp_path: Path) -> None:
    x = [[0.0, 0], [0, 1], [1, 0], [5, 5], [5, 6], [6, 5]]
    PrototypeClassifier("lda").fit(x, [HOSTILE] * 3 + ["ring"] * 3).save(tmp_path / "m")
    with served(tmp_path / "m", Settings(port=0)) as server:
        page = opened(browser, server, PHONE)
        page.find("#vectors").send_keys("4 4\n0 0")
        page.find("#vectors-form button").click()
        page.wait(lambda: len(best(page)) == 2)
        for _ in range(2):  # asked again it is said once
            page.driver.find_elements("css selector", "[aria-label^='Why ']")[1].click()
            page.wait(lambda: page.driver.find_elements("css selector", ".why li"))
        lines = page.texts(".why li")
        assert lines[0].startswith(f"{HOSTILE}: ")
        assert "% of the decision, prototype of 3 samples" in lines[0]
        assert any("for want of samples" in line for line in lines)
        assert len(page.driver.find_elements("css selector", ".why")) == 1
        assert browser.title != "broken"
        assert not wider(page)
        page.keep("10-phone-why")


def test_what_a_score_says_is_unknown_and_when_that_is_old(browser: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(120, 6)) + 9 * np.eye(6)[np.arange(120) % 4]
    y = np.array(["a", "b", "c", "d"] * 30)
    model = PrototypeClassifier("lda", unknown_score="evidence", exact=True)
    model.fit(x[:60], y[:60]).calibrate_unknown(x[60:], y[60:]).save(tmp_path / "m")
    with served(tmp_path / "m", Settings(port=0)) as server:
        page = opened(browser, server)
        page.find("#vectors").send_keys("30 30 -30 -30 0 0")
        page.find("#vectors-form button").click()
        page.wait(lambda: page.texts(".mark") == ["unknown by evidence"])
        assert page.find("#unknown-note").text == ""
        page.find(".answer button").click()
        page.wait(lambda: page.texts(".why li"))
        assert page.texts(".why li")[-1] == (
            "unknown by evidence: 100 % of known samples score higher"
        )
        page.find("#name").send_keys("e")
        page.find("#teach-button").click()
        page.wait(lambda: page.find("#unknown-note").text)
        assert (
            "calibrated before 1 sample (1 new class) was added" in page.find("#unknown-note").text
        )
        page.keep("9-calibrated")

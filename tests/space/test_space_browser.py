"""The page in a real browser: upload, wait, play, download; and what it looks like on a desk and in a hand."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

import combo_hf


BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_upload_play_download(serve, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    address = serve()
    wait = WebDriverWait(browser, 180)

    def find(selector):
        return wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, selector))

    browser.get(address)
    find("#video input[type=file]").send_keys(str(combo_hf.ASSETS / "demo_clip.mp4"))
    find("#video video")
    find("#run").click()
    video = find("#result video")
    wait.until(lambda driver: driver.execute_script("return arguments[0].readyState", video) >= 2)
    browser.execute_script("arguments[0].muted = true; arguments[0].play()", video)
    wait.until(lambda driver: driver.execute_script("return arguments[0].currentTime", video) > 0.5)
    assert browser.execute_script("return arguments[0].duration", video) == pytest.approx(10, abs=0.2)
    assert "emergency-car" in find("#summary").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#gallery .grid-container img")) == 40

    link = next(
        item for item in browser.find_elements(By.CSS_SELECTOR, "#files a") if ".zip" in item.get_attribute("href")
    )
    browser.execute_script("arguments[0].click()", link)
    wait.until(lambda _: list((tmp_path / "downloads").glob("*.zip")))
    with zipfile.ZipFile(next((tmp_path / "downloads").glob("*.zip"))) as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 10

    folder = Path(os.environ.get("COMBO_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for width in (1280, 390):
        screen = {"width": width, "height": 2000, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        wait.until(lambda driver, w=width: driver.execute_script("return window.innerWidth") == w)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        browser.save_screenshot(str(folder / f"space_{width}.png"))

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {entry["params"]["request"]["url"] for entry in messages if entry["method"] == "Network.requestWillBeSent"}
    assert asked and all(url.startswith((address, "data:", "blob:", "chrome:")) for url in asked), asked
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []

"""The page in a real browser: upload, wait, play, download; and what it looks like on a desk and in a hand."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from fixtures_media import noise

import combo_hf
from combo_hf.results.video import write_video


BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage "
    "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
)


# Two seconds of the browser's own test camera and microphone, put into the page as a recording is.
RECORD = """
const done = arguments[0];
navigator.mediaDevices.getUserMedia({video: true, audio: true}).then(stream => {
  const recorder = new MediaRecorder(stream, {mimeType: "video/webm"}), parts = [];
  recorder.ondataavailable = event => parts.push(event.data);
  recorder.onstop = async () => {
    const film = new File(parts, "recording.webm", {type: "video/webm"}), files = new DataTransfer();
    files.items.add(film);
    const input = document.querySelector("#video input[type=file]");
    input.files = files.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
    done(Array.from(new Uint8Array(await film.arrayBuffer())));
  };
  recorder.start(200);
  setTimeout(() => recorder.stop(), 2000);
}).catch(error => done(String(error)));
"""


def result_of(wait, name):
    """The video of a result, when it can be played; the page may show the example's before."""
    selector = f'#result video[src*="{name}_overlay"]'
    video = wait.until(lambda driver: driver.find_element("css selector", selector))
    wait.until(lambda driver: driver.execute_script("return arguments[0].readyState", video) >= 2)
    return video


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
    film = tmp_path / "three-animals.mp4"
    shutil.copy(combo_hf.ASSETS / "demo_real.mp4", film)
    find("#video input[type=file]").send_keys(str(film))
    find("#video video")
    find("#run").click()
    video = result_of(wait, "three-animals")
    browser.execute_script("arguments[0].muted = true; arguments[0].play()", video)
    wait.until(lambda driver: driver.execute_script("return arguments[0].currentTime", video) > 0.5)
    assert browser.execute_script("return arguments[0].duration", video) == pytest.approx(10, abs=0.2)
    assert "dog" in find("#summary").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#gallery .grid-container img")) == 10 * 3  # no Maskiges

    assert len(browser.find_elements(By.CSS_SELECTOR, "#files a")) == 3
    removers = browser.find_elements(By.CSS_SELECTOR, '#files button[aria-label*="emove"]')
    assert not any(button.is_displayed() for button in removers)
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
        columns = "return getComputedStyle(document.querySelector('#gallery .grid-container')).gridTemplateColumns"
        assert len(browser.execute_script(columns).split()) == 3  # a line for each time
        browser.save_screenshot(str(folder / f"space_{width}.png"))

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {entry["params"]["request"]["url"] for entry in messages if entry["method"] == "Network.requestWillBeSent"}
    assert asked and all(url.startswith((address, "data:", "blob:", "chrome:")) for url in asked), asked
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_recording_of_the_browser(serve, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 180)
    browser.get(serve())
    wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, "#video input[type=file]"))
    browser.set_script_timeout(60)
    recording = browser.execute_async_script(RECORD)
    assert isinstance(recording, list), recording
    (tmp_path / "recording.webm").write_bytes(bytes(recording))
    with av.open(str(tmp_path / "recording.webm")) as film:
        assert film.duration is None and film.streams.audio
        width = film.streams.video[0].width
    wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, "#video video"))
    browser.find_element(By.CSS_SELECTOR, "#run").click()
    video = result_of(wait, "recording")
    assert browser.execute_script("return arguments[0].videoWidth", video) == width
    assert browser.execute_script("return arguments[0].duration", video) == pytest.approx(2, abs=1)


def test_stop_is_no_error(serve, browser, tmp_path):
    """And nothing of an earlier video is left beside its word."""
    from selenium.webdriver.support.ui import WebDriverWait

    film = write_video(tmp_path / "long.mp4", [np.full((48, 64, 3), 90, np.uint8)] * 4 * 59, 4, noise(59))
    wait = WebDriverWait(browser, 180)
    browser.get(serve())
    wait.until(lambda driver: driver.find_element("css selector", "#video input[type=file]")).send_keys(str(film))
    wait.until(lambda driver: driver.find_element("css selector", "#video video"))
    browser.find_element("css selector", "#run").click()
    wait.until(lambda driver: "Segmenting window" in driver.find_element("css selector", "#result").text)
    browser.find_element("css selector", "#stop").click()
    wait.until(lambda driver: driver.find_element("css selector", "#summary").text == "Stopped. Nothing was kept.")
    assert "Error" not in browser.find_element("css selector", "#result").text
    assert not browser.find_elements("css selector", "#result video, #files a, #gallery img")

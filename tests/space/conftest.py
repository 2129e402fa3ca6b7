"""The web page: its module, and `python space/app.py` as a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


APP = Path(__file__).resolve().parents[2] / "space" / "app.py"


@pytest.fixture(scope="session")
def app() -> ModuleType:
    """The module of the page, not running."""
    pytest.importorskip("gradio", reason="needs the extra 'space' (gradio)")
    spec = importlib.util.spec_from_file_location("combo_space_app", APP)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    before = dict(os.environ)
    sys.path.insert(0, str(APP.parent))  # as of a program that is run
    spec.loader.exec_module(module)
    sys.path.remove(str(APP.parent))
    for name in set(os.environ) - set(before):  # its settings are for a process of its own, not for other tests
        if name.startswith("COMBO_"):
            del os.environ[name]
    return module


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """`serve(COMBO_MODEL=...)` -> address of `python space/app.py`; the same settings share one page."""
    pytest.importorskip("gradio", reason="needs the extra 'space' (gradio)")
    pages: dict[tuple, tuple[subprocess.Popen, str]] = {}

    def start(**settings: str) -> str:
        key = tuple(sorted(settings.items()))
        if key not in pages:
            folder = tmp_path_factory.mktemp("page")
            places = {
                "TMPDIR": folder,
                "GRADIO_TEMP_DIR": folder / "files",
                "GRADIO_EXAMPLES_CACHE": folder / "examples",
            }
            environment = {**os.environ, **{name: str(path) for name, path in places.items()}, **settings}
            environment |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
            log = folder / "log.txt"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, str(APP)], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            pages[key] = process, _address(process, log)
            start.folders[pages[key][1]] = folder
        return pages[key][1]

    start.folders = {}  # address -> the folder that everything of a page is in

    yield start
    for process, _ in pages.values():
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", log.read_text())
        if found:
            return found.group()
        time.sleep(0.1)
    pytest.fail(f"the page did not start:\n{log.read_text()}")

"""What several tests share: the read-only material beside the repository, which a checkout elsewhere does not have."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures_media import noise, numbered
from fixtures_models import tiny_folder, tiny_pipe  # noqa: F401
from hypothesis import settings

from combo_hf.results.video import write_video


# The same examples on every run, so that a run that fails can be repeated.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
# How warnings begin that other packages cause in others: huggingface_hub in httpx, gradio in pandas.
NOT_OURS = ("Use 'content=", "'future.no_silent_downcasting' is deprecated")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with samples and goldens."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder 'shared' beside the repository (samples and goldens), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def avs_sample(shared: Path) -> Path:
    """A few free clips in the layout of AVSBench, films, and awkward files."""
    folder = shared / "data" / "avs-sample"
    if not folder.is_dir():
        pytest.skip("needs shared/data/avs-sample, which is not here")
    return folder


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s, 25 numbered pictures a second of 64 x 48, with sound; not to be changed."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", numbered(75), 25, noise(3))


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each worker: two of them share the cores. Warnings are errors in processes of tests, too."""
    os.environ.setdefault("PYTHONWARNINGS", ",".join(["error", *(f"ignore:{text}" for text in NOT_OURS)]))
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def give_memory_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a slow test, which may have held gigabytes: the other worker may need them."""
    yield
    if request.node.get_closest_marker("slow"):
        gc.collect()
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # not every libc has it
                ctypes.CDLL(None).malloc_trim(0)

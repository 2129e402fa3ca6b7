"""Workers that are started anew and get everything pickled, as on macOS and Windows.

PyTorch's loader with such workers: `test_batches_do_not_depend_on_workers_...` in unit/test_loading.py.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from combo_hf import AudioVisualSegmentationPipeline


@pytest.fixture
def spawn() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_a_worker_prepares_the_windows(tiny_pipe: AudioVisualSegmentationPipeline, spawn: None) -> None:
    chance = np.random.default_rng(0)
    frames = list(chance.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8))
    source = {"frames": frames, "audio": chance.normal(0, 0.1, 32000), "sampling_rate": 16000}
    (result,) = tiny_pipe([source], num_workers=1, return_maps=True, progress=lambda done, total: None)
    alone = tiny_pipe(source, return_maps=True)
    for frame, wanted in zip(result["frames"], alone["frames"], strict=True):
        np.testing.assert_array_equal(frame["scores"], wanted["scores"])
    with pytest.raises(ValueError, match="a generator cannot be handed to a worker"):
        list(tiny_pipe((source for _ in range(1)), num_workers=1))

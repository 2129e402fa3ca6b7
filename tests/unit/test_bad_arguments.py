"""Every public function against arguments of the wrong rank, type, range and length, nothing, NaN and odd sizes.

What a file can do wrong is in other tests; here the caller of the Python functions is the unlucky one. The message is
looked at only in that it must be one; the tables of the single files check the words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import combo_hf
from combo_hf.data.collate import ClipExample, ComboCollator
from combo_hf.maskige_combo import paint_maskige
from combo_hf.media_combo import iter_clips, load_audio, probe_media, read_clip
from combo_hf.metrics import SemanticScores, VideoScores, f_measure, jaccard
from combo_hf.results.folder import predict_to_folder
from combo_hf.results.pictures import heat_map, overlay
from combo_hf.results.video import write_overlay_video, write_video


NAN, INF = float("nan"), float("inf")
RATE = 16000
FRAME = np.zeros((24, 32, 3), np.uint8)
SOUND = np.zeros(RATE, np.float32)
CLIP = {"frames": [FRAME, FRAME], "audio": SOUND, "sampling_rate": RATE}
OBJECTS = [None, 3, 2.5, "x", b"x", {}, object(), NAN, {"a": 1}, [[[]]], [None], np.array(None), np.array(["x"])]
ARRAYS = [np.zeros(0), np.zeros((0, 0)), np.zeros((2, 0, 3)), np.zeros((1, 1, 1, 1, 1, 1)), np.full((2, 3, 4), NAN),
          np.full((2, 3, 4), -INF), np.zeros((2, 3, 4), complex), np.full((2, 3, 4), "x"),
          np.zeros((2, 3, 4), "datetime64[s]"), torch.zeros(0), torch.full((2, 3, 4), NAN),
          torch.zeros(2, 3, 4, dtype=torch.complex64)]  # fmt: skip
STRANGE = [*OBJECTS, *ARRAYS]


def refused(call: Any, *arguments: Any, **options: Any) -> None:
    """The call raises one of the two errors that are stated everywhere, with words."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call(*arguments, **options)
    assert len(str(caught.value)) > 5


@pytest.fixture(scope="module")
def processor() -> Any:
    return combo_hf.ComboProcessor(combo_hf.ComboImageProcessor(size={"height": 64, "width": 64}))


@pytest.fixture(scope="module")
def model(tiny_folder: str) -> Any:
    return combo_hf.ComboForAudioVisualSegmentation.from_pretrained(tiny_folder).eval()


def named(value: Any) -> str:
    shape = f" {tuple(value.shape)} {value.dtype}" if hasattr(value, "shape") else f" {str(value)[:12]}"
    return type(value).__name__ + (shape if type(value) is not object else "")


@pytest.mark.parametrize("value", STRANGE, ids=named)
def test_processor(processor: Any, value: Any) -> None:
    refused(processor, value, SOUND, RATE)
    refused(processor, [[FRAME, value]], [SOUND], RATE)
    refused(processor, CLIP["frames"], value, RATE)
    for name in ("maskiges", "masks", "segmentation_maps"):
        if value is not None:
            refused(processor, **CLIP, **{name: value})
        if name != "segmentation_maps" or value is not None:  # None marks a frame without annotation
            refused(processor, **CLIP, **{name: [value, value]})


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, NAN, INF, "x", [1.5], {}, True, 10**30])
def test_numbers_of_the_processor(processor: Any, value: Any) -> None:
    refused(processor, CLIP["frames"], SOUND, value)
    refused(processor, **CLIP, frames_per_second=value if value is not None else 0)
    refused(combo_hf.ComboFeatureExtractor(), SOUND, value)
    if value is not None:
        refused(combo_hf.ComboFeatureExtractor(), SOUND, RATE, num_frames=value)


@pytest.mark.parametrize("value", STRANGE, ids=named)
def test_maskiges_and_sounds(value: Any) -> None:
    refused(paint_maskige, value)
    refused(paint_maskige, np.zeros((1, 2, 2), bool), value)
    refused(combo_hf.ComboFeatureExtractor(), value, RATE)


@pytest.mark.parametrize("size", [(0, 5), (5,), (5, 5, 5), (-1, 5), (2.5, 5), (NAN, 5), (10**6, 10**6), ("5", "5")])
def test_sizes_of_maskiges(size: Any) -> None:
    refused(paint_maskige, np.zeros((1, 2, 2), bool), size)


@pytest.mark.parametrize("value", STRANGE, ids=named)
def test_model(model: Any, value: Any) -> None:
    good = {
        "pixel_values": torch.zeros(2, 3, 64, 64), "maskige_values": torch.zeros(2, 3, 64, 64),
        "input_features": torch.zeros(2, 1, 96, 64), "num_frames": [2],
    }  # fmt: skip
    labels = {"mask_labels": [torch.zeros(1, 64, 64)] * 2, "class_labels": [torch.zeros(1, dtype=torch.long)] * 2}
    for name in good:
        if name != "num_frames" or value is not None:  # None: one clip
            refused(model, **{**good, name: value})
    for name in labels:
        if value is not None or name == "class_labels":  # None: no loss
            refused(model, **good, **{**labels, name: value})
        refused(model, **good, **{**labels, name: [value, value]})
    if value is not None:
        refused(model, **good, **labels, label_frames=value)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("name", ["pixel_values", "maskige_values", "input_features"])
def test_model_wants_floats(model: Any, name: str, kind: torch.dtype) -> None:
    good = {"pixel_values": torch.zeros(1, 3, 64, 64), "maskige_values": torch.zeros(1, 3, 64, 64),
            "input_features": torch.zeros(1, 1, 96, 64)}  # fmt: skip
    refused(model, **{**good, name: good[name].to(kind)})


@pytest.mark.parametrize("value", [*STRANGE, torch.full((1, 4, 3), NAN), torch.full((1, 4, 3), INF)], ids=named)
def test_outputs_of_a_model(processor: Any, value: Any) -> None:
    good = {"class_queries_logits": torch.zeros(1, 4, 3), "masks_queries_logits": torch.zeros(1, 4, 8, 8)}
    post_process = processor.post_process_semantic_segmentation
    for name in good:
        refused(post_process, {**good, name: value}, [1])
    refused(post_process, good, value)
    if value is not None:
        if type(value) is not list or value != [None]:  # None: the network's own size
            refused(post_process, good, [1], target_sizes=value)
        refused(post_process, good, [1], target_sizes=[value])


@pytest.mark.parametrize("value", STRANGE, ids=named)
def test_scores(value: Any) -> None:
    good = np.zeros((1, 2, 2), np.float32)
    for score in (jaccard, f_measure):
        refused(score, value, good)
        refused(score, good, value)
    labels = np.zeros((1, 2, 2), np.int64)
    for scores in (lambda *pair: SemanticScores(3).update(*pair), lambda *pair: VideoScores(3).update("a", *pair),
                   lambda *pair: VideoScores().update("a", *pair)):  # fmt: skip
        refused(scores, value, labels)
        refused(scores, labels, value)


@pytest.mark.parametrize("value", [None, 1, 0, -3, 2.5, NAN, "x", [3], 10**6])
def test_numbers_of_scores(value: Any) -> None:
    refused(SemanticScores, value)
    if value is not None:
        refused(VideoScores, value)


@pytest.mark.parametrize("value", STRANGE, ids=named)
def test_collator(value: Any) -> None:
    example = ClipExample("a", torch.zeros(1, 3, 4, 4, dtype=torch.uint8), None, torch.zeros(1, 1, 96, 64),
                          torch.zeros(1, 4, 4, dtype=torch.uint8), torch.tensor([True]))  # fmt: skip
    refused(ComboCollator(False), value)
    refused(ComboCollator(False), [example, value])
    for name in ("frames", "input_features", "masks", "label_frames"):
        refused(ComboCollator(False), [{**vars(example), name: value}])


@pytest.mark.parametrize("value", [*OBJECTS[:8], np.zeros(3), torch.zeros(3), [], [3], {"frames": 3}], ids=named)
def test_pipeline(tiny_pipe: Any, value: Any) -> None:
    refused(tiny_pipe, value)
    refused(tiny_pipe, {"frames": value})
    refused(tiny_pipe, {"frames": [FRAME, value]})
    if value is not None and np.shape(value) != (3,):  # three samples are a sound
        refused(tiny_pipe, {"frames": [FRAME], "audio": value, "sampling_rate": RATE})
        refused(tiny_pipe, {**CLIP, "masks": value})
        refused(tiny_pipe, {**CLIP, "maskiges": [value, value]})
        refused(tiny_pipe, {**CLIP, "sampling_rate": value if value != 3 else 0})


@pytest.mark.parametrize("value", [*OBJECTS, np.zeros(3), Image.new("RGB", (4, 4))], ids=named)
def test_films(tiny_pipe: Any, tmp_path: Any, value: Any) -> None:
    for read in (probe_media, read_clip, load_audio, lambda source: next(iter_clips(source))):
        refused(read, value)
    refused(predict_to_folder, tiny_pipe, value, tmp_path / "out")
    refused(write_overlay_video, value, tmp_path / "a.mp4", [], np.zeros((2, 3), np.uint8))
    if value is not None and np.shape(value) != (3,):  # three samples are a sound
        refused(write_video, tmp_path / "a.mp4", [FRAME], 25, value)
    if not isinstance(value, Image.Image):
        refused(write_video, tmp_path / "a.mp4", [value], 25)
    refused(write_video, tmp_path / "a.mp4", [FRAME], 0 if type(value) in (int, float) else value)
    assert [path for path in tmp_path.iterdir() if path.name != "out"] == []
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("value", STRANGE, ids=named)
def test_pictures_of_results(value: Any) -> None:
    maps, colors = np.zeros((24, 32), np.uint8), np.zeros((3, 3), np.uint8)
    refused(overlay, value, maps, colors)
    refused(overlay, Image.fromarray(FRAME), value, colors)
    refused(heat_map, None, value)

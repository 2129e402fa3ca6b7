"""config.json and processor_config.json with other values than ours: one kind of error, whatever was wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import combo_hf


CLIP = {"frames": [np.zeros((24, 32, 3), np.uint8)], "audio": np.zeros(16000, np.float32), "sampling_rate": 16000}
IMAGES, SOUND = "image_processor", "feature_extractor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "../../x"}, "config.json is damaged"),
        ({"id2label": [1]}, "config.json is damaged"),
        ({"backbone_config": {"model_type": "resnet", "layer_type": 1e308}}, "damaged"),
        ({"id2label": {"a": "b"}}, "invalid literal"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"backbone_config": 7}, "backbone_config: wanted a dict"),
        ({"audio_config": {"channels": 3}}, "."),
        ({"architectures": 3, "num_queries": None}, "num_queries is None"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000"),  # transformers would name them all
        ({"backbone_config": {"model_type": "resnet", "num_labels": 10**9}}, "num_labels is 1000000000"),
        (
            {"id2label": {0: "background", 2: "dog", 3: "cat"}},
            "id2label: wanted the numbers 0, 1, 2, ..., got .0, 2, 3",
        ),
        ({"id2label": {0: "background", 1: None}}, "class 1 is None"),
        ({"consistency_window": "x"}, "consistency_window is 'x'"),
        ({"image_size": 8192}, "a clip of 5 frames of 8192 x 8192 pixels has more than 10485760 pixels"),
        ({"num_frames": 1000}, "num_frames is 1000; wanted a whole number from 1 to 128"),
        ({"pixel_decoder_points": 10**4}, "pixel_decoder_points is 10000; wanted a whole number from 1 to 64"),
        (
            {"id2label": {index: f"{index}" for index in range(9999)}, "image_size": 256},
            "9999 classes and 20 queries: more than 536870912 numbers in its maps",
        ),
        ({"num_queries": 2000, "image_size": 1024}, "2 classes and 2000 queries: more than 536870912 numbers"),
        ({"id2label": {0: "background", 1: "\x1b]0;x\x07dog"}}, r"class 1 is '.x1b"),  # commands a terminal
        ({"id2label": {0: "background", 1: "dog\u202etac"}}, r"class 1 is 'dog.u202e"),  # turns what follows
        ({"id2label": {0: "background", 1: "dog\n## Headline"}}, "wanted 200 visible letters"),
        ({"id2label": {0: "background", 1: "dog" * 10**6}}, "wanted 200 visible letters"),  # would be painted
    ],
)
def test_config(tiny_folder: str, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads((Path(tiny_folder) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    for load in (combo_hf.ComboConfig.from_pretrained, combo_hf.ComboForAudioVisualSegmentation.from_pretrained):
        with pytest.raises((ValueError, TypeError), match=message):
            load(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (IMAGES, {"size": {"height": 10**12, "width": 64}}, "size: wanted"),
        (IMAGES, {"size": {"height": -1, "width": 64}}, "size: wanted"),
        (IMAGES, {"size": {"height": 64.5, "width": 64}}, "size: wanted"),
        (IMAGES, {"size": "x"}, "."),
        (IMAGES, {"image_mean": [0.5]}, "image_mean: wanted three"),
        (IMAGES, {"image_mean": [0, 0, {}]}, "image_mean: wanted three"),
        (IMAGES, {"image_std": [1, 1, 0]}, "image_std: wanted three finite numbers above 0"),
        (IMAGES, {"image_std": [1, 1, float("nan")]}, "image_std: wanted three"),
        (IMAGES, {"image_std": 7}, "image_std: wanted three"),
        (IMAGES, {"num_labels": "x"}, "num_labels: wanted 2 to 255"),
        (IMAGES, {"image_processor_type": 3}, "image_processor_type: wanted ComboImageProcessor, got 3"),
        (SOUND, {"sampling_rate": 44100}, "VGGish wants"),
        (SOUND, {"padding_value": "x"}, "padding_value: wanted"),
        (SOUND, {"padding_value": float("nan")}, "padding_value: wanted"),
        ("", {IMAGES: 3}, "processor_config.json is damaged"),
        ("", {SOUND: ["x"]}, "processor_config.json is damaged"),
        ("", {"num_frames": -1}, "num_frames: wanted"),
        ("", {"num_frames": True}, "num_frames: wanted"),
    ],
)
def test_processor(tiny_folder: str, tmp_path: Path, part: str, change: dict[str, Any], message: str) -> None:
    values = json.loads((Path(tiny_folder) / "processor_config.json").read_text())
    values = {**values, part: {**values[part], **change}} if part else {**values, **change}
    (tmp_path / "processor_config.json").write_text(json.dumps(values))
    (tmp_path / "config.json").write_text((Path(tiny_folder) / "config.json").read_text())
    with pytest.raises((ValueError, TypeError), match=message):
        combo_hf.ComboProcessor.from_pretrained(tmp_path)(**CLIP)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"7", b'"x"', b"null"])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_files_that_are_no_json_objects(tiny_folder: str, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "config.json").write_text((Path(tiny_folder) / "config.json").read_text())
    (tmp_path / name).write_bytes(content)
    load = combo_hf.ComboConfig if name == "config.json" else combo_hf.ComboProcessor
    with pytest.raises((ValueError, TypeError, OSError)):
        load.from_pretrained(tmp_path)


def test_the_folder_by_its_keyword(tiny_folder: str) -> None:
    for cls in (combo_hf.ComboConfig, combo_hf.ComboProcessor):
        assert type(cls.from_pretrained(pretrained_model_name_or_path=tiny_folder)) is cls

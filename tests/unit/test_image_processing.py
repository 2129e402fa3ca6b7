import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from combo_hf.image_processing_combo import ComboImageProcessor, SemanticMaps, to_label_map, to_rgb


SMALL = ComboImageProcessor(size={"height": 32, "width": 48})


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def predictions(frames=3, queries=6, classes=5, height=8, width=12, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "class_queries_logits": 3 * torch.randn(frames, queries, classes + 1, generator=generator),
        "masks_queries_logits": 3 * torch.randn(frames, queries, height, width, generator=generator),
    }


def reference_scores(outputs: dict[str, torch.Tensor], size: tuple[int, int] | None) -> torch.Tensor:
    """The official rule in one go: (F, K, H, W)."""
    masks = outputs["masks_queries_logits"]
    full = (4 * masks.shape[2], 4 * masks.shape[3])
    masks = torch.nn.functional.interpolate(masks, size=full, mode="bilinear", align_corners=False).sigmoid()
    classes = outputs["class_queries_logits"].softmax(-1)[..., :-1]
    scores = torch.einsum("fqk,fqhw->fkhw", classes, masks)
    if size is None:
        return scores
    return torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def test_values_and_their_inverse():
    frame, maskige = picture(48, 32), picture(48, 32, seed=1)
    batch = SMALL.preprocess([frame], [maskige])
    wanted = (frame[5, 7] - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    np.testing.assert_allclose(batch["pixel_values"][0, :, 5, 7].numpy(), wanted, atol=1e-5)
    np.testing.assert_array_equal(SMALL.denormalize(batch["pixel_values"])[0], frame)
    np.testing.assert_array_equal(SMALL.denormalize(batch["maskige_values"].numpy())[0], maskige)


def test_frames_are_blended_and_maskiges_are_not():
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::3] = (255, 0, 255)
    batch = SMALL.preprocess([stripes], [stripes])
    frame, maskige = (SMALL.denormalize(batch[key])[0] for key in ("pixel_values", "maskige_values"))
    wanted = np.asarray(Image.fromarray(stripes).resize((48, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(frame, wanted)
    assert set(np.unique(maskige)) == {0, 255} and len(np.unique(frame)) > 2


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda a: a.transpose(2, 0, 1),
        lambda a: (a / 255).astype(np.float32),
        lambda a: a.astype(np.int64),
        torch.from_numpy,
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: torch.from_numpy(a).permute(2, 0, 1).float() / 255,
    ],
    ids=["pil", "chw", "float", "int64", "tensor-hwc", "tensor-chw", "tensor-float"],
)
def test_kinds_of_images_agree(convert):
    array = picture()
    np.testing.assert_array_equal(np.asarray(to_rgb(convert(array))), array)


def test_an_array_with_three_rows_is_read_by_its_kind():
    array = picture(3, 3)
    np.testing.assert_array_equal(np.asarray(to_rgb(array)), array)
    np.testing.assert_array_equal(np.asarray(to_rgb(torch.from_numpy(array).permute(2, 0, 1))), array)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_pil_modes(mode):
    grey = np.full((4, 6), 200, np.uint8)
    image = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "F": lambda: Image.fromarray((grey / 255).astype(np.float32)),
        "LA": lambda: Image.merge("LA", [Image.fromarray(grey), Image.new("L", (6, 4), 9)]),
    }.get(mode, lambda: Image.fromarray(grey).convert(mode))()
    assert image.mode == mode
    values = np.asarray(to_rgb(image))
    assert values.shape == (4, 6, 3)
    assert abs(values.astype(int) - 200).max() <= 1 or (mode == "1" and set(np.unique(values)) <= {0, 255})


def test_palette_with_transparent_entries_is_silent():
    image = Image.fromarray(picture()).quantize(8)
    image.info["transparency"] = bytes([0, 128, 255, 255, 255, 255, 255, 255])
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGBA"))[..., :3])


def test_exif_orientation_is_applied():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    Image.fromarray(picture(40, 30)).save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.open(buffer))), np.rot90(picture(40, 30), -1))


def test_a_broken_file_is_named():
    buffer = io.BytesIO()
    Image.fromarray(picture(200, 200)).save(buffer, "PNG")
    with pytest.raises(ValueError, match=r"images\[1\].*cannot be decoded"):
        SMALL.preprocess([picture(), Image.open(io.BytesIO(buffer.getvalue()[:30000]))])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((8, 8), np.uint8), ValueError, r"\(H, W, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"\(H, W, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), ValueError, r"\(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "no pixels"),
        (np.full((8, 8, 3), 200.0), ValueError, "0..1"),
        (np.full((8, 8, 3), np.nan), ValueError, "0..1"),
        (np.full((8, 8, 3), 300), ValueError, "0..255"),
        (np.full((8, 8, 3), True), ValueError, "bool"),
        (Image.fromarray(np.full((8, 8), 7.0, np.float32)), ValueError, "0..1"),
        ("frame.png", TypeError, "got str"),
    ],
)
def test_bad_images_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        SMALL.preprocess([image])


def test_targets_of_annotated_frames():
    labels = np.zeros((32, 48), np.int64)
    labels[:8], labels[20:] = 17, 255
    batch = SMALL.preprocess([picture()] * 3, segmentation_maps=[None, labels, np.full((32, 48), 255, np.uint8)])
    assert batch["label_frames"].tolist() == [False, True, True]
    assert [entry.tolist() for entry in batch["class_labels"]] == [[0, 17], []]
    masks = batch["mask_labels"][0]
    assert masks.dtype == torch.float32 and masks.shape == (2, 32, 48)
    assert masks[1, :8].min() == 1 and masks[0, 8:20].min() == 1 and masks[:, 20:].max() == 0  # 255: no mask's
    assert batch["mask_labels"][1].shape == (0, 32, 48)


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: Image.fromarray(a),
        lambda a: Image.fromarray(np.stack([a] * 3, axis=2)),
        lambda a: torch.from_numpy(a).long(),
        lambda a: a.astype(np.uint16),
    ],
    ids=["L", "rgb", "tensor", "uint16"],
)
def test_kinds_of_label_maps_agree(convert):
    labels = np.array([[0, 1], [70, 255]], np.uint8)
    np.testing.assert_array_equal(to_label_map(convert(labels), 71), labels)


def test_palette_labels_are_indices_and_bits_are_classes():
    image = Image.fromarray(np.array([[0, 17]], np.uint8))
    image.putpalette([200, 100, 50] * 256)
    assert image.mode == "P" and to_label_map(image).tolist() == [[0, 17]]
    assert to_label_map(Image.fromarray(np.array([[False, True]]))).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((8, 8, 3), np.int64), "colours are not ids"),
        (Image.fromarray(picture()), "colours are not ids"),
        (np.full((8, 8), -1), "0..254"),
        (np.full((8, 8), 256), "0..254"),
        (np.zeros((8, 8)), "float64"),
        (np.zeros((0, 8), np.uint8), "shape"),
        (np.full((8, 8), 71, np.uint8), r"\[71\] do not exist"),
    ],
)
def test_bad_label_maps_are_refused(labels, message):
    processor = ComboImageProcessor(num_labels=71)
    with pytest.raises(ValueError, match=message):
        processor.preprocess([picture()], segmentation_maps=[labels])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "No frames"),
        ({"images": [picture()], "maskiges": [picture()] * 2}, "maskiges.*1 frames, got 2"),
        ({"images": [picture()] * 2, "segmentation_maps": [None]}, "segmentation_maps.*2 frames, got 1"),
        ({"images": [picture()], "return_tensors": "tf"}, "'pt' or 'np'"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SMALL.preprocess(**arguments)


def test_numpy_output():
    batch = SMALL.preprocess([picture()], [picture()], [np.zeros((30, 40), np.uint8)], return_tensors="np")
    assert isinstance(batch["pixel_values"], np.ndarray) and isinstance(batch["mask_labels"][0], np.ndarray)


@pytest.mark.parametrize("size", [{"shortest_edge": 224}, {"longest_edge": 224}])
def test_sizes_without_height_and_width_are_refused(size):
    with pytest.raises(ValueError, match="height"):
        ComboImageProcessor(size=size)


@pytest.mark.parametrize(("size", "wanted"), [(64, (64, 64)), ((32, 96), (32, 96)), (None, (224, 224))])
def test_kinds_of_sizes(size, wanted):
    assert ComboImageProcessor(size=size).input_size == wanted


def test_round_trip(tmp_path):
    fields = {"size": {"height": 64, "width": 96}, "image_mean": (1.0, 2.0, 3.0), "image_std": (4.0, 5.0, 6.0)}
    processor = ComboImageProcessor(**fields, num_labels=7)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert set(saved) == {*fields, "num_labels", "image_processor_type"}
    again = ComboImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict() and again.input_size == (64, 96) and again.num_labels == 7
    assert torch.equal(
        again.preprocess([picture()])["pixel_values"], processor.preprocess([picture()])["pixel_values"]
    )


@pytest.mark.parametrize("size", [None, (45, 70), (90, 20), (32, 48)])
@pytest.mark.parametrize("classes", [2, 21])
def test_label_maps_follow_the_official_rule(size, classes):
    outputs = predictions(classes=classes)
    wanted = reference_scores(outputs, size)
    sizes = None if size is None else [size, size]
    maps = SMALL.post_process_semantic_segmentation(outputs, torch.tensor([2, 1]), sizes)
    got = SMALL.post_process_semantic_segmentation(outputs, [2, 1], sizes, return_scores=True)
    assert isinstance(got, SemanticMaps) and [len(clip) for clip in maps] == [2, 1]
    torch.testing.assert_close(torch.cat(got.scores), wanted, rtol=1e-5, atol=1e-5)
    for label_maps in (maps, got.label_maps):
        labels = torch.cat(label_maps)
        assert labels.dtype == torch.int64
        assert (labels == wanted.argmax(1)).float().mean() > 0.999  # ties within rounding


def test_without_object_class_none_is_chosen():
    outputs = predictions(frames=1, queries=1, classes=2)
    outputs["class_queries_logits"][:] = torch.tensor([0.0, 1.0, 50.0])  # nearly all for "no object", index 2
    assert SMALL.post_process_semantic_segmentation(outputs, [1])[0].unique().tolist() == [1]


def test_clips_may_have_different_target_sizes():
    maps = SMALL.post_process_semantic_segmentation(SimpleOutput(predictions()), [1, 2], [None, (20, 30)])
    assert [tuple(clip.shape) for clip in maps] == [(1, 32, 48), (2, 20, 30)]


def test_half_precision_outputs():
    outputs = {key: value.bfloat16() for key, value in predictions().items()}
    scores = SMALL.post_process_semantic_segmentation(outputs, [3], return_scores=True).scores[0]
    assert scores.dtype == torch.float32


class SimpleOutput(SimpleNamespace):
    """Has attributes and items, as a ModelOutput."""

    def __init__(self, values):
        super().__init__(**values)

    def __getitem__(self, key):
        return getattr(self, key)


@pytest.mark.parametrize(
    ("num_frames", "target_sizes", "message"),
    [
        ([2], None, "add up to 3"),
        ([3, 0], None, "add up to 3"),
        ([], None, "add up to 3"),
        ([2, 1], [(8, 8)], "each of 2 clips"),
        ([3], [(0, 8)], "in pixels"),
        ([3], [(8, 8, 3)], "in pixels"),
    ],
)
def test_bad_post_processing_is_refused(num_frames, target_sizes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.post_process_semantic_segmentation(predictions(), num_frames, target_sizes)


def test_outputs_of_other_shapes_are_refused():
    outputs = predictions()
    outputs["masks_queries_logits"] = outputs["masks_queries_logits"][:, :-1]
    with pytest.raises(ValueError, match="outputs"):
        SMALL.post_process_semantic_segmentation(outputs, [3])


def test_denormalize_wants_four_axes():
    with pytest.raises(ValueError, match=r"\(F, 3, H, W\)"):
        SMALL.denormalize(torch.zeros(3, 8, 8))

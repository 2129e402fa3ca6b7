"""Augmentation: one geometry for frames, masks and Maskiges; colours of frames only; sizes, orders and ranges of the
official recipe; nothing random but the generator."""

import colorsys
import dataclasses
import pickle
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from combo_hf.data.collate import ClipExample, example_generator
from combo_hf.data.rows import ClipPictures
from combo_hf.data.transforms import Colours, EvalTransform, TrainTransform, build_transform


SIDE = 64
OBJECT, GROUND, CODE, REST = (200, 40, 90), (20, 120, 160), (120, 5, 255), (204, 255, 4)
PADDING = (128, 128, 128)


def clip_of(
    width: int = SIDE,
    height: int = SIDE,
    box: tuple[int, int, int, int] = (10, 20, 40, 50),
    frames: int = 2,
    labelled: int = 1,
    maskige_size: tuple[int, int] | None = None,
) -> ClipPictures:
    """The same picture in every frame: a box (left, top, right, bottom) in frame, mask and Maskige."""
    left, top, right, bottom = box

    def picture(inside, outside, mode: str = "RGB") -> Image.Image:
        image = Image.new(mode, (width, height), outside)
        image.paste(inside, (left, top, right, bottom))
        return image

    maskige = picture(CODE, REST)
    if maskige_size is not None:
        maskige = maskige.resize(maskige_size, Image.Resampling.NEAREST)
    return ClipPictures(
        "clip",
        [picture(OBJECT, GROUND) for _ in range(frames)],
        [maskige for _ in range(frames)],
        [np.asarray(picture(1, 0, "L")) for _ in range(labelled)],
        torch.arange(frames) < labelled,
        torch.zeros(frames, 1, 96, 64),
    )


def shows(pictures: torch.Tensor, colour: tuple[int, int, int], tolerance: int = 0) -> torch.Tensor:
    """Which pixels of (T, 3, H, W) have a colour: (T, H, W)."""
    wanted = torch.tensor(colour).view(1, 3, 1, 1)
    return ((pictures.int() - wanted).abs() <= tolerance).all(1)


def grown(area: torch.Tensor, by: int) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(area.float()[None], 2 * by + 1, 1, by)[0] > 0


def same(one: ClipExample, other: ClipExample) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(ClipExample)]
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(8, 40), st.integers(8, 40))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(40, 150),
    height=st.integers(40, 150),
    box=boxes,
    seed=st.integers(0, 2**32 - 1),
    subset=st.sampled_from(["s4", "avss"]),
    smooth=st.booleans(),
)
def test_frames_masks_and_maskiges_stay_on_top_of_each_other(width, height, box, seed, subset, smooth):
    left, top, wide, high = box
    clip = clip_of(width, height, (left, top, min(width, left + wide), min(height, top + high)), labelled=2)
    transform = build_transform(subset, True, SIDE, jitter=False, official_maskige_resize=smooth)
    out = transform(clip, example_generator(seed, 0, 0))
    assert out.frames.shape == out.maskiges.shape == (2, 3, SIDE, SIDE) and out.masks.shape == (2, SIDE, SIDE)
    inside, padded = out.masks == 1, out.masks == 255
    assert set(out.masks.unique().tolist()) <= {0, 1, 255}
    assert (shows(out.frames, PADDING) == padded).all() and (shows(out.maskiges, PADDING) == padded).all()
    if not smooth:
        assert (shows(out.maskiges, CODE) == inside).all() and (shows(out.maskiges, REST) == (out.masks == 0)).all()
    # Bilinear pixels near an edge are mixed, also with what lies beyond the crop: up to 3.2 output pixels per pixel.
    margin = torch.ones_like(padded)
    margin[:, 4:-4, 4:-4] = grown(padded, 4)[:, 4:-4, 4:-4]
    for pictures, object_, ground in ((out.frames, OBJECT, GROUND), (out.maskiges, CODE, REST)):
        assert shows(pictures, object_, 1)[~grown(~inside, 4) & ~margin].all()
        assert shows(pictures, ground, 1)[~grown(inside, 4) & ~margin].all()
    assert torch.equal(out.frames[0], out.frames[1]) and torch.equal(out.masks[0], out.masks[1])


def test_scale_is_one_of_the_sixteen_official_sizes_and_crops_reach_every_edge():
    clip = clip_of(224, 224)
    official = {int(22.4 * tenths) for tenths in range(5, 21)}
    transform = TrainTransform(224)
    places = [transform._place((224, 224), example_generator(0, 0, row)) for row in range(600)]
    assert {place.size for place in places} == {(side, side) for side in official}
    assert 0.42 < np.mean([place.flip for place in places]) < 0.58
    largest = [place for place in places if place.size == (448, 448)]
    assert all(0 <= offset <= 224 for place in largest for offset in place.offset)
    assert max(offset for place in largest for offset in place.offset) > 190
    assert min(offset for place in largest for offset in place.offset) < 34
    small = [place for place in places if place.size[0] <= 224]
    assert small and all(place.offset == (0, 0) for place in small)
    half = next(row for row, place in enumerate(places) if place.size == (112, 112))
    masks = transform(clip, example_generator(0, 0, half)).masks
    assert (masks[:, :112, :112] != 255).all() and (masks == 255).sum() == 224**2 - 112**2  # right and bottom


def test_longest_side_is_limited_to_four_times_the_input():
    places = [TrainTransform(32)._place((20, 400), example_generator(0, 0, row)) for row in range(50)]
    assert max(max(place.size) for place in places) == 128
    assert all(min(place.size) >= 1 for place in places)
    out = TrainTransform(32)(clip_of(400, 20, (0, 0, 200, 20)), example_generator(0, 0, 1))
    assert out.frames.shape[-2:] == (32, 32)


@pytest.mark.parametrize("size", [(480, 360), (640, 360), (360, 480), (321, 187), (224, 224), (64, 500)])
def test_avss_trains_on_the_centre_of_frames_of_short_side_224(size: tuple[int, int]):
    width, height = size
    noise = np.random.default_rng(0)
    rough = Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    labels = np.repeat(np.repeat(noise.integers(0, 71, (-(-height // 5), -(-width // 7)), np.uint8), 5, 0), 7, 1)
    labels = np.ascontiguousarray(labels[:height, :width])
    clip = ClipPictures("clip", [rough], [rough], [labels], torch.tensor([True]), torch.zeros(1, 1, 96, 64))
    out = build_transform("avss", True, jitter=False, flip=0)(clip, example_generator(0, 0, 0))
    short = min(size)
    large = (int(width * 224 / short), 224) if width > height else (224, int(height * 224 / short))
    left, top = (round((side - 224) / 2) for side in large)
    crop = (left, top, left + 224, top + 224)
    frame = np.asarray(rough.resize(large, Image.Resampling.BILINEAR).crop(crop))
    assert np.abs(out.frames[0].permute(1, 2, 0).numpy().astype(int) - frame).max() <= 2
    nearest = np.asarray(Image.fromarray(labels).resize(large, Image.Resampling.NEAREST).crop(crop))
    assert np.array_equal(out.masks[0].numpy(), nearest)


def test_colours_are_one_draw_per_clip_and_maskiges_keep_theirs():
    clip = clip_of(frames=3)
    codes = {CODE, REST, PADDING}
    changed = 0
    for row in range(12):
        plain = build_transform("s4", True, SIDE, jitter=False)(clip, example_generator(1, 0, row))
        ours = build_transform("s4", True, SIDE)(clip, example_generator(1, 0, row))
        assert same(dataclasses.replace(ours, frames=plain.frames), plain)
        assert torch.equal(ours.frames[0], ours.frames[1]) and torch.equal(ours.frames[0], ours.frames[2])
        assert {tuple(colour) for colour in ours.maskiges.permute(0, 2, 3, 1).reshape(-1, 3).tolist()} <= codes
        changed += not torch.equal(ours.frames, plain.frames)
    assert changed >= 9  # 1 in 16 draws changes nothing


def test_official_switches_redraw_colours_for_every_picture_and_blend_maskiges():
    clip = clip_of(frames=3)

    def draws(**options: bool) -> list[ClipExample]:
        transform = build_transform("ms3", True, SIDE, **options)
        return [transform(clip, example_generator(1, 0, row)) for row in range(12)]

    def colours(example: ClipExample) -> set[tuple[int, ...]]:
        return {tuple(colour) for colour in example.maskiges.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}

    redrawn, blended = draws(official_jitter=True), draws(official_maskige_resize=True)
    assert sum(not torch.equal(one.frames[0], one.frames[1]) for one in redrawn) >= 9
    assert sum(not torch.equal(one.maskiges[0], one.maskiges[1]) for one in redrawn) >= 9
    assert any(len(colours(one)) > 3 for one in blended)
    assert all(torch.equal(one.maskiges[0], one.maskiges[1]) for one in blended)
    for ours, one, other in zip(draws(), redrawn, blended, strict=True):  # the geometry is the same all over
        assert torch.equal(ours.masks, one.masks) and torch.equal(ours.masks, other.masks)
        assert torch.equal(ours.frames, other.frames)


def reference(pixel: tuple[int, int, int], colours: Colours) -> list[float]:
    """One pixel by colorsys."""
    values = [min(1.0, max(0.0, channel / 255 + colours.brightness)) for channel in pixel]

    def contrast() -> None:
        values[:] = [min(1.0, channel * colours.contrast) for channel in values]

    if colours.contrast_first:
        contrast()
    hue, saturation, value = colorsys.rgb_to_hsv(*values)
    values[:] = colorsys.hsv_to_rgb((hue + colours.hue) % 1, min(1.0, saturation * colours.saturation), value)
    if not colours.contrast_first:
        contrast()
    return [255 * channel for channel in values]


@settings(deadline=None, max_examples=100)
@given(
    pixels=st.lists(st.tuples(*3 * [st.integers(0, 255)]), min_size=1, max_size=12),
    brightness=st.sampled_from([0.0, 32 / 255, -32 / 255, 0.05]),
    contrast=st.sampled_from([1.0, 0.5, 1.5]),
    saturation=st.sampled_from([1.0, 0.5, 1.5]),
    hue=st.sampled_from([0.0, 0.1, -0.1]),
    first=st.booleans(),
)
def test_colours_are_those_of_hsv_arithmetic(pixels, brightness, contrast, saturation, hue, first):
    colours = Colours(brightness, contrast, saturation, hue, first)
    picture = torch.tensor(pixels, dtype=torch.uint8).T.reshape(1, 3, 1, -1)
    changed = colours.apply(picture)
    assert changed.dtype == torch.uint8
    wanted = torch.tensor([reference(pixel, colours) for pixel in pixels]).T.reshape(1, 3, 1, -1)
    assert (changed - wanted).abs().max() <= 0.51  # half a level of rounding
    assert torch.equal(Colours(contrast_first=first).apply(picture), picture)


def test_colours_are_drawn_from_the_official_ranges():
    draws = [Colours.draw(example_generator(0, 0, row)) for row in range(800)]
    for name, neutral, low, high in (
        ("brightness", 0, -32 / 255, 32 / 255),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -0.1, 0.1),
    ):
        values = np.array([getattr(draw, name) for draw in draws])
        assert 0.42 < (values == neutral).mean() < 0.58, name
        assert values.min() >= low and values.max() <= high, name
        spread = high - low
        assert values.min() < low + 0.02 * spread and values.max() > high - 0.02 * spread, name
    assert 0.42 < np.mean([draw.contrast_first for draw in draws]) < 0.58


@pytest.mark.parametrize("subset", ["s4", "avss"])
@pytest.mark.parametrize("official", [False, True])
def test_generator_alone_decides(subset: str, official: bool):
    transform = build_transform(subset, True, SIDE, official_jitter=official, official_maskige_resize=official)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = transform(clip_of(), example_generator(3, 1, 4))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    torch.rand(5)
    assert same(first, pickle.loads(pickle.dumps(transform))(clip_of(), example_generator(3, 1, 4)))
    others = [transform(clip_of(), example_generator(*key)) for key in ((3, 1, 5), (3, 2, 4), (2, 1, 4))]
    assert not any(torch.equal(first.frames, other.frames) for other in others)


def test_frames_do_not_depend_on_maskiges_and_labels():
    full = TrainTransform(SIDE)(clip_of(), example_generator(0, 0, 7))
    bare = dataclasses.replace(clip_of(labelled=0), maskiges=None)
    out = TrainTransform(SIDE)(bare, example_generator(0, 0, 7))
    assert torch.equal(out.frames, full.frames) and out.maskiges is None
    assert out.masks.shape == (0, SIDE, SIDE) and not out.label_frames.any()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip(probability: float):
    clip = clip_of(box=(0, 0, 20, 64))
    out = TrainTransform(SIDE, "centre_crop", jitter=False, flip=probability)(clip, example_generator(0, 0, 0))
    wanted = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    wanted[:, :20] = True
    wanted = wanted.flip(-1) if probability else wanted
    assert torch.equal(out.masks[0] == 1, wanted)
    assert torch.equal(shows(out.frames, OBJECT)[0], wanted) and torch.equal(shows(out.maskiges, CODE)[1], wanted)


@pytest.mark.parametrize("size", [(32, 32), (128, 96)])
def test_pictures_of_other_sizes_are_brought_to_the_frame(size: tuple[int, int]):
    same_field = clip_of(128, 96, (32, 24, 64, 48), maskige_size=size)
    transform = build_transform("ms3", True, SIDE, jitter=False)
    for row in range(8):
        out = transform(same_field, example_generator(0, 0, row))
        painted, inside = shows(out.maskiges[:1], CODE), out.masks == 1
        edge = grown(inside, 1) & grown(~inside, 1)  # pixels whose centre lies on the edge may fall to either side
        assert torch.equal(painted & ~edge, inside & ~edge)


def test_tensors_own_no_more_memory_than_they_show():
    for row in range(8):
        out = TrainTransform(SIDE)(clip_of(300, 200), example_generator(0, 0, row))
        for tensor in (out.frames, out.maskiges, out.masks):
            assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel()


def test_evaluation_resizes_and_draws_nothing():
    clip = clip_of(100, 50, (0, 0, 50, 50))
    for subset in ("s4", "ms3", "avss"):
        transform = build_transform(subset, False, SIDE)
        assert transform == EvalTransform(SIDE)
        out = transform(clip)
        assert (out.masks[0, :, : SIDE // 2] == 1).all() and (out.masks[0, :, SIDE // 2 :] == 0).all()
        assert same(out, transform(clip, example_generator(0, 0, 5)))
        frame = np.asarray(clip.frames[0].resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        assert np.array_equal(out.frames[0].permute(1, 2, 0).numpy(), frame)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_transform("v1s", True), "unknown subset 'v1s'; use one of .*'avss'"),
        (lambda: build_transform("s4", True, image_size=16), "wanted at least 32 pixels, got 16"),
        (lambda: build_transform("s4", False, image_size=0), "wanted at least 32 pixels, got 0"),
        (lambda: build_transform("s4", True, flip=1.5), r"flip: wanted a probability in \[0, 1\], got 1.5"),
        (lambda: TrainTransform(geometry="crop"), "geometry: wanted 'scale_crop' or 'centre_crop', got 'crop'"),
    ],
)
def test_impossible_settings(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    assert EvalTransform(SIDE)(clip_of()).frames.shape == (2, 3, SIDE, SIDE)
    with pytest.raises(ImportError, match=r"torchvision: pip install 'combo-hf\[train\]'"):
        TrainTransform(SIDE)(clip_of(), example_generator(0, 0, 0))

import json

import numpy as np
import pytest
import torch
from fixtures_proposals import DiscAdapter, DiscProposals, picture
from PIL import Image

from combo_hf.files.environment import fingerprint_weights
from combo_hf.proposals import mask_generator
from combo_hf.proposals.boxes import box_nms, greedy_nms, masks_to_boxes, remove_small_regions
from combo_hf.proposals.clicks import point_grid, superpixel_points
from combo_hf.proposals.mask_generator import stability_score


def discs(width=60, height=48, **options):
    ious = options.pop("ious", (0.95, 0.9))
    return DiscProposals(DiscAdapter(ious), **{"points_per_side": 3, **options}).generate(picture(width, height))


def test_grid_is_row_by_row_and_centred():
    np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    np.testing.assert_allclose(point_grid(1), [[0.5, 0.5]])


def test_masks_come_best_first_with_their_click():
    found = discs(ious=(0.89, 0.95), stability_score_thresh=0.5)
    assert len(found.masks) == 18 and found.masks.dtype == np.bool_
    assert (np.diff(found.scores) <= 0).all() and found.scores[0] == np.float32(0.95)
    for mask, (x, y), box, area in zip(found.masks, found.points, found.boxes, found.areas, strict=True):
        assert mask[int(y), int(x)] and mask.sum() == area
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"stability_score_thresh": 0.5}, 18),
        ({"stability_score_thresh": 0.5, "pred_iou_thresh": 0.92}, 9),
        ({"stability_score_thresh": 0.5, "pred_iou_thresh": 0.95}, 0),  # it has to be above, not equal
        ({"stability_score_thresh": 0.0, "pred_iou_thresh": -1.0}, 18),  # 0 or less keeps all
        ({"stability_score_thresh": 0.91}, 9),  # the rim is a smaller part of the large discs
        ({"stability_score_thresh": 0.91, "stability_score_offset": 0.4}, 18),
        ({"stability_score_thresh": 0.5, "box_nms_thresh": 0.2}, 9),
        ({"stability_score_thresh": 0.5, "points_per_side": 2}, 8),
        ({"stability_score_thresh": 0.5, "points_per_batch": 2}, 18),
    ],
)
def test_every_threshold_counts(change, count):
    assert len(discs(120, 120, **change).masks) == count


def test_stability_of_exactly_the_threshold_is_enough():
    logits = torch.tensor([[[2.0, 2, 2, 0], [2, 2, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]])
    score = float(stability_score(logits, 1.0))
    assert score == 15 / 16
    assert torch.isnan(stability_score(-5 * torch.ones(1, 2, 2), 1.0)).all()


def test_no_mask_survives():
    found = discs(ious=(0.1, 0.2), min_mask_region_area=5)
    assert found.masks.shape == (0, 48, 60) and found.boxes.shape == (0, 4) and found.points.shape == (0, 2)


def test_an_empty_mask_is_not_stable():
    class Nothing(DiscAdapter):
        def decode(self, encoded, points):
            found = super().decode(encoded, points)
            return type(found)(found.logits - 1000, found.ious)

    assert not len(DiscProposals(Nothing(), points_per_side=2).generate(picture()).masks)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (7, 5)])
def test_tiny_frames(size):
    found = discs(*size, points_per_side=2)
    assert found.masks.shape[1:] == size[::-1] and len(found.masks)


def test_large_frames_are_reduced():
    for size, limit, wanted in (((7680, 4320), 96, (96, 54)), ((90, 60), 96, (90, 60)), ((50, 2000), 100, (2, 100))):
        adapter = DiscAdapter()
        found = DiscProposals(adapter, points_per_side=1, max_side=limit).generate(Image.new("RGB", size))
        assert adapter.frames == [wanted] and found.masks.shape[1:] == wanted[::-1]
    assert DiscProposals(DiscAdapter()).settings.max_side == 4096


def test_pieces_of_the_enlargement_do_not_matter(monkeypatch):
    whole = discs(stability_score_thresh=0.5)
    monkeypatch.setattr(mask_generator, "CHUNK_PIXELS", 1)
    np.testing.assert_array_equal(discs(stability_score_thresh=0.5).masks, whole.masks)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_modes_of_pictures(mode):
    assert DiscProposals(DiscAdapter(), points_per_side=1)([Image.new(mode, (30, 20))])[0].shape[1:] == (20, 30)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points_per_side": 0}, ValueError, "points_per_side.*from 1"),
        ({"points_per_side": 3.0}, ValueError, "whole number"),
        ({"points_per_batch": 0}, ValueError, "points_per_batch"),
        ({"pred_iou_thresh": float("nan")}, ValueError, "pred_iou_thresh"),
        ({"stability_score_thresh": 1.5}, ValueError, "stability_score_thresh"),
        ({"stability_score_offset": -1.0}, ValueError, "stability_score_offset"),
        ({"box_nms_thresh": True}, ValueError, "box_nms_thresh"),
        ({"min_mask_region_area": -1}, ValueError, "min_mask_region_area"),
        ({"max_side": 3}, ValueError, "max_side"),
        ({"clicks": "everywhere"}, ValueError, "clicks: wanted one of grid, superpixels"),
        ({"max_clicks": 0}, ValueError, "max_clicks"),
        ({"grid": 3}, TypeError, "no option 'grid'.*points_per_side"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        DiscProposals(DiscAdapter(), **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "which weights"),
        ({"model": "x", "device": "cuda:99"}, ValueError, "not usable"),
        ({"model": "x", "device": "toaster"}, ValueError, "not usable"),
        ({"model": "x", "dtype": "int8"}, ValueError, "float32, float16"),
        ({"model": "x", "dtype": torch.float64}, ValueError, "float32, float16"),
        ({"model": "x", "what": 1}, TypeError, "no option"),
    ],
)
def test_bad_sources_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        DiscProposals.from_pretrained(**arguments)


def test_something_else_than_a_picture_is_refused():
    with pytest.raises(TypeError, match="PIL"):
        DiscProposals(DiscAdapter())([np.zeros((4, 4, 3), np.uint8)])


def test_saved_options():
    generator = DiscProposals(DiscAdapter(), source="somewhere", points_per_side=5)
    saved = json.loads(json.dumps(generator.to_dict()))
    assert saved["name"] == "discs" and saved["model"] == "somewhere" and saved["points_per_side"] == 5
    rebuilt = DiscProposals.from_pretrained(**{key: value for key, value in saved.items() if key != "name"})
    assert rebuilt.to_dict() == saved


def test_identity_knows_weights_and_settings_but_no_memory_knob():
    adapter = DiscAdapter()
    identity = DiscProposals(adapter, source="a").identity()
    assert DiscProposals(adapter, source="b", points_per_batch=7).identity() == identity
    assert DiscProposals(adapter, source="a", points_per_side=7).identity() != identity
    with torch.no_grad():
        adapter.model.weight += 1
    assert DiscProposals(adapter, source="a").identity() != identity
    assert fingerprint_weights(torch.nn.Linear(2, 1)) != fingerprint_weights(torch.nn.Linear(1, 2))


def test_nms_is_that_of_torchvision():
    nms = pytest.importorskip("torchvision.ops", exc_type=ImportError).nms
    rng = np.random.default_rng(0)
    for count in (*range(12), 60, 200):
        corner, extent = rng.integers(0, 20, (count, 2)), rng.integers(0, 12, (count, 2))
        boxes = torch.from_numpy(np.concatenate([corner, corner + extent], axis=1)).float()
        scores = torch.from_numpy(rng.integers(0, 5, count) / 4).float()  # many equal ones
        for threshold in (0.0, 0.3, 0.7, 1.0):
            assert torch.equal(greedy_nms(boxes, scores, threshold), nms(boxes, scores, threshold))


def test_nms_without_torchvision(monkeypatch):
    boxes, scores = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]]), np.array([0.5, 0.9, 0.7])
    wanted = [1, 2]
    assert box_nms(boxes, scores, 0.7).tolist() == wanted
    monkeypatch.setitem(__import__("sys").modules, "torchvision.ops", None)
    assert box_nms(boxes, scores, 0.7).tolist() == wanted


def test_box_of_an_empty_mask_is_zero():
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[1, 2:4, 3] = True
    assert masks_to_boxes(masks).tolist() == [[0, 0, 0, 0], [3, 2, 3, 3]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (["#####", "#.###", "#####"], ["#####", "#####", "#####"]),  # a hole
        (["##..#", "##...", "....."], ["##...", "##...", "....."]),  # an island
        (["##...", "##...", "..#.."], ["##...", "##...", "..#.."]),  # corners hold together
        (["#....", "....#", "..#.#"], [".....", "....#", "....#"]),  # all small: the largest stays
        ([".....", ".....", "....."], [".....", ".....", "....."]),
    ],
)
def test_small_regions(rows, wanted):
    mask, target = (np.array([[cell == "#" for cell in row] for row in picture]) for picture in (rows, wanted))
    cleaned, changed = remove_small_regions(mask, 3)
    np.testing.assert_array_equal(cleaned, target)
    assert changed == (rows != wanted)


def test_after_the_clean_up_untouched_masks_come_first():
    class Speckled(DiscAdapter):
        def decode(self, encoded, points):
            found = super().decode(encoded, points)
            found.logits[0, 0, 0, 0] = 9.0  # far from the disc: an island of one pixel in the best mask
            return found

    options = {"points_per_side": 3, "stability_score_thresh": 0.5}
    plain = DiscProposals(Speckled(), **options).generate(picture(90, 90))
    clean = DiscProposals(Speckled(), min_mask_region_area=4, **options).generate(picture(90, 90))
    assert plain.masks[0][0, 0] and not clean.masks[:, 0, 0].any()
    assert len(clean.masks) == len(plain.masks)
    np.testing.assert_array_equal(clean.points[-1], plain.points[0])
    assert clean.areas[-1] == plain.areas[0] - 1


def test_superpixels_are_clicked_inside():
    """A left half in two colours and a right half in one: three superpixels (and narrow ones along their edges)."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:50, :100], pixels[50:, :100], pixels[:, 100:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    frame = Image.fromarray(pixels)
    points = superpixel_points(frame, 3)
    np.testing.assert_allclose(points, [[0.75, 0.5], [0.25, 0.25], [0.25, 0.75]], atol=0.14)
    options = {"clicks": "superpixels", "max_clicks": 3, "points_per_batch": 2, "stability_score_thresh": 0.5}
    proposals = DiscProposals(DiscAdapter(), **options).generate(frame)
    clicked = {tuple(point) for point in proposals.points.tolist()}
    assert clicked == {tuple(point) for point in (points * frame.size).tolist()}
    assert len(DiscProposals(DiscAdapter(), **{**options, "max_clicks": 1}).generate(frame).masks) == 2


def test_a_frame_of_one_pixel_has_a_click():
    np.testing.assert_allclose(superpixel_points(Image.new("RGB", (1, 1)), 5), [[0.5, 0.5]])

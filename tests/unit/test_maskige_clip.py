import numpy as np
import pytest

from combo_hf.maskige_combo import PALETTE, maskige_index, paint_maskige
from combo_hf.proposals.clip import clip_indices, iou_matrix, paint_maskige_clip


def boxes(*places: tuple[int, int, int], size: int = 64) -> np.ndarray:
    """Squares (x, y, side)."""
    masks = np.zeros((len(places), size, size), bool)
    for mask, (x, y, side) in zip(masks, places, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


FIRST = boxes((2, 2, 6), (20, 20, 10), (40, 40, 16))
# The squares move by a pixel, a smaller one appears, and so all of the release's ranks move up.
SECOND = boxes((50, 4, 4), (3, 2, 6), (21, 20, 10), (41, 40, 16))


def test_off_is_the_release():
    for stable, index in zip(clip_indices([FIRST, SECOND], None), (FIRST, SECOND), strict=True):
        np.testing.assert_array_equal(stable, maskige_index(index))
    for painted, masks in zip(paint_maskige_clip([FIRST, SECOND], stable=False), (FIRST, SECOND), strict=True):
        np.testing.assert_array_equal(painted, paint_maskige(masks))


def test_colours_stay_with_their_mask():
    first, second = clip_indices([FIRST, SECOND], None, stable=True)
    np.testing.assert_array_equal(first, maskige_index(FIRST))
    assert [second[5, 5], second[25, 25], second[50, 50], second[5, 51]] == [1, 2, 3, 4]
    assert [maskige_index(SECOND)[place] for place in ((5, 5), (25, 25), (50, 50), (5, 51))] == [2, 3, 4, 1]


def test_a_new_mask_does_not_take_the_colour_of_one_just_gone():
    indices = clip_indices([FIRST, FIRST[1:], boxes((50, 4, 4), (20, 20, 10))], None, stable=True)
    _, second, third = indices
    assert second[25, 25] == 2 and second[50, 50] == 3
    assert third[25, 25] == 2 and third[5, 51] == 1  # 1 was free for a frame; 3 has just gone


def test_small_masks_still_lie_on_top():
    masks = boxes((0, 0, 40), (10, 10, 8))
    _, second = clip_indices([masks, masks[::-1]], None, stable=True)
    assert second[12, 12] == 1 and second[2, 2] == 2


def test_frames_without_masks_and_of_other_sizes():
    frames = [FIRST, np.zeros((0, 64, 64), bool), boxes((4, 4, 12), (40, 40, 20), size=128)]
    painted = paint_maskige_clip(frames, size=(32, 48))
    assert [picture.shape for picture in painted] == [(32, 48, 3)] * 3
    assert (painted[1] == PALETTE[0]).all()


def test_more_masks_than_colours():
    rng = np.random.default_rng(0)
    masks = rng.random((300, 20, 20)) < 0.3
    for index in clip_indices([masks, masks[::-1], rng.random((280, 20, 20)) < 0.3], None, stable=True):
        assert index.dtype == np.uint8 and index.max() <= 255


def test_random_clips_number_no_two_masks_alike():
    rng = np.random.default_rng(1)
    for _ in range(20):
        frames = []
        for _ in range(4):
            cells = rng.permutation(16)[: rng.integers(0, 16)]
            frames.append(boxes(*[(16 * int(c % 4), 16 * int(c // 4), 14) for c in cells]))
        for masks, index in zip(frames, clip_indices(frames, None, stable=True), strict=True):
            numbers = [set(np.unique(index[mask])) for mask in masks]  # the squares do not overlap
            assert all(len(found) == 1 and found != {0} for found in numbers)
            assert len(set.union(set(), *numbers)) == len(masks)


def test_iou():
    masks = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(iou_matrix(masks, np.array([[0, 1, 1, 0]], bool)), [[1 / 3], [0]])


@pytest.mark.parametrize(
    ("masks", "size", "message"),
    [(np.zeros((4, 4), bool), None, "K, H, W"), (np.full((1, 4, 4), 3), None, "0 and 1"), (FIRST, (0, 4), "size")],
)
def test_bad_masks_are_refused(masks, size, message):
    with pytest.raises(ValueError, match=message):
        paint_maskige_clip([masks], size=size)

import numpy as np
import pytest
import torch

from combo_hf.maskige_combo import PALETTE, maskige_index, paint_maskige


def squares(*sides: int, size: int = 32) -> np.ndarray:
    masks = np.zeros((len(sides), size, size), bool)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = True
    return masks


def test_palette():
    assert PALETTE.shape == (256, 3) and PALETTE.dtype == np.uint8
    assert PALETTE[0].tolist() == [120, 120, 120] and PALETTE[1].tolist() == [180, 120, 120]
    assert (PALETTE[6] == PALETTE[48]).all()
    assert not PALETTE[150:].any() and PALETTE[:150].any(axis=1).all()


def test_smaller_masks_lie_on_top_whatever_their_order():
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        index = maskige_index(squares(4, 12, 20)[list(order)])
        assert (index[0, 0], index[8, 8], index[16, 16], index[25, 25]) == (1, 2, 3, 0)


def test_equal_areas_keep_their_order():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 0], masks[1, 1], masks[2, 2] = True, True, True
    assert maskige_index(masks)[:3, 0].tolist() == [1, 2, 3]


def test_a_covered_mask_keeps_its_rank():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :, :2] = masks[1, :, 2:3] = masks[2, :, :3] = True
    assert sorted(np.unique(maskige_index(masks))) == [0, 1, 2]


def test_no_mask_is_grey():
    assert (paint_maskige(np.zeros((0, 9, 16), bool)) == 120).all()


def test_of_too_many_masks_the_largest_are_painted():
    masks = np.zeros((300, 1, 45150), bool)
    first = 0
    for rank in range(300):  # areas 1 .. 300, apart from each other
        masks[rank, 0, first : first + rank + 1] = True
        first += rank + 1
    index = maskige_index(masks)[0]
    assert index.max() == 255
    assert index[masks[44, 0]].max() == 0 and (index[masks[45, 0]] == 1).all() and (index[masks[299, 0]] == 255).all()


@pytest.mark.parametrize("size", [(224, 224), (128, 96), (3, 5)])
def test_size_is_height_and_width(size):
    assert paint_maskige(squares(4), size).shape == (*size, 3)


@pytest.mark.parametrize(
    "convert",
    [lambda m: m.astype(np.uint8), lambda m: m.astype(np.float32), lambda m: m.astype(np.int64), torch.from_numpy],
)
def test_kinds_of_masks_agree(convert):
    masks = squares(4, 12)
    np.testing.assert_array_equal(paint_maskige(convert(masks)), paint_maskige(masks))


@pytest.mark.parametrize(
    ("masks", "size", "message"),
    [
        (np.zeros((8, 8), bool), (8, 8), r"\(K, H, W\)"),
        (np.zeros((2, 0, 8), bool), (8, 8), "without pixels"),
        (np.full((1, 8, 8), 255, np.uint8), (8, 8), "0 and 1"),
        (np.full((1, 8, 8), -1, np.int8), (8, 8), "0 and 1"),
        (np.full((1, 8, 8), 0.5), (8, 8), "threshold"),
        (np.full((1, 8, 8), np.nan), (8, 8), "threshold"),
        (squares(2), (0, 8), "size"),
    ],
)
def test_bad_masks_are_refused(masks, size, message):
    with pytest.raises(ValueError, match=message):
        paint_maskige(masks, size)

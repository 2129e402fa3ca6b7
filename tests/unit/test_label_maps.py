"""The winning class of enlarged score maps: cells, their candidates, and the whole maps say the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as nnf

from combo_hf import label_maps_combo
from combo_hf.label_maps_combo import class_scores, enlarge, highest_class


def interpolated(maps, size):
    return nnf.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def assert_highest(scores, size, found=None):
    """Labels and best scores are those of whole maps; where labels differ, both classes are equally high."""
    wanted = interpolated(scores, size)
    labels, best = highest_class(scores, size) if found is None else found
    assert labels.shape == best.shape == size and labels.dtype == torch.long
    scale = float(scores.abs().max()) + 1e-30
    torch.testing.assert_close(best, wanted.amax(0), atol=3e-6 * scale, rtol=0)
    reached = wanted.gather(0, labels[None])[0]
    assert (wanted.amax(0) - reached).max() <= 3e-6 * scale
    return labels, wanted.argmax(0)


def smooth(seed, classes, coarse, size):
    maps = torch.randn(1, classes, *coarse, generator=torch.Generator().manual_seed(seed))
    return nnf.interpolate(maps, size=size, mode="bicubic")[0]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    classes=st.sampled_from([1, 2, 5, 71, 300]),
    coarse=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    small=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    large=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    level=st.sampled_from([0.0, -3.0, 1e4]),
)
def test_any_maps_and_sizes(seed, classes, coarse, small, large, level):
    scores = smooth(seed, classes, coarse, small) + level
    with pytest.MonkeyPatch.context() as patch:
        for work in (label_maps_combo.MOST_WORK, 1e9):  # as it decides itself, and cells at any price
            patch.setattr(label_maps_combo, "MOST_WORK", work)
            assert_highest(scores, large)


@pytest.mark.parametrize(("classes", "coarse"), [(2, 2), (24, 3), (71, 3), (71, 8), (300, 4)])
def test_smooth_maps_give_the_same_labels(monkeypatch, classes, coarse):
    scores = smooth(5, classes, (coarse, coarse), (48, 48))
    monkeypatch.setattr(label_maps_combo, "MOST_WORK", 1e9)
    monkeypatch.setattr(label_maps_combo, "CELLS_AT_ONCE", 100)
    monkeypatch.setattr(label_maps_combo, "PIXELS_AT_ONCE", 777)
    found = label_maps_combo._by_cells(scores, (130, 217))
    labels, wanted = assert_highest(scores, (130, 217), found)
    assert (labels == wanted).float().mean() > 0.9999  # ties within rounding
    assert len(labels.unique()) > 1


def test_most_cells_are_not_looked_at():
    """Two classes share the picture, with a straight border: only the cells on it have candidates, and only two."""
    scores = 0.3 * torch.rand(40, 32, 32, generator=torch.Generator().manual_seed(1))
    scores[7, :, :10] += 1
    scores[3, :, 10:] += 1
    leader, _, between = label_maps_combo._leaders(scores)
    cells = between.nonzero(as_tuple=True)
    assert set(cells[1].tolist()) == {9} and len(cells[0]) == 32
    counts, classes, corners = label_maps_combo._candidates(scores, leader, cells)
    assert counts.tolist() == [2] * 32 and classes.tolist() == [3, 7] * 32 and corners.shape == (64, 4)
    assert label_maps_combo._by_cells(scores, (90, 128)) is not None
    labels, wanted = assert_highest(scores, (90, 128))
    assert torch.equal(labels, wanted)


def test_a_class_that_leads_at_no_corner_can_win(monkeypatch):
    """Between two peaks a third class is higher than both, though it is lower at every corner."""
    monkeypatch.setattr(label_maps_combo, "MOST_WORK", 1e9)
    scores = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.8, 0.8]]]).expand(3, 2, 2)
    labels, wanted = assert_highest(scores, (2, 40))
    assert torch.equal(labels, wanted) and labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 71])
@pytest.mark.parametrize("kind", ["equal", "noise"])
def test_maps_without_leaders_are_enlarged_whole(classes, kind):
    scores = torch.full((classes, 24, 24), 0.5)
    if kind == "noise":
        scores = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2))
    assert label_maps_combo._by_cells(scores, (60, 100)) is None
    labels, wanted = assert_highest(scores, (60, 100))
    assert torch.equal(labels, wanted)


def test_of_equal_classes_the_first_wins(monkeypatch):
    monkeypatch.setattr(label_maps_combo, "MOST_WORK", 1e9)
    scores = smooth(3, 6, (3, 3), (24, 24))
    scores = torch.cat([scores, scores])
    labels, _ = label_maps_combo._by_cells(scores, (70, 80))
    assert labels.max() < 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_goes_the_long_way(bad):
    scores = smooth(4, 5, (2, 2), (16, 16))
    scores[2, 3, 4] = bad
    labels, best = highest_class(scores, (50, 60))
    wanted_labels, wanted_best = label_maps_combo._by_maps(scores, (50, 60))
    assert torch.equal(labels, wanted_labels) and torch.equal(best.isnan(), wanted_best.isnan())


@pytest.mark.parametrize("size", [(56, 56), (224, 224), (33, 70), (10, 7)])
@pytest.mark.parametrize("small", [(56, 56), (1, 5), (64, 20), (65, 20)])
def test_maps_are_enlarged_as_by_interpolate(size, small):
    maps = torch.randn(3, *small, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(enlarge(maps, size), interpolated(maps, size), atol=1e-5, rtol=0)


def test_scores_are_sums_over_queries():
    generator = torch.Generator().manual_seed(7)
    classes, masks = torch.randn(4, 6, generator=generator), torch.randn(4, 8, 12, generator=generator)
    wanted = sum(
        classes[query].softmax(-1)[:-1, None, None] * interpolated(masks[query : query + 1], (32, 48)).sigmoid()
        for query in range(4)
    )
    torch.testing.assert_close(class_scores(classes, masks, (32, 48)), wanted, atol=1e-5, rtol=1e-5)

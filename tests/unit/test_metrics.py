"""The metrics: values worked out by hand, the histogram against 255 comparisons, independence of batching, errors."""

import numpy as np
import pytest
import torch

from combo_hf.metrics import SemanticScores, f_measure, jaccard


def video(*rows: list[float]) -> torch.Tensor:
    """Frames of one row of pixels: (T, 1, W)."""
    return torch.tensor(rows)[:, None]


@pytest.mark.parametrize(
    ("scores", "target", "value"),
    [
        (video([0.9, 0.9, 0.1, 0.1]), video([1, 1, 0, 0]), 1.0),
        (video([0.9, 0.9, 0.9, 0.1]), video([1, 1, 0, 0]), 2 / 3),
        (video([0.5, 0.9, 0.1, 0.1]), video([1, 1, 0, 0]), 1 / 2),  # above one half, not at it
        (video([0.1, 0.1, 0.1, 0.1]), video([1, 1, 0, 0]), 0.0),
        (video([0.9, 0.1, 0.1, 0.1]), video([0, 0, 0, 0]), 3 / 4),  # nothing sounds: share of true negatives
        (video([0.9, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]), video([0, 0, 0, 0], [1, 1, 0, 0]), 7 / 8),
    ],
)
def test_jaccard(scores: torch.Tensor, target: torch.Tensor, value: float):
    assert jaccard(scores, target) == pytest.approx(value, abs=1e-6)
    assert jaccard(scores.numpy(), target.bool().numpy()) == jaccard(scores, target)


def f_of(precision: float, recall: float) -> float:
    return 1.3 * precision * recall / (0.3 * precision + recall)


@pytest.mark.parametrize(
    ("scores", "target", "value"),
    [
        (video([0.9, 0.9, 0.1, 0.1]), video([1, 1, 0, 0]), 1.0),
        (video([0.4, 0.3, 0.1, 0.1]), video([1, 1, 0, 0]), 1.0),  # some threshold parts them
        (video([0.4, 0.1, 0.1, 0.1]), video([1, 1, 0, 0]), max(f_of(1, 0.5), f_of(0.5, 1))),
        (video([0.0, 0.0, 0.0, 0.0]), video([1, 1, 0, 0]), f_of(0.5, 1)),  # threshold 0 takes every pixel
        (video([1.0, 1.0, 0.0, 0.0]), video([0, 0, 0, 0]), 0.0),  # nothing sounds
        (video([1.0, 1.0, 1.0, 1.0], [0.9, 0.9, 0.1, 0.1]), video([0, 0, 0, 0], [1, 1, 0, 0]), 1.0),
        # the curves are averaged before the maximum is taken: no threshold suits both frames
        (video([0.9, 0.6, 0.6], [0.3, 0.1, 0.1]), video([1, 0, 0], [1, 0, 0]), (f_of(1 / 3, 1) + 1) / 2),
    ],
)
def test_f_measure(scores: torch.Tensor, target: torch.Tensor, value: float):
    assert f_measure(scores, target) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_histogram_equals_comparing_every_pixel_with_every_threshold(seed: int):
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    scores = torch.rand(3, 16, 16, generator=generator)
    scores[0] = thresholds[torch.randint(255, (16, 16), generator=generator)]  # exactly on a threshold
    scores[1, :8] = torch.rand(8, 16, generator=generator).round()
    target = torch.rand(3, 16, 16, generator=generator) > 0.7
    curves = []
    for p, g in zip(scores, target, strict=True):
        passed = p[None] >= thresholds[:, None, None]
        hits = (passed & g).sum((1, 2)).double()
        precision, recall = hits / passed.sum((1, 2)).clamp(min=1), hits / g.sum()
        curves.append((1.3 * precision * recall / (0.3 * precision + recall)).nan_to_num(0))
    assert f_measure(scores, target) == pytest.approx(torch.stack(curves).mean(0).max().item(), abs=1e-12)


@pytest.mark.parametrize("metric", [jaccard, f_measure])
@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        (torch.zeros(4, 4), torch.zeros(4, 4), r"shape \(T, H, W\)"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), "one shape"),
        (torch.zeros(0, 4, 4), torch.zeros(0, 4, 4), "at least one pixel"),
        (torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2), "floats"),
        (torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2), "apply softmax"),
        (torch.full((1, 2, 2), torch.nan), torch.zeros(1, 2, 2), "probabilities"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 255), "pass target > 0"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.5), "only 0 and 1"),
    ],
)
def test_impossible_videos(metric, scores: torch.Tensor, target: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        metric(scores, target)


# Two frames of four pixels, three classes; class 2 never occurs, class 1 is only predicted in the second frame.
PREDICTION = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]]])
TARGET = np.array([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])


def test_semantic_scores_by_frames():
    result = SemanticScores(3).update(PREDICTION, TARGET).compute()
    iou = [(1 / 2 + 3 / 4) / 2, (2 / 3 + 0) / 2]
    f_score = [(f_of(1 / 2, 1) + f_of(1, 3 / 4)) / 2, f_of(1, 2 / 3) / 2]
    assert result["per_class_iou"] == pytest.approx([*iou, None])
    assert result["per_class_fscore"] == pytest.approx([*f_score, None])
    assert result["miou"] == pytest.approx(sum(iou) / 3) and result["miou_present"] == pytest.approx(sum(iou) / 2)
    assert result["fscore"] == pytest.approx(sum(f_score) / 3)
    assert result["miou_nobg"] == pytest.approx(iou[1] / 2)  # classes 1 and 2
    assert result["miou_nobg_upstream"] == pytest.approx(sum(iou) / 2)  # classes 0 and 1: the last is left out
    assert result["num_frames"] == 2


def test_semantic_scores_over_the_data_set():
    result = SemanticScores(3, protocol="dataset").update(PREDICTION, TARGET).compute()
    assert result["per_class_iou"] == pytest.approx([4 / 6, 2 / 4, None])
    assert result["per_class_fscore"] == pytest.approx([f_of(4 / 5, 4 / 5), f_of(2 / 3, 2 / 3), None])


@pytest.mark.parametrize(("protocol", "iou"), [("avsbench", [1 / 2, 1 / 2]), ("dataset", [1.0, 1.0])])
def test_ignored_pixels(protocol: str, iou: list[float]):
    prediction, target = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 255, 1, 255]]], np.uint8)
    result = SemanticScores(2, protocol).update(prediction, target).compute()
    assert result["per_class_iou"] == pytest.approx(iou)


@pytest.mark.parametrize("protocol", ["avsbench", "dataset"])
def test_semantic_scores_do_not_depend_on_how_frames_are_cut(protocol: str):
    generator = np.random.default_rng(0)
    prediction, target = generator.integers(0, 5, (2, 6, 8, 8))
    target[2] = 255
    whole = SemanticScores(5, protocol).update(prediction, target).compute()
    parts = SemanticScores(5, protocol)
    for first, last in ((0, 1), (1, 4), (4, 6)):
        parts.merge(SemanticScores(5, protocol).update(prediction[first:last], torch.from_numpy(target[first:last])))
    cut = parts.compute()
    assert set(cut) == set(whole)
    for name, value in whole.items():
        assert cut[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SemanticScores(1), "2 to 255"),
        (lambda: SemanticScores(3, "coco"), "avsbench"),
        (lambda: SemanticScores(3).compute(), "no frames"),
        (lambda: SemanticScores(2).update(PREDICTION, TARGET + 1), r"\[2\] do not exist"),
        (lambda: SemanticScores(3).update(np.full_like(TARGET, 255), TARGET), r"prediction: class ids \[255\]"),
        (lambda: SemanticScores(3).update(PREDICTION.astype(float), TARGET), "argmax"),
        (lambda: SemanticScores(3).update(PREDICTION[:1], TARGET), "must agree"),
        (lambda: SemanticScores(3).merge(SemanticScores(4)), "cannot merge"),
    ],
)
def test_impossible_semantic_scores(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()

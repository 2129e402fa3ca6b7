"""M_J, M_F and the semantic scores of AVSBench, from definitions that were checked against the official evaluators.

M_J and M_F (S4, MS3) are values of ONE video; a data set's value is the mean over its videos, so that nothing depends
on how videos are batched. The semantic scores (AVSS) are means over classes, of one of two kinds that must not be
compared with each other (see [`SemanticScores`]).

Departure: exact counting in integers where the release adds float32; results agree to 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


BETA_SQUARED = 0.3
NUM_THRESHOLDS = 255
MASK_THRESHOLD = 0.5
UNION_EPSILON = 1e-7  # of M_J; it only keeps 0 / 0 away
PROTOCOLS = ("avsbench", "dataset")
IGNORE_INDEX = 255


def jaccard(scores: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> float:
    """M_J of one video: the mean over its frames of intersection / union at score > 0.5.

    A frame in which nothing sounds scores the share of its pixels that are predicted as such.

    Args:
        scores (`(T, H, W)`): probability in [0, 1] that a pixel belongs to a sounding object.
        target (`(T, H, W)`): bool, or numbers that are all 0 or 1.

    Raises:
        ValueError: shapes that differ, no frames, scores outside [0, 1], targets other than 0 and 1.
    """
    probabilities, truth = _check_video(scores, target)
    predicted = (probabilities > MASK_THRESHOLD).flatten(1)
    truth = truth.flatten(1)
    empty = ~truth.any(1)
    overlap = torch.where(empty, (~predicted & ~truth).sum(1), (predicted & truth).sum(1))
    union = torch.where(empty, truth.shape[1], (predicted | truth).sum(1))
    return (overlap.double() / (union.double() + UNION_EPSILON)).mean().item()


def f_measure(scores: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> float:
    """M_F of one video: maximum of its F curve (beta^2 = 0.3, 255 thresholds), a mean over frames with an object.

    A video in which nothing sounds scores 0, as in the release. Pixels are counted once, by histograms: the same
    numbers as 255 comparisons of every pixel.

    Args:
        scores (`(T, H, W)`): as for [`jaccard`].
        target (`(T, H, W)`): as for [`jaccard`].

    Raises:
        ValueError: as for [`jaccard`].
    """
    probabilities, truth = _check_video(scores, target)
    frames = truth.flatten(1).any(1)
    if not frames.any():
        return 0.0
    probabilities, truth = probabilities[frames].flatten(1), truth[frames].flatten(1)
    # In float32 the last threshold is 1; torch's own linspace gives the bits of the release on every device.
    thresholds = torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS).to(probabilities.device)
    passed = torch.bucketize(probabilities.contiguous(), thresholds, right=True)  # thresholds that are <= the score
    bins = NUM_THRESHOLDS + 1
    index = passed + bins * torch.arange(len(passed), device=passed.device)[:, None]
    length = bins * len(passed)
    everything = torch.bincount(index.flatten(), minlength=length).view(-1, bins)
    sounding = torch.bincount(index[truth], minlength=length).view(-1, bins)
    # A pixel that passes n thresholds passes the first n of them: sums from the end, without "passes none".
    positives, hits = (counts.flip(1).cumsum(1).flip(1)[:, 1:].double() for counts in (everything, sounding))
    precision = hits / (positives + 1e-20)
    recall = hits / truth.sum(1, keepdim=True)
    curve = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return curve.nan_to_num(0.0).mean(0).max().item()


class SemanticScores:
    """IoU and F (beta^2 = 0.3) per class, and their means.

    Args:
        num_labels (`int`): K, background (index 0) included.
        protocol (`str`, defaults to `"avsbench"`): `"avsbench"`: the values of a class are means over the frames in
            which it is predicted or present (the evaluator of AVSBench and COMBO). `"dataset"`: intersections, unions
            and areas are summed over the data set first (CAVP and others). Numbers of the two are not comparable.

    Ignored pixels (255 in the target) count as false positives of the predicted class under `"avsbench"`, as in the
    release, and not at all under `"dataset"`.

    Raises:
        ValueError: fewer than two labels, or an unknown protocol.

    Example:
        >>> scores = SemanticScores(num_labels=3)
        >>> scores.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]])).compute()["miou_present"]
        1.0
    """

    def __init__(self, num_labels: int, protocol: str = "avsbench") -> None:
        if num_labels < 2 or num_labels > IGNORE_INDEX:
            raise ValueError(f"num_labels: wanted 2 to 255 with the background, got {num_labels}.")
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol: wanted one of {list(PROTOCOLS)}, got {protocol!r}.")
        self.num_labels, self.protocol = num_labels, protocol
        self.reset()

    def reset(self) -> SemanticScores:
        """Forget everything seen so far."""
        self.num_frames = 0
        # "avsbench": sums of IoU, of F, and number of frames; "dataset": intersection, predicted area, true area.
        self.sums = torch.zeros(3, self.num_labels, dtype=torch.float64)
        return self

    def update(self, prediction: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> SemanticScores:
        """Add frames; how they are cut into calls does not matter.

        Args:
            prediction (`(T, H, W)`): class ids 0..K-1.
            target (`(T, H, W)`): class ids 0..K-1, 255 = ignored.

        Raises:
            ValueError: shapes that differ, not integers, or ids that do not exist.
        """
        predicted = _check_ids(prediction, self.num_labels, "prediction", ignored=False)
        truth = _check_ids(target, self.num_labels, "target", ignored=True)
        if predicted.shape != truth.shape:
            raise ValueError(f"prediction {tuple(predicted.shape)} and target {tuple(truth.shape)} must agree.")
        truth = truth.to(predicted.device)
        valid = truth != IGNORE_INDEX
        counted = valid if self.protocol == "dataset" else torch.ones_like(valid)
        overlap = self._areas(predicted, predicted == truth)
        predicted_area, true_area = self._areas(predicted, counted), self._areas(truth, valid)
        if self.protocol == "dataset":
            self.sums += torch.stack([overlap.sum(0), predicted_area.sum(0), true_area.sum(0)])
        else:
            iou, f_score, seen = _class_scores(overlap, predicted_area, true_area)
            self.sums += torch.stack([iou.sum(0), f_score.sum(0), seen.sum(0)])
        self.num_frames += len(truth)
        return self

    def merge(self, other: SemanticScores) -> SemanticScores:
        """Add what another instance has seen (of another process, for example).

        Raises:
            ValueError: the other has another number of labels or protocol.
        """
        if (other.num_labels, other.protocol) != (self.num_labels, self.protocol):
            raise ValueError(
                f"cannot merge {other.num_labels} labels ({other.protocol}) into {self.num_labels} ({self.protocol})."
            )
        self.sums += other.sums
        self.num_frames += other.num_frames
        return self

    def compute(self) -> dict[str, Any]:
        """All scores in 0..1.

        Returns:
            `dict`: `miou`, `fscore`: mean over all K classes, one that never occurs counts 0 (the published numbers);
            `miou_present`, `fscore_present`: over the classes that occur; `miou_nobg`, `fscore_nobg`: over the classes
            1..K-1; `miou_nobg_upstream`, `fscore_nobg_upstream`: what the release logs under that name, which leaves
            out the LAST class instead of the background; `per_class_iou`, `per_class_fscore`: lists of K, `None` for a
            class that never occurs; `num_frames`.

        Raises:
            ValueError: nothing was added.
        """
        if not self.num_frames:
            raise ValueError("no frames: call update(prediction, target) before compute().")
        if self.protocol == "dataset":
            iou, f_score, seen = _class_scores(*self.sums)
        else:
            seen = self.sums[2] > 0
            iou, f_score = self.sums[:2] / self.sums[2].clamp(min=1)
        result: dict[str, Any] = {"num_frames": self.num_frames}
        for name, values in (("iou", iou), ("fscore", f_score)):
            mean = "miou" if name == "iou" else name
            result[mean] = values.mean().item()
            result[f"{mean}_present"] = values[seen].mean().item() if seen.any() else 0.0
            result[f"{mean}_nobg"] = values[1:].mean().item()
            result[f"{mean}_nobg_upstream"] = values[:-1].mean().item()
            pairs = zip(values.tolist(), seen.tolist(), strict=True)
            result[f"per_class_{name}"] = [value if occurs else None for value, occurs in pairs]
        return result

    def _areas(self, labels: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Pixels of every class in every frame, counted where `where` is True: float64 (T, K) on the CPU."""
        frame = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
        index = (labels + self.num_labels * frame)[where]
        counts = torch.bincount(index, minlength=self.num_labels * len(labels))
        return counts.view(-1, self.num_labels).cpu().double()


def _class_scores(
    overlap: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """IoU, F and "occurs" of areas (..., K) in pixels; both scores are 0 where a class does not occur."""
    union = predicted + true - overlap
    iou = overlap / (union + torch.finfo(torch.float64).eps)
    # precision = overlap / predicted and recall = overlap / true, multiplied out
    f_score = (1 + BETA_SQUARED) * overlap / (BETA_SQUARED * true + predicted)
    return iou, f_score.nan_to_num(0.0), union > 0


def _check_video(
    scores: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores as float32 and target as bool, (T, H, W) each, on the scores' device."""
    probabilities = torch.as_tensor(scores).detach()
    truth = torch.as_tensor(target).detach().to(probabilities.device)
    if probabilities.ndim != 3 or truth.shape != probabilities.shape or not probabilities.numel():
        raise ValueError(
            "wanted scores and target of one shape (T, H, W) with at least one pixel, got "
            f"{tuple(probabilities.shape)} and {tuple(truth.shape)}."
        )
    if not probabilities.is_floating_point():
        raise ValueError(f"scores: wanted floats in [0, 1], got {probabilities.dtype}.")
    low, high = probabilities.aminmax()
    if not (low >= 0 and high <= 1):  # false for NaN as well
        raise ValueError(f"scores: wanted probabilities in [0, 1], got {low.item()} to {high.item()}; apply softmax.")
    if truth.dtype != torch.bool:
        if not ((truth == 0) | (truth == 1)).all():
            raise ValueError(f"target: wanted only 0 and 1, got up to {truth.max().item()}; pass target > 0.")
        truth = truth == 1
    return probabilities.float(), truth


def _check_ids(labels: torch.Tensor | np.ndarray, num_labels: int, name: str, ignored: bool) -> torch.Tensor:
    """Class ids as int64 (T, H, W)."""
    ids = torch.as_tensor(labels).detach()
    if ids.ndim != 3 or not ids.numel():
        raise ValueError(f"{name}: wanted shape (T, H, W) with at least one pixel, got {tuple(ids.shape)}.")
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"{name}: wanted integer class ids, got {ids.dtype}; scores need argmax first.")
    ids = ids.long()
    wrong = (ids < 0) | (ids >= num_labels)
    if ignored:
        wrong &= ids != IGNORE_INDEX
    if wrong.any():
        raise ValueError(f"{name}: class ids {ids[wrong].unique().tolist()[:8]} do not exist, there are {num_labels}.")
    return ids

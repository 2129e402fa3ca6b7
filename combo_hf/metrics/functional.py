"""M_J, M_F and the semantic scores of AVSBench, from definitions that were checked against the official evaluators.

M_J and M_F (S4, MS3) are values of ONE video; a data set's value is the mean over its videos, so that nothing depends
on how videos are batched. The semantic scores (AVSS) are means over classes, of one of two kinds that must not be
compared with each other (see [`SemanticScores`]). For whole data sets, and several processes, see [`VideoScores`].

Pixels are counted where the tensors are, a GPU for example; what follows is integers and the arithmetic of
`avs_segmentation/video_records.py`. There sums are rounded once (`math.fsum`), so that scores have the same bits
whatever the order of the videos and the number of processes: `combo-hf evaluate` promises equal files for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from combo_hf.metrics.avs_segmentation.video_records import (
    BETA_SQUARED,
    IGNORE_INDEX,
    MASK_THRESHOLD,
    NUM_THRESHOLDS,
    PROTOCOLS,
    Record,
    check_object,
    check_protocol,
    class_areas,
    f_of_histograms,
    finish_object_record,
    finish_semantic_record,
    jaccard_of_counts,
    scores_of_sums,
    sum_classes,
    thresholds,
)


__all__ = [
    "BETA_SQUARED",
    "IGNORE_INDEX",
    "MASK_THRESHOLD",
    "NUM_THRESHOLDS",
    "PROTOCOLS",
    "SemanticScores",
    "f_measure",
    "jaccard",
    "score_labels",
    "score_object",
]


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
    overlap, predicted, true = _areas_of_object(probabilities, truth)
    return jaccard_of_counts(overlap, predicted, true, truth[0].numel())


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
    return f_of_histograms(*_histograms(*_check_video(scores, target)))


def score_object(video_id: str, scores: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> Record:
    """Record of one video for [`VideoScores`]: M_J, M_F, `num_frames` and `sounding_pixels` of the target.

    Raises:
        ValueError: as for [`jaccard`].
    """
    probabilities, truth = _check_video(scores, target)
    counts = _areas_of_object(probabilities, truth)
    return finish_object_record(video_id, counts, truth[0].numel(), *_histograms(probabilities, truth))


def score_labels(
    video_id: str, prediction: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray, num_labels: int
) -> Record:
    """Record of one video for [`VideoScores`]: areas of the classes in every frame, integers.

    Args:
        video_id (`str`)
        prediction (`(T, H, W)`), target (`(T, H, W)`): see [`SemanticScores.update`].
        num_labels (`int`): K.

    Raises:
        ValueError: shapes that differ, not integers, or ids that do not exist.
    """
    return finish_semantic_record(video_id, _label_areas(prediction, target, num_labels))


class SemanticScores:
    """IoU and F (beta^2 = 0.3) per class, and their means, of frames that come without video ids.

    Args:
        num_labels (`int`): K, background (index 0) included.
        protocol (`str`, defaults to `"avsbench"`): `"avsbench"`: the values of a class are means over the frames in
            which it is predicted or present (the evaluator of AVSBench and COMBO). `"dataset"`: intersections, unions
            and areas are summed over the data set first (CAVP and others). Numbers of the two are not comparable.

    Ignored pixels (255 in the target) count as false positives of the predicted class under `"avsbench"`, as in the
    release, and not at all under `"dataset"`. Sums are exact: the order of frames and of merging changes no bit.

    Raises:
        ValueError: fewer than two labels, or an unknown protocol.

    Examples:
        >>> scores = SemanticScores(num_labels=3)
        >>> result = scores.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]])).compute()
        >>> round(result["miou_present"], 3)
        1.0
    """

    def __init__(self, num_labels: int, protocol: str = "avsbench") -> None:
        if num_labels not in range(2, IGNORE_INDEX + 1):
            raise ValueError(f"num_labels: wanted 2 to 255 with the background, got {num_labels}.")
        check_protocol(protocol)
        self.num_labels, self.protocol = num_labels, protocol
        self.reset()

    def reset(self) -> SemanticScores:
        """Forget everything seen so far."""
        self.num_frames = 0
        self._areas: list[np.ndarray] = []  # (R, 6) each, see `class_areas`
        return self

    @property
    def sums(self) -> torch.Tensor:
        """float64 `(3, K)`: sums of IoU, of F, number of frames; or intersection, predicted area, true area."""
        return torch.from_numpy(self._sums())

    def update(self, prediction: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> SemanticScores:
        """Add frames; how they are cut into calls does not matter.

        Args:
            prediction (`(T, H, W)`): class ids 0..K-1.
            target (`(T, H, W)`): class ids 0..K-1, 255 = ignored.

        Raises:
            ValueError: shapes that differ, not integers, or ids that do not exist.
        """
        kinds = _label_areas(prediction, target, self.num_labels)
        self._areas.append(class_areas(kinds))
        self.num_frames += len(kinds[0])
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
        self._areas += other._areas
        self.num_frames += other.num_frames
        return self

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, of plain numbers and strings: JSON or a process group can carry it."""
        areas = [rows.tolist() for rows in self._areas]
        return {
            "num_labels": self.num_labels,
            "protocol": self.protocol,
            "num_frames": self.num_frames,
            "areas": areas,
        }

    def load_state_dict(self, state: dict[str, Any]) -> SemanticScores:
        """Replace what was seen so far by a `state_dict`.

        Raises:
            ValueError: of another number of labels or protocol.
        """
        if (state["num_labels"], state["protocol"]) != (self.num_labels, self.protocol):
            raise ValueError(
                f"the state has {state['num_labels']} labels ({state['protocol']}), wanted {self.num_labels} "
                f"({self.protocol})."
            )
        self.num_frames = state["num_frames"]
        self._areas = [np.array(rows, dtype=np.int64).reshape(-1, 6) for rows in state["areas"]]
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
        return scores_of_sums(self._sums(), self.protocol, self.num_frames)

    def _sums(self) -> np.ndarray:
        areas = np.concatenate([np.zeros((0, 6), np.int64), *self._areas])
        return sum_classes(areas, self.num_labels, self.protocol)


def _areas_of_object(probabilities: torch.Tensor, truth: torch.Tensor) -> list[np.ndarray]:
    """Overlap, predicted and true area of every frame: int64 (T,)."""
    predicted = probabilities > MASK_THRESHOLD
    areas = torch.stack([(mask.flatten(1)).sum(1) for mask in (predicted & truth, predicted, truth)])
    return list(areas.cpu().numpy())


def _histograms(probabilities: torch.Tensor, truth: torch.Tensor) -> list[np.ndarray]:
    """How many pixels (all; of the object) reach exactly the first n thresholds: int64 (T, 256) each."""
    edges = torch.from_numpy(thresholds()).to(probabilities.device)
    probabilities, truth = probabilities.flatten(1).contiguous(), truth.flatten(1)
    bins = NUM_THRESHOLDS + 1
    # The thresholds lie evenly up to rounding: the number that are <= the score is known up to one.
    guess = (probabilities * (NUM_THRESHOLDS - 1) + 0.5).int()  # of the threshold next to the score
    index = guess + (edges.take(guess.long()) <= probabilities)
    index = index + bins * truth + 2 * bins * torch.arange(len(index), device=index.device, dtype=torch.int32)[:, None]
    counts = torch.bincount(index.flatten(), minlength=2 * bins * len(index)).view(-1, 2, bins).cpu().numpy()
    return [counts.sum(1), counts[:, 1]]


def _label_areas(
    prediction: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray, num_labels: int
) -> list[np.ndarray]:
    """Overlap, predicted, predicted where not ignored, and true area: int64 (T, K) each."""
    predicted = _check_ids(prediction, num_labels, "prediction", ignored=False)
    truth = _check_ids(target, num_labels, "target", ignored=True)
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {tuple(predicted.shape)} and target {tuple(truth.shape)} must agree.")
    truth = truth.to(predicted.device)
    columns = num_labels + 1  # the last one: ignored
    frame = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    place = torch.add(truth, predicted, alpha=columns).add_(frame, alpha=num_labels * columns)
    counts = torch.bincount(place.flatten(), minlength=num_labels * columns * len(truth)).cpu()
    counts = counts.view(-1, num_labels, columns)  # (T, predicted, true)
    known = counts[..., :num_labels]
    found = known.diagonal(dim1=1, dim2=2), counts.sum(2), known.sum(2), known.sum(1)
    return [areas.numpy() for areas in found]


def _check_video(
    scores: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores as float32 and target as bool, (T, H, W) each, on the scores' device."""
    probabilities = _tensor(scores, "scores")
    return check_object(probabilities, _tensor(target, "target").to(probabilities.device))


def _tensor(values: Any, name: str) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"{name}: wanted a tensor or an array of numbers, got {kind}.")
    return torch.as_tensor(values)


def _check_ids(labels: torch.Tensor | np.ndarray, num_labels: int, name: str, ignored: bool) -> torch.Tensor:
    """Class ids as int64 (T, H, W); ignored pixels, where there may be some, as `num_labels`."""
    ids = _tensor(labels, name)
    if ids.ndim != 3 or not ids.numel():
        raise ValueError(f"{name}: wanted shape (T, H, W) with at least one pixel, got {tuple(ids.shape)}.")
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"{name}: wanted integer class ids, got {ids.dtype}; scores need argmax first.")
    ids = ids.long()
    lowest, highest = ids.aminmax()
    if lowest >= 0 and highest < num_labels:
        return ids
    wrong = (ids < 0) | (ids >= num_labels)
    if ignored:
        wrong &= ids != IGNORE_INDEX
    if wrong.any():
        raise ValueError(f"{name}: class ids {ids[wrong].unique().tolist()[:8]} do not exist, there are {num_labels}.")
    return ids.clamp(max=num_labels)

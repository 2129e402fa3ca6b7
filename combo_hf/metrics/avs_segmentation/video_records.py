"""The arithmetic of AVSBench's measures, in plain numpy: pixels of a video -> a small record -> scores of a data set.

A record holds what one video contributes: two numbers (M_J, M_F), or the areas of its classes as integers. Records are
put together by video id, and sums over videos are exactly rounded, so that neither the order of videos nor the number
of processes changes a single bit. The `evaluate` module takes this file with it; it needs nothing else of combo_hf.

Departure from the release: areas are counted in integers where it adds float32; results agree to 1e-6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


BETA_SQUARED = 0.3
NUM_THRESHOLDS = 255
MASK_THRESHOLD = 0.5
UNION_EPSILON = 1e-7  # of M_J; it only keeps 0 / 0 away
PROTOCOLS = ("avsbench", "dataset")
IGNORE_INDEX = 255

Record = dict[str, Any]


def thresholds() -> np.ndarray:
    """The release's `linspace(0, 1 - 1e-10, 255)` in float32, bit for bit; the last one is 1."""
    index = np.arange(NUM_THRESHOLDS)
    step = np.float64(np.float32(1) / np.float32(NUM_THRESHOLDS - 1))
    # counted from both ends, and rounded once
    rising, falling = step * index, 1 - step * (NUM_THRESHOLDS - 1 - index)
    return np.where(index < NUM_THRESHOLDS // 2, rising, falling).astype(np.float32)


def jaccard_of_counts(overlap: np.ndarray, predicted: np.ndarray, true: np.ndarray, pixels: int) -> float:
    """M_J of one video from the areas of its frames, integers `(T,)` in pixels.

    A frame in which nothing sounds scores the share of its pixels that are predicted as such.
    """
    empty = true == 0
    hits = np.where(empty, pixels - predicted, overlap)
    union = np.where(empty, pixels, predicted + true - overlap)
    return math.fsum(hits / (union + UNION_EPSILON)) / len(hits)


def f_of_histograms(everything: np.ndarray, sounding: np.ndarray) -> float:
    """M_F of one video: maximum over thresholds of the F curve, a mean over its frames with an object; 0 without any.

    Args:
        everything (`(T, 256)`): how many pixels of a frame reach exactly the first n thresholds, n = 0..255.
        sounding (`(T, 256)`): the same, of the pixels of the object.
    """
    true = sounding.sum(1)
    everything, sounding, true = everything[true > 0], sounding[true > 0], true[true > 0]
    if not len(true):
        return 0.0
    # A pixel that reaches n thresholds reaches the first n of them: sums from the end, without "reaches none".
    positives, hits = (np.cumsum(counts[:, ::-1], axis=1)[:, ::-1][:, 1:] for counts in (everything, sounding))
    precision, recall = hits / (positives + 1e-20), hits / true[:, None]
    both = BETA_SQUARED * precision + recall
    curve = np.divide((1 + BETA_SQUARED) * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return float(curve.mean(0).max())


def object_record(video_id: str, scores: Any, target: Any) -> Record:
    """Record of one S4 or MS3 video.

    Args:
        video_id (`str`)
        scores (`(T, H, W)`): probability in [0, 1] that a pixel belongs to a sounding object.
        target (`(T, H, W)`): bool, or numbers that are all 0 or 1.

    Raises:
        ValueError: shapes that differ, no pixel, scores outside [0, 1], targets other than 0 and 1.
    """
    probabilities, truth = check_object(np.asarray(scores), np.asarray(target))
    frames = len(truth)
    probabilities, truth = probabilities.reshape(frames, -1), truth.reshape(frames, -1)
    predicted = probabilities > MASK_THRESHOLD
    counts = [(predicted & truth).sum(1), predicted.sum(1), truth.sum(1)]
    bins = NUM_THRESHOLDS + 1
    index = np.searchsorted(thresholds(), probabilities, side="right") + bins * np.arange(frames)[:, None]
    everything, sounding = (
        np.bincount(chosen, minlength=bins * frames).reshape(frames, bins) for chosen in (index.ravel(), index[truth])
    )
    return finish_object_record(video_id, counts, truth.shape[1], everything, sounding)


def finish_object_record(
    video_id: str, counts: Sequence[np.ndarray], pixels: int, everything: np.ndarray, sounding: np.ndarray
) -> Record:
    """The record from integers: `counts` are overlap, predicted and true area of the frames."""
    overlap, predicted, true = counts
    return {
        "video_id": video_id,
        "num_frames": len(true),
        "M_J": jaccard_of_counts(overlap, predicted, true, pixels),
        "M_F": f_of_histograms(everything, sounding),
        "sounding_pixels": int(true.sum()),
    }


def check_object(scores: Any, target: Any) -> tuple[Any, Any]:
    """Scores as float32 and target as bool, `(T, H, W)` each; numpy arrays or tensors on one device.

    Raises:
        ValueError: see [`object_record`].
    """
    if scores.ndim != 3 or tuple(target.shape) != tuple(scores.shape) or 0 in scores.shape:
        raise ValueError(
            "wanted scores and target of one shape (T, H, W) with at least one pixel, got "
            f"{tuple(scores.shape)} and {tuple(target.shape)}."
        )
    if "float" not in str(scores.dtype):
        raise ValueError(f"scores: wanted floats in [0, 1], got {scores.dtype}.")
    low, high = scores.min(), scores.max()
    if not (low >= 0 and high <= 1):  # false for NaN as well
        raise ValueError(f"scores: wanted probabilities in [0, 1], got {float(low)} to {float(high)}; apply softmax.")
    if "bool" not in str(target.dtype):
        if not ((target == 0) | (target == 1)).all():
            raise ValueError(f"target: wanted only 0 and 1, got up to {target.max().item()}; pass target > 0.")
        target = target == 1
    return (scores.astype(np.float32) if isinstance(scores, np.ndarray) else scores.float()), target


def semantic_record(video_id: str, prediction: Any, target: Any, num_labels: int | None = None) -> Record:
    """Record of one AVSS video: the areas of every class that is predicted or present in a frame.

    Args:
        video_id (`str`)
        prediction (`(T, H, W)`): class ids 0..K-1.
        target (`(T, H, W)`): class ids 0..K-1, 255 = ignored.
        num_labels (`int`, *optional*): K; default 255.

    Raises:
        ValueError: shapes that differ, no pixel, not integers, or ids that do not exist.
    """
    labels = num_labels or IGNORE_INDEX
    predicted = check_ids(prediction, labels, "prediction", ignored=False)
    truth = check_ids(target, labels, "target", ignored=True)
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and target {truth.shape} must agree.")
    labels = 1 + int(max(predicted.max(), np.where(truth == IGNORE_INDEX, 0, truth).max()))
    frame = labels * np.arange(len(truth))[:, None, None]

    def areas(ids: np.ndarray, where: np.ndarray) -> np.ndarray:
        counts = np.bincount((ids + frame)[where], minlength=labels * len(truth))
        return counts.reshape(len(truth), labels)

    valid = truth != IGNORE_INDEX
    kinds = [areas(predicted, predicted == truth), areas(predicted, np.ones_like(valid)), areas(predicted, valid),
             areas(truth, valid)]  # fmt: skip
    return finish_semantic_record(video_id, kinds)


def finish_semantic_record(video_id: str, kinds: Sequence[np.ndarray]) -> Record:
    """The record from integers, see [`class_areas`]."""
    return {"video_id": video_id, "num_frames": len(kinds[0]), "areas": class_areas(kinds).tolist()}


def class_areas(kinds: Sequence[np.ndarray]) -> np.ndarray:
    """Areas of the classes that are predicted or present in a frame.

    Args:
        kinds: overlap, predicted, predicted where not ignored, and true area, `(T, K)` each.

    Returns:
        int64 `(R, 6)`: a row for every such frame and class, which come first.
    """
    frames, classes = np.nonzero(kinds[1] + kinds[3])
    return np.stack([frames, classes, *(kind[frames, classes] for kind in kinds)], axis=1)


def check_ids(labels: Any, num_labels: int, name: str, ignored: bool) -> np.ndarray:
    """Class ids as int64 `(T, H, W)`.

    Raises:
        ValueError: see [`semantic_record`].
    """
    ids = np.asarray(labels)
    if ids.ndim != 3 or not ids.size:
        raise ValueError(f"{name}: wanted shape (T, H, W) with at least one pixel, got {ids.shape}.")
    if ids.dtype.kind not in "iub":
        raise ValueError(f"{name}: wanted integer class ids, got {ids.dtype}; scores need argmax first.")
    ids = ids.astype(np.int64)
    wrong = (ids < 0) | (ids >= num_labels)
    if ignored:
        wrong &= ids != IGNORE_INDEX
    if wrong.any():
        found = np.unique(ids[wrong]).tolist()[:8]
        raise ValueError(f"{name}: class ids {found} do not exist, there are {num_labels}.")
    return ids


def class_scores(
    overlap: np.ndarray, predicted: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU, F and "occurs" of areas in pixels, elementwise; both scores are 0 where a class does not occur."""
    union = predicted + true - overlap
    iou = overlap / (union + np.finfo(np.float64).eps)
    # precision = overlap / predicted and recall = overlap / true, multiplied out
    both = BETA_SQUARED * true + predicted
    f_score = np.divide((1 + BETA_SQUARED) * overlap, both, out=np.zeros_like(iou), where=both > 0)
    return iou, f_score, union > 0


def put_together(records: Iterable[Record]) -> dict[str, Record]:
    """Records by video id, sorted; a video that comes twice, as distributed samplers repeat some, counts once.

    Of two records that differ in the last bits (a network may round differently in another batch) the same one is
    kept whichever comes first.

    Raises:
        ValueError: one id for two videos with different ground truth.
    """
    found: dict[str, Record] = {}
    for record in records:
        name = record["video_id"]
        other = found.get(name, record)
        if other is not record and _ground_truth(other) != _ground_truth(record):
            raise ValueError(f"two videos with different ground truth are both called {name!r}; give each its own id.")
        found[name] = min(other, record, key=lambda entry: json.dumps(entry, sort_keys=True))
    return dict(sorted(found.items()))


def _ground_truth(record: Mapping[str, Any]) -> tuple[Any, ...]:
    areas = record.get("areas")
    true = None if areas is None else [(row[0], row[1], row[5]) for row in areas if row[5]]
    return record["num_frames"], record.get("sounding_pixels"), true


def object_scores(records: Iterable[Record]) -> dict[str, Any]:
    """M_J and M_F of a data set (means over videos), `num_videos` and `num_frames`.

    Raises:
        ValueError: no video, or a record without M_J.
    """
    videos = list(put_together(records).values())
    if not videos or any(video.get("M_J") is None for video in videos):
        raise ValueError("M_J and M_F need at least one video, and scores (probabilities) for every one.")
    means = {name: math.fsum(video[name] for video in videos) / len(videos) for name in ("M_J", "M_F")}
    return means | {"num_videos": len(videos), "num_frames": sum(video["num_frames"] for video in videos)}


def semantic_scores(records: Iterable[Record], num_labels: int, protocol: str = "avsbench") -> dict[str, Any]:
    """The scores of [`summarize_classes`], with `num_videos`, of AVSS videos.

    Args:
        records: of [`semantic_record`].
        num_labels (`int`): K, background included.
        protocol (`str`): "avsbench" or "dataset".

    Raises:
        ValueError: no video, a record without areas, a class id that does not exist, or an unknown protocol.
    """
    check_protocol(protocol)
    videos = list(put_together(records).values())
    if not videos or any(video.get("areas") is None for video in videos):
        raise ValueError("semantic scores need at least one video, and a label map for every one.")
    rows = np.array([row for video in videos for row in video["areas"]], dtype=np.int64).reshape(-1, 6)
    sums = sum_classes(rows, num_labels, protocol)
    num_frames = sum(video["num_frames"] for video in videos)
    return {"num_videos": len(videos)} | scores_of_sums(sums, protocol, num_frames)


def sum_classes(areas: np.ndarray, num_labels: int, protocol: str) -> np.ndarray:
    """Sums over all frames, by class; the same bits in any order of the rows.

    Args:
        areas: int64 `(R, 6)`, see [`class_areas`].
        num_labels (`int`): K, background included.
        protocol (`str`): "avsbench" or "dataset".

    Returns:
        float64 `(3, K)`: "avsbench": sums of IoU and of F, number of frames; "dataset": intersection, predicted area,
        true area.

    Raises:
        ValueError: a class id that does not exist.
    """
    classes = areas[:, 1]
    if classes.max(initial=0) >= num_labels:
        raise ValueError(f"class id {classes.max()} does not exist, there are {num_labels}.")
    overlap, predicted, valid, true = areas[:, 2:].T
    if protocol == "dataset":
        totals = np.zeros((3, num_labels), dtype=np.int64)
        for total, area in zip(totals, (overlap, valid, true), strict=True):
            np.add.at(total, classes, area)
        return totals.astype(np.float64)
    iou, f_score, _ = class_scores(overlap, predicted, true)
    order = np.argsort(classes, kind="stable")
    counts = np.bincount(classes, minlength=num_labels)
    ends = np.cumsum(counts).tolist()
    parts = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    sums = [[math.fsum(ordered[part]) for part in parts] for ordered in (iou[order].tolist(), f_score[order].tolist())]
    return np.array([*sums, counts], dtype=np.float64)


def scores_of_sums(sums: np.ndarray, protocol: str, num_frames: int) -> dict[str, Any]:
    """The scores of [`summarize_classes`] from [`sum_classes`]."""
    if protocol == "dataset":
        iou, f_score, seen = class_scores(*sums)
    else:
        seen = sums[2] > 0
        iou, f_score = sums[:2] / np.maximum(sums[2], 1)
    return summarize_classes(iou, f_score, seen, num_frames)


def video_iou(record: Record) -> float:
    """Mean IoU of one AVSS video over its frames and the classes predicted or present in them, with background."""
    iou, _, counted = class_scores(*np.array(record["areas"], dtype=np.int64).reshape(-1, 6)[:, [2, 3, 5]].T)
    return math.fsum(iou[counted]) / max(1, int(counted.sum()))


def summarize_classes(iou: np.ndarray, f_score: np.ndarray, seen: np.ndarray, num_frames: int) -> dict[str, Any]:
    """Means over classes, from values `(K,)` that are 0 for classes that never occur.

    Returns:
        `dict`: `miou`, `fscore`: mean over all K classes, one that never occurs counts 0 (the published numbers);
        `miou_present`, `fscore_present`: over the classes that occur; `miou_nobg`, `fscore_nobg`: over the classes
        1..K-1; `miou_nobg_upstream`, `fscore_nobg_upstream`: what the release logs under that name, which leaves out
        the LAST class instead of the background; `per_class_iou`, `per_class_fscore`: lists of K, `None` for a class
        that never occurs; `num_frames`.
    """
    result: dict[str, Any] = {"num_frames": num_frames}
    for name, mean, values in (("iou", "miou", iou), ("fscore", "fscore", f_score)):
        parts = {"": values, "_present": values[seen], "_nobg": values[1:], "_nobg_upstream": values[:-1]}
        result |= {f"{mean}{part}": math.fsum(chosen) / max(1, len(chosen)) for part, chosen in parts.items()}
        pairs = zip(values.tolist(), seen.tolist(), strict=True)
        result[f"per_class_{name}"] = [value if occurs else None for value, occurs in pairs]
    return result


def check_protocol(protocol: str) -> None:
    """Refuse an unknown protocol with a ValueError."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: wanted one of {list(PROTOCOLS)}, got {protocol!r}.")

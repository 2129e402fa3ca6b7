"""The AVSBench measures as an `evaluate` module: `evaluate.load("<this folder>", "ms3")`.

A video is reduced to a few numbers as soon as it is added (see `video_records.py`, which travels with this file), so a
data set of any size fits, and the scores of several processes are those of one, to the bit.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

# relative: `evaluate` takes an absolute import for a package that has to be installed
from .video_records import check_protocol, object_record, object_scores, semantic_record, semantic_scores


SUBSETS = ("s4", "ms3", "avss")
OBJECT_SUBSETS = ("s4", "ms3")
AVSBENCH_LABELS = 71
_DESCRIPTION = """
Scores of audio-visual segmentation as AVSBench defines them: M_J (mean intersection over union) and M_F (F-score with
beta^2 = 0.3, best of 255 thresholds) of the videos of S4 and MS3; IoU and F per class and their means for AVSS.
"""
_CITATION = """\
@inproceedings{zhou2022avs,
  title = {Audio-Visual Segmentation},
  author = {Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and Birchfield, Stan and
            Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran},
  booktitle = {European Conference on Computer Vision},
  year = {2022}
}
"""
_INPUTS = """
Args:
    predictions: one entry per video. "s4", "ms3": probability of "sounding", floats (T, H, W) in [0, 1]. "avss": class
        ids (T, H, W), or scores of the classes (T, K, H, W).
    references: one entry per video, (T, H, W): 0 and 1; for "avss" class ids, 255 = ignored.
    video_ids: names of the videos. A video that comes twice counts once; without names every entry is its own video.
    subset: "s4", "ms3" or "avss". It may also be given to `evaluate.load`, or left out: class ids mean "avss", floats
        (T, H, W) the other two, which have one rule.
    protocol (compute, "avss"): "avsbench", the values of a class are means over the frames in which it is predicted or
        present; "dataset": areas are summed over all frames first. Numbers of the two are not comparable.
    num_labels (compute, "avss"): K with the background, default 71.
    per_video (compute): also M_J and M_F of every video ("s4", "ms3").
Returns:
    "s4", "ms3": M_J, M_F, num_videos, num_frames. "avss": miou and fscore (over all classes), miou_present and
    fscore_present (over those that occur), miou_nobg and fscore_nobg (without the background), miou_nobg_upstream and
    fscore_nobg_upstream (without the LAST class: what the official evaluator logs as "no background"), per_class_iou
    and per_class_fscore (None for a class that never occurs), num_videos, num_frames.
Example:
    >>> import evaluate
    >>> metric = evaluate.load("combo_hf/metrics/avs_segmentation", "s4")
    >>> metric.add(prediction=[[[0.9, 0.1]]], reference=[[[1, 0]]], video_id="a")
    >>> round(metric.compute()["M_J"], 3)
    1.0
"""


class AvsSegmentation(evaluate.Metric):
    """M_J, M_F and semantic scores of AVSBench.

    Args:
        *args, **kwargs: of [`evaluate.Metric`]; with `num_process` above 1 an `experiment_id` is needed, too.
        subset (`str`, *optional*): the same as the configuration's name.

    Raises:
        ValueError: an unknown subset.
    """

    def __init__(self, *args: Any, subset: str | None = None, **kwargs: Any) -> None:
        if subset is not None:
            kwargs["config_name"] = subset
        super().__init__(*args, **kwargs)
        self.subset = _check_subset(None if self.config_name == "default" else self.config_name)
        self._kind: bool | None = None  # of what was added: True for S4 and MS3
        self._count = 0

    def _info(self) -> evaluate.MetricInfo:
        number, real = datasets.Value("int64"), datasets.Value("float64")
        # not the pictures themselves: what is left of a video
        columns = {
            "video_id": datasets.Value("string"),
            "num_frames": number,
            "M_J": real,
            "M_F": real,
            "sounding_pixels": number,
            "areas": datasets.Sequence(datasets.Sequence(number)),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
            reference_urls=["https://github.com/OpenNLPLab/AVSBench"],
        )

    def add_batch(
        self, *, predictions: Any = None, references: Any = None, video_ids: Any = None, subset: str | None = None
    ) -> None:
        """Add videos; how they are cut into calls does not matter.

        Raises:
            ValueError: different numbers of predictions, references and names, impossible values, or another kind of
                prediction than before. Nothing is added then.
        """
        if predictions is None or references is None:
            raise ValueError("wanted predictions and references, one entry per video.")
        numbers = [len(predictions), len(references), len(predictions if video_ids is None else video_ids)]
        if len(set(numbers)) != 1:
            raise ValueError(f"predictions, references and video_ids differ in number: {numbers}.")
        if not numbers[0]:
            return
        if video_ids is None:
            video_ids = [f"{self.process_id}/{self._count + index}" for index in range(numbers[0])]
        subset = self._agree(subset)
        videos = [
            _record(str(name), prediction, reference, subset)
            for name, prediction, reference in zip(video_ids, predictions, references, strict=True)
        ]
        kinds = {"M_J" in video for video in videos} | ({self._kind} - {None})
        if len(kinds) > 1:
            raise ValueError("got probabilities for some videos and class ids for others: score them apart.")
        columns = {name: [video.get(name) for video in videos] for name in self._feature_names()}
        super().add_batch(**columns)
        self._kind, self._count, self.subset = kinds.pop(), self._count + len(videos), subset

    def add(
        self, *, prediction: Any = None, reference: Any = None, video_id: Any = None, subset: str | None = None
    ) -> None:
        """Add one video.

        Raises:
            ValueError: as for `add_batch`.
        """
        if prediction is None or reference is None:
            raise ValueError("wanted a prediction and a reference of one video.")
        names = None if video_id is None else [video_id]
        self.add_batch(predictions=[prediction], references=[reference], video_ids=names, subset=subset)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        video_ids: Any = None,
        subset: str | None = None,
        **options: Any,
    ) -> dict[str, Any] | None:
        """Scores of all videos that were added (by all processes; the first one gets them, the others `None`).

        Raises:
            ValueError: no video, or as for `add_batch`.
        """
        subset = self._agree(subset)
        check_protocol(options.get("protocol", "avsbench"))  # later would be too late: what was added is gone then
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, video_ids=video_ids, subset=subset)
        if self.writer is None:
            if self.num_process == 1:
                raise ValueError("no videos: call add or add_batch before compute.")
            # a process without videos: the others wait for its file
            self.selected_feature_format = self.features
            self._init_writer()
        try:
            return super().compute(subset=subset, **options)
        finally:
            self._kind, self._count = None, 0

    def _compute(
        self,
        *,
        subset: str | None = None,
        protocol: str = "avsbench",
        num_labels: int = AVSBENCH_LABELS,
        per_video: bool = False,
        **columns: Any,
    ) -> dict[str, Any]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        records = [{name: value for name, value in row.items() if value is not None} for row in rows]
        kinds = {"M_J" in record for record in records}
        if len(kinds) > 1:
            raise ValueError("got probabilities for some videos and class ids for others: score them apart.")
        if subset is not None and (subset in OBJECT_SUBSETS) not in kinds:
            raise ValueError(f"what was added does not belong to subset {subset!r}.")
        if False in kinds:
            return semantic_scores(records, num_labels, protocol)
        result = object_scores(records)
        if per_video:
            found = sorted(records, key=lambda record: record["video_id"])
            result["per_video"] = {
                record["video_id"]: {"M_J": record["M_J"], "M_F": record["M_F"]} for record in found
            }
        return result

    def _agree(self, subset: str | None) -> str | None:
        """The subset of this call, which must be that of the others."""
        if self.subset is not None and subset not in (None, self.subset):
            raise ValueError(f"these scores are of subset {self.subset!r}, got {subset!r}; load the module again.")
        return _check_subset(subset) or self.subset


def _check_subset(subset: str | None) -> str | None:
    if subset is not None and subset not in SUBSETS:
        raise ValueError(f"subset: wanted one of {list(SUBSETS)}, got {subset!r}.")
    return subset


def _record(name: str, prediction: Any, reference: Any, subset: str | None) -> dict[str, Any]:
    prediction, reference = _array(prediction), _array(reference)
    if subset is None:
        scores = prediction.dtype.kind == "f" and prediction.ndim == 3
        subset = "s4" if scores else "avss"
    try:
        if subset in OBJECT_SUBSETS:
            return object_record(name, prediction, reference)
        if prediction.dtype.kind == "f" and prediction.ndim == 4:
            if np.isnan(prediction).any():
                raise ValueError("scores: not a number among them.")
            prediction = prediction.argmax(1)
        return semantic_record(name, prediction, reference)
    except ValueError as error:
        raise ValueError(f"video {name}: {error}") from error


def _array(values: Any) -> np.ndarray:
    """A numpy array of lists, arrays, or tensors on any device."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    if str(getattr(values, "dtype", "")) == "torch.bfloat16":
        values = values.float()
    return np.asarray(values)

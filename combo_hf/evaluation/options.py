"""What may be chosen in an evaluation, see `evaluation_run.py`."""

from __future__ import annotations

from dataclasses import dataclass

from combo_hf.metrics.avs_segmentation.video_records import check_protocol


KINDS = ("auto", "object", "semantic")


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        split: of the data set.
        subset: "s4", "ms3" or "avss"; needed where the data set has several.
        scores: "object": M_J and M_F, "sounding or not"; "semantic": scores of the classes; "auto": what belongs to
            the subset.
        protocol: of the semantic scores, see [`SemanticScores`]; may be changed afterwards without computing anew.
        batch_size: clips that go through the model together.
        limit: only the first so many videos.
        silence_audio: every log-mel is that of silence, to measure what the sound contributes.
        other_audio: every clip has another clip's sound, where there is one of another category: a model that listens
            scores less.
        blank_maskige: every Maskige is black, to measure what the Maskiges contribute.
        num_workers: processes that read and prepare clips while the model computes.
        sheet: so many best and so many worst videos are drawn; 0: no picture.

    Raises:
        ValueError: unknown names or numbers out of range.
    """

    split: str = "test"
    subset: str | None = None
    scores: str = "auto"
    protocol: str = "avsbench"
    batch_size: int = 1
    limit: int | None = None
    silence_audio: bool = False
    other_audio: bool = False
    blank_maskige: bool = False
    num_workers: int = 0
    sheet: int = 4

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        if self.scores not in KINDS:
            raise ValueError(f"scores: wanted one of {list(KINDS)}, got {self.scores!r}.")
        if self.silence_audio and self.other_audio:
            raise ValueError("silence_audio and other_audio exclude each other; choose one.")
        for name, least in (("batch_size", 1), ("limit", 1), ("num_workers", 0), ("sheet", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: wanted at least {least}, got {value}.")

"""What an evaluation is prepared from: options, a model, and the clips of a data set that it fits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from combo_hf import resolve_model
from combo_hf.data.clips import AvsbenchClips
from combo_hf.data.collate import ClipExample
from combo_hf.data.loading import load_avsbench
from combo_hf.data.subsets import OWN, holds_indices
from combo_hf.evaluation.files import fingerprint_ids
from combo_hf.evaluation.other_sounds import RowsWithOtherSounds
from combo_hf.evaluation.scores import ClipSet, label_names
from combo_hf.files.environment import fingerprint_weights
from combo_hf.metrics.avs_segmentation.video_records import check_protocol
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.processing_combo import ComboProcessor


VERSION = 2  # raise when what a line holds changes
SCORES = ("auto", "object", "semantic")


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
        if self.scores not in SCORES:
            raise ValueError(f"scores: wanted one of {list(SCORES)}, got {self.scores!r}.")
        if self.silence_audio and self.other_audio:
            raise ValueError("silence_audio and other_audio exclude each other; choose one.")
        for name, least in (("batch_size", 1), ("limit", 1), ("num_workers", 0), ("sheet", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: wanted at least {least}, got {value}.")


@dataclass
class Evaluation:
    """A prepared evaluation: what [`prepare_evaluation`] returns.

    Attributes:
        options: what was asked for; subset and scores filled in.
        settings: what the lines depend on; recorded in the output folder.
        model: in evaluation mode, on its device.
        clips: data set of [`ClipExample`].
        video_ids, categories: of the clips, in order.
        labels: names of the model's classes.
    """

    options: EvaluationOptions
    settings: dict[str, Any]
    model: ComboForAudioVisualSegmentation
    clips: ClipSet
    video_ids: list[str]
    categories: list[str]
    labels: list[str]

    @property
    def semantic(self) -> bool:
        return self.options.scores == "semantic"

    def batches(self) -> list[range]:
        """Indices of the clips that go through the model together; the same whatever is done already."""
        size, total = self.options.batch_size, len(self.video_ids)
        return [range(first, min(first + size, total)) for first in range(0, total, size)]


def prepare_evaluation(
    model: str | Path, data: str | Path, options: EvaluationOptions, device: str | torch.device = "cpu"
) -> Evaluation:
    """Load model and data and check that they fit.

    Raises:
        ValueError, FileNotFoundError, OSError, ImportError: see [`evaluate_dataset`].
    """
    folder = resolve_model(model)
    rows = load_avsbench(data, options.split, subset=options.subset)
    rows = rows if options.limit is None else rows.select(range(min(options.limit, len(rows))))
    if not len(rows):
        raise ValueError(f"{data}: split {options.split!r} has no videos.")
    network = ComboForAudioVisualSegmentation.from_pretrained(folder)
    torch.nn.Module.to(network, device).eval()  # the way round the annotation of transformers
    labels = label_names(network)
    options = _fill_in(options, rows, len(labels))
    ids = list(rows["video_id"])
    categories = [name or "" for name in rows["category"]] if "category" in rows.features else [""] * len(ids)
    _check_ids(ids)
    if options.scores == "semantic":
        _check_labels(labels, categories)
    # class ids that "sounding or not" takes: all, if rows say which subset they are of and so what 255 means
    most_labels = 255 if "subset" in rows.features else 2
    if options.other_audio:
        rows = RowsWithOtherSounds(rows, categories)
    clips = _clips(rows, most_labels, network, folder, options)
    settings = {
        "version": VERSION,
        "model": str(model),
        "weights": fingerprint_weights(network),
        "data": str(data),
        "split": options.split,
        "subset": options.subset,
        "videos": [len(ids), fingerprint_ids(ids)],
        "data_bytes": getattr(getattr(rows, "data", None), "nbytes", None),
        "scores": options.scores,
        "image_size": network.config.image_size,
        "background_weight": network.config.background_weight,
        "batch_size": options.batch_size,
        "silence_audio": options.silence_audio,
        "other_audio": options.other_audio,
        "blank_maskige": options.blank_maskige,
        "device": torch.device(device).type,
    }
    return Evaluation(options, settings, network, clips, ids, categories, labels)


class PreparedClips:
    """Clips for the model, with black Maskiges if wanted; an error names its clip."""

    def __init__(self, clips: ClipSet, blank_maskige: bool) -> None:
        self.clips, self.blank_maskige = clips, blank_maskige

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipExample:
        example = self.clips[index]
        if self.blank_maskige:
            return dataclasses.replace(example, maskiges=torch.zeros_like(example.frames))
        return example


def _fill_in(options: EvaluationOptions, rows: Any, num_labels: int) -> EvaluationOptions:
    """Subset and scores, from the data where they were not named."""
    found = sorted(set(rows["subset"])) if "subset" in rows.features else []
    subset = options.subset or (found[0] if len(found) == 1 else None)
    if subset is None:
        raise ValueError(f"the data set holds the subsets {found}; name one of them.")
    scores = options.scores
    if scores == "auto":
        one_class = subset == OWN and num_labels == 2
        scores = "semantic" if holds_indices(subset) and not one_class else "object"
    return dataclasses.replace(options, subset=subset, scores=scores)


def _check_ids(ids: list[str]) -> None:
    if len(set(ids)) != len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})[:3]
        raise ValueError(f"the data set has several videos of one id: {', '.join(twice)}; every video needs its own.")


def _check_labels(labels: list[str], categories: list[str]) -> None:
    """Refuse a model that knows none of the data set's classes; single ids are checked as clips are read."""
    if len(labels) == 2:
        raise ValueError(
            f"the model tells only {labels[0]!r} from {labels[1]!r}: it has no classes to score. Use a model with "
            'classes, or scores="object".'
        )
    wanted = {name for category in categories for name in category.split(",") if name}
    if wanted and not wanted & set(labels):
        raise ValueError(
            f"the model's {len(labels)} classes ({', '.join(labels[:4])}, ...) are not those of the data set "
            f"({', '.join(sorted(wanted)[:4])}, ...)."
        )


def _clips(
    rows: Any, most_labels: int, network: ComboForAudioVisualSegmentation, folder: str, options: EvaluationOptions
) -> PreparedClips:
    config = network.config
    use_maskige = config.use_maskige and not options.blank_maskige
    generator = None
    if use_maskige:
        try:
            processor = ComboProcessor.from_pretrained(folder)
            generator = processor.proposal_generator if processor.proposals_agreed else None  # then of rows only
        except OSError:  # weights without a processor
            generator = ComboProcessor().proposal_generator
    clips = AvsbenchClips(
        rows,
        image_size=config.image_size,
        num_labels=len(label_names(network)) if options.scores == "semantic" else most_labels,
        use_maskige=use_maskige,
        proposal_generator=generator,
        silence_audio=options.silence_audio,
    )
    return PreparedClips(clips, config.use_maskige and options.blank_maskige)

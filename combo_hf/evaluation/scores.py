"""Scores of a model on prepared clips, by the inference rule of the release.

Class maps are the sum over queries of class probability (softmax, "no object" left out afterwards) x mask probability
(bilinearly enlarged to the input size). Each clip is scored on its own; nothing depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from combo_hf.data.collate import ClipExample, ComboCollator
from combo_hf.files.progress import Progress
from combo_hf.label_maps_combo import class_scores, input_size, leading_class
from combo_hf.metrics import SemanticScores, VideoScores
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


MODEL_INPUTS = ("pixel_values", "maskige_values", "input_features", "num_frames")


class ClipSet(Protocol):
    """Numbered clips: [`ClipTensors`] or [`AvsbenchClips`], for example."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> ClipExample: ...


def evaluate_model(
    model: ComboForAudioVisualSegmentation,
    dataset: ClipSet,
    batch_size: int = 8,
    binary: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a model at its input size.

    Args:
        model ([`ComboForAudioVisualSegmentation`]): on any device; left in the mode it was in.
        dataset ([`ClipSet`]): without augmentation; frames without annotation are not scored.
        batch_size (`int`): clips that go through the model together.
        binary (`bool`): M_J and M_F, "sounding or not", whatever the number of classes.
        progress (`bool`): show a bar.

    Returns:
        `dict`: with `binary`, `M_J` and `M_F`, means over the clips; if the model has more than two classes, `miou`,
        `fscore` and the others of [`SemanticScores`]; and `num_clips`.

    Raises:
        ValueError: no annotated frame, batch_size below 1, or `binary=False` for a model of two classes.
    """
    num_labels = len(label_names(model))
    if not binary and num_labels == 2:
        raise ValueError("a model of two classes has no semantic scores; leave binary=True.")
    sounding, semantic = VideoScores(), SemanticScores(num_labels)
    for index, (class_maps, target) in enumerate(iter_class_maps(model, dataset, batch_size, progress)):
        sounding.update(str(index), sounding_scores(class_maps), truth_of(target))
        semantic.update(leading_class(class_maps, 1)[0], target)
    if not len(sounding):
        raise ValueError("no frame of the data set is annotated.")
    result: dict[str, Any] = {"num_clips": len(dataset)}
    if binary:
        scores = sounding.compute()
        result |= {name: scores[name] for name in ("M_J", "M_F")}
    return result if num_labels == 2 else result | semantic.compute()


@torch.inference_mode()
def iter_class_maps(
    model: ComboForAudioVisualSegmentation, dataset: ClipSet, batch_size: int = 8, progress: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Class maps (A, K, H, W) and target (A, H, W) of the A annotated frames of each clip, clip by clip."""
    if batch_size < 1:
        raise ValueError(f"batch_size: wanted at least 1, got {batch_size}.")
    training = model.training
    model.eval()
    try:
        with Progress("evaluation", "clip", len(dataset), shown=progress) as bar:
            for first in range(0, len(dataset), batch_size):
                examples = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
                for example, class_maps in zip(examples, predict_class_maps(model, examples), strict=True):
                    if len(class_maps):
                        yield class_maps, example.masks.to(class_maps.device)
                bar.advance(len(examples))
    finally:
        model.train(training)


@torch.inference_mode()
def predict_class_maps(model: ComboForAudioVisualSegmentation, examples: Sequence[ClipExample]) -> list[torch.Tensor]:
    """One pass through a model in evaluation mode: class maps (A, K, H, W) of the annotated frames of each clip.

    Raises:
        ValueError: no clip, clips of different sizes, or a Maskige is missing.
    """
    batch = ComboCollator(use_maskige=model.config.use_maskige)(examples)
    device = next(model.parameters()).device
    output = model(**{name: batch[name].to(device) for name in MODEL_INPUTS if name in batch})
    counts = batch["num_frames"].tolist()
    predictions = zip(
        examples,
        output.class_queries_logits.split(counts),  # (T, Q, K + 1) each
        output.masks_queries_logits.split(counts),  # (T, Q, h, w) each
        strict=True,
    )
    maps = []
    for example, classes, masks in predictions:
        known = example.label_frames.to(device)
        maps.append(class_maps_of(classes[known], masks[known]))
    return maps


def class_maps_of(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """(A, Q, K + 1) and (A, Q, h, w) -> [`class_scores`] of every frame, (A, K, H, W) at the network's input size."""
    height, width = input_size(mask_logits)
    maps = mask_logits.new_empty(len(class_logits), class_logits.shape[-1] - 1, height, width, dtype=torch.float32)
    for index, frame in enumerate(zip(class_logits, mask_logits, strict=True)):
        maps[index] = class_scores(*frame)
    return maps


def sounding_scores(class_maps: torch.Tensor) -> torch.Tensor:
    """Probability that something sounds: (A, K, H, W) -> (A, H, W).

    The softmax over background and the best other class. With two classes that is the release's rule; with more, its
    softmax over all K maps, whose values lie in about 0..1, would give a pixel of clear background (1, 0, 0, ...) a
    score above one half, because it adds up K - 1 classes. So the threshold 0.5 is the argmax for any K.
    """
    return (class_maps[:, 1:].amax(1) - class_maps[:, 0]).sigmoid()


def truth_of(target: torch.Tensor) -> torch.Tensor:
    """Class ids (A, H, W) -> bool (A, H, W): any class but the background; ignored pixels (255) are none."""
    return (target > 0) & (target != 255)


def label_names(model: ComboForAudioVisualSegmentation) -> list[str]:
    """Names of the K classes, by id."""
    names = model.config.id2label or {}
    return [names[index] for index in range(len(names))]

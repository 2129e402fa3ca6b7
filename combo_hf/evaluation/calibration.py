"""The background's weight (`background_weight` of [`ComboConfig`]) that suits a model, found on clips with masks.

In every pixel the scores of all queries add up. Where training was short, several queries take the background in one
place while one takes the object, so that the plain comparison of the release finds too few objects though their masks
are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from combo_hf.evaluation.scores import ClipSet, iter_class_maps, truth_of
from combo_hf.metrics import jaccard
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


BACKGROUND_WEIGHTS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)


def calibrate_background(
    model: ComboForAudioVisualSegmentation, dataset: ClipSet, batch_size: int = 8, progress: bool = False
) -> tuple[float, dict[float, float]]:
    """Find the weight of the background with the highest M_J ("sounding or not", whatever the number of classes).

    The model is left as it is; keep the weight with `model.config.background_weight = weight`. Use clips that are
    neither trained on nor tested with.

    Args:
        model, dataset, batch_size, progress: as for [`evaluate_model`].

    Returns:
        `tuple[float, dict[float, float]]`: the weight, and M_J by weight.

    Raises:
        ValueError: no frame of the data set is annotated, or a batch_size below 1.
    """
    weight = model.config.background_weight
    maps = iter_class_maps(model, dataset, batch_size, progress)
    return best_background([overlaps_by_weight(scores, target, weight) for scores, target in maps])


def overlaps_by_weight(class_maps: torch.Tensor, target: torch.Tensor, weight: float) -> list[float]:
    """M_J of one video with each of `BACKGROUND_WEIGHTS`.

    Args:
        class_maps: (A, K, H, W), in which the background has been weighed with `weight`.
        target: (A, H, W), class ids; 255 is ignored.
        weight: the model's.
    """
    truth, objects, background = truth_of(target), class_maps[:, 1:].amax(1), class_maps[:, 0] / weight
    return [jaccard((objects > factor * background).float(), truth) for factor in BACKGROUND_WEIGHTS]


def best_background(overlaps: Sequence[Sequence[float]]) -> tuple[float, dict[float, float]]:
    """Best weight and M_J by weight, of the videos' [`overlaps_by_weight`]; of equals the one nearest to 1.

    Raises:
        ValueError: no video.
    """
    if not overlaps:
        raise ValueError("no frame of the data set is annotated: there is nothing to calibrate with.")
    means = dict(zip(BACKGROUND_WEIGHTS, np.mean(overlaps, axis=0).tolist(), strict=True))
    return max(means, key=lambda factor: means[factor]), means

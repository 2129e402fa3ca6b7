"""One loss for one optimizer step, however its clips are spread over batches and processes.

Every term of the loss is a sum divided by a count: mask and dice by the number of target masks, the class term by the
weights of its queries, the consistency by the number of neighbouring frames. A mean of such quotients depends on how
the clips were dealt out; here each term is rescaled so that the mean over batches and processes is the quotient of the
sums. The number of target masks is averaged over processes in the release too; the other two counts, and batches that
are accumulated, are this package's choice. One process without accumulation is the release's loss as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


COUNTS = {"loss_mask": 0, "loss_dice": 0, "loss_class": 1, "loss_consistency": 2}  # kind of term -> its count


def batch_counts(batch: dict[str, Any], config: Any) -> list[float]:
    """What the terms of one batch are divided by.

    Args:
        batch: of [`ComboCollator`].
        config ([`ComboConfig`]): for `num_queries`, `no_object_weight` and `consistency_window`.

    Returns:
        Target masks; summed class weights of the queries (matched ones weigh 1); pairs of neighbouring frames.
    """
    classes = [len(labels) for labels in batch["class_labels"]]
    matched = sum(min(count, config.num_queries) for count in classes)
    unmatched = len(classes) * config.num_queries - matched
    window = config.consistency_window
    pairs = [
        window is None or (frame + 1) % window > 0
        for frames in batch["num_frames"].tolist()
        for frame in range(frames - 1)
    ]
    return [float(sum(classes)), matched + config.no_object_weight * unmatched, float(sum(pairs))]


def term_scales(counts: Sequence[Sequence[float]], accelerator: Any) -> list[dict[str, float]]:
    """Factors on the terms of this process' batches, by kind of term, one dict a batch.

    Args:
        counts: [`batch_counts`] of each of the M batches of this process.
        accelerator: sums over its processes.
    """
    own = torch.tensor(counts, dtype=torch.float64)  # (M, 3)
    processes = accelerator.num_processes
    everywhere = own if processes == 1 else accelerator.reduce(own.to(accelerator.device), "sum").cpu()
    used = own.clone()
    used[:, 0] = (everywhere[:, 0] / processes).clamp(min=1)  # as the loss divides
    total = everywhere.sum(0)
    total[0] = total[0].clamp(min=1)
    shares = used * (len(counts) * processes) / total.where(total > 0, 1.0)
    return [{kind: float(row[index]) for kind, index in COUNTS.items()} for row in shares]


def term_kind(name: str) -> str:
    """`"loss_mask_3"` -> `"loss_mask"`."""
    return next(kind for kind in COUNTS if name.startswith(kind))


def rescale(loss_dict: dict[str, torch.Tensor], scales: dict[str, float]) -> dict[str, torch.Tensor]:
    """The terms by kind, summed over layers and rescaled, in the order of `COUNTS`."""
    kinds: dict[str, list[torch.Tensor]] = {kind: [] for kind in COUNTS}
    for name, term in loss_dict.items():
        kinds[term_kind(name)].append(term.float())
    return {kind: scales[kind] * torch.stack(terms).sum() for kind, terms in kinds.items() if terms}

"""The baseline of the loss: layer by layer and frame by frame, every cost matrix fetched on its own."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf

from combo_hf.configuration_combo import ComboConfig
from combo_hf.loss_combo import ComboLoss, sample_points


Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def reference_loss(
    criterion: ComboLoss,
    predictions: list[tuple[torch.Tensor, torch.Tensor]],
    mask_labels: list[torch.Tensor],
    class_labels: list[torch.Tensor],
    label_frames: torch.Tensor,
    num_frames: list[int],
) -> torch.Tensor:
    """The training loss (scalar) of [`ComboLoss`], whose arguments these are."""
    config = criterion.config
    total = predictions[0][0].new_zeros(())
    masks = float(max(1, sum(len(labels) for labels in class_labels)))
    for index, (classes, maps) in enumerate(predictions):
        chosen, shown = classes[label_frames], maps[label_frames]
        pairs = match_layer(config, chosen, shown, mask_labels, class_labels)
        total = total + class_loss(config, chosen, class_labels, pairs)
        total = total + mask_loss(config, shown, mask_labels, pairs) / masks
        if index < len(predictions) - 1:
            total = total + config.consistency_weight * consistency(config, maps, num_frames)
    return total


@torch.no_grad()
def match_layer(
    config: ComboConfig,
    classes: torch.Tensor,
    maps: torch.Tensor,
    mask_labels: list[torch.Tensor],
    class_labels: list[torch.Tensor],
) -> Pairs:
    """Hungarian matching of one layer: (query, target) indices per annotated frame."""
    from scipy.optimize import linear_sum_assignment

    pairs = []
    for logits, frame, targets, labels in zip(classes, maps, mask_labels, class_labels, strict=True):
        points = torch.rand(1, config.train_num_points, 2, device=frame.device)
        predicted = sample_points(frame[:, None], points.repeat(len(frame), 1, 1))[:, 0].float()  # (Q, P)
        targets = targets.to(frame)
        wanted = sample_points(targets[:, None], points.repeat(len(targets), 1, 1))[:, 0]  # (C, P)
        positive = nnf.binary_cross_entropy_with_logits(predicted, torch.ones_like(predicted), reduction="none")
        negative = nnf.binary_cross_entropy_with_logits(predicted, torch.zeros_like(predicted), reduction="none")
        cost = torch.einsum("qp,cp->qc", positive, wanted) + torch.einsum("qp,cp->qc", negative, 1 - wanted)
        inside = predicted.sigmoid()
        dice = 1 - (2 * torch.einsum("qp,cp->qc", inside, wanted) + 1) / (
            inside.sum(-1)[:, None] + wanted.sum(-1)[None] + 1
        )
        cost = config.mask_weight * cost / config.train_num_points + config.dice_weight * dice
        cost = (cost - config.class_weight * logits.softmax(-1)[:, labels]).cpu()
        queries, order = linear_sum_assignment(cost)
        pairs.append((torch.as_tensor(queries, device=frame.device), torch.as_tensor(order, device=frame.device)))
    return pairs


def class_loss(
    config: ComboConfig, classes: torch.Tensor, class_labels: list[torch.Tensor], pairs: Pairs
) -> torch.Tensor:
    """Weighted cross entropy of one layer."""
    no_object = classes.shape[-1] - 1
    target = torch.full(classes.shape[:2], no_object, dtype=torch.long, device=classes.device)
    for frame, (queries, order) in enumerate(pairs):
        target[frame, queries] = class_labels[frame][order]
    weight = torch.ones(no_object + 1, device=classes.device)
    weight[no_object] = config.no_object_weight
    return config.class_weight * nnf.cross_entropy(classes.transpose(1, 2), target, weight)


def mask_loss(config: ComboConfig, maps: torch.Tensor, mask_labels: list[torch.Tensor], pairs: Pairs) -> torch.Tensor:
    """Sum of weighted BCE and dice of one layer on sampled points (PointRend)."""
    source = torch.cat([maps[frame, queries] for frame, (queries, _) in enumerate(pairs)])[:, None]
    target = torch.cat([labels[order] for labels, (_, order) in zip(mask_labels, pairs, strict=True)])[:, None]
    count = config.train_num_points
    kept = int(count * config.importance_sample_ratio)
    with torch.no_grad():
        points = torch.rand(len(source), int(count * config.oversample_ratio), 2, device=source.device)
        uncertain = -sample_points(source, points)[:, 0].abs()
        rest = torch.rand(len(source), count - kept, 2, device=source.device)
        index = uncertain.topk(kept, dim=1).indices[..., None].expand(-1, -1, 2)
        points = torch.cat([points.gather(1, index), rest], dim=1)
        labels = sample_points(target.to(source), points)[:, 0]
    logits = sample_points(source, points)[:, 0]
    bce = nnf.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1).sum()
    inside = logits.sigmoid()
    dice = (1 - (2 * (inside * labels).sum(-1) + 1) / (inside.sum(-1) + labels.sum(-1) + 1)).sum()
    return config.mask_weight * bce + config.dice_weight * dice


def consistency(config: ComboConfig, maps: torch.Tensor, num_frames: list[int]) -> torch.Tensor:
    """L_ada of one layer, pair by pair."""
    terms, window = [], config.consistency_window
    for clip in maps.split(num_frames):
        for t in range(len(clip) - 1):
            if window is None or (t + 1) % window:
                cosine = nnf.cosine_similarity(clip[t].flatten(), clip[t + 1].flatten(), dim=0)
                distance = 1 - cosine
                terms.append(distance * (-distance).exp() if config.adaptive_consistency else distance)
    return torch.stack(terms).mean() if terms else maps.sum() * 0

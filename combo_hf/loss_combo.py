"""Losses of COMBO: Hungarian matching, class, mask (BCE and dice on sampled points), adaptive inter-frame consistency.

Mask2Former's criterion (targets: one binary mask per class present in an annotated frame, background included) with
deep supervision of the learned queries and every layer, plus L_ada (paper section 3.5) on all predictions but the
last. The costs of all layers and frames are brought to the CPU in one transfer, the pairs back in another; the masks
of all layers share one call per loss.

Axes: L predictions, A annotated frames, F packed frames, Q queries, K classes, P points, R matched pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

from .configuration_combo import ComboConfig
from .modeling_combo_kernels import constant, upload


# the terms of all layers: loss_mask_3, ...; loss_pixel is none of a layer, and only there with a `pixel_weight`
LOSS_KINDS = ("loss_class", "loss_mask", "loss_dice", "loss_consistency", "loss_pixel")
POINTS_AT_ONCE = 2048  # 0.8 MB for 100 queries: what a core's cache holds


class Matches(NamedTuple):
    """Matched pairs of all layers; R of each, since their number follows from the targets alone.

    Attributes:
        frames (`torch.LongTensor` of shape `(L, R)`): among the annotated frames.
        queries (`torch.LongTensor` of shape `(L, R)`)
        targets (`torch.LongTensor` of shape `(L, R)`): among the targets of all frames.
    """

    frames: torch.Tensor
    queries: torch.Tensor
    targets: torch.Tensor


class ComboLoss(nn.Module):
    """`(predictions, targets) -> {name: weighted loss}`; the sum of the dict is the training loss.

    Every term is a sum divided by a count of its kind ([`ComboLoss.counts`]). To share one loss between several
    batches or processes, add up their counts beforehand and pass the mean count of a batch as `divisors` (or as
    `loss_divisors` of the model): the mean of the losses of all batches is then the loss of all their clips at once.

    Points are drawn by `draw_points`, which tests (and importance experiments) may override.
    """

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        self.config = config

    def draw_points(self, kind: str, masks: int, count: int, device: torch.device) -> torch.Tensor:
        """Sample positions (masks, count, 2) as (x, y) in [0, 1]. kind: "matching" (masks = annotated frames),
        "candidates" or "random" (masks = matched pairs of all layers)."""
        return torch.rand(masks, count, 2, device=device)

    def forward(
        self,
        predictions: list[tuple[torch.Tensor, torch.Tensor]],
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
        label_frames: torch.Tensor,
        num_frames: list[int],
        divisors: Mapping[str, float | torch.Tensor] | None = None,
        pixel_logits: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Weighted terms by name: `loss_class`, ... of the last layer, `loss_class_0`, ... of the others.

        Args:
            predictions: (class logits (F, Q, K + 1), mask logits (F, Q, h, w)) of the learned queries and all layers.
            mask_labels: per annotated frame (C_i, H, W).
            class_labels: per annotated frame (C_i,).
            label_frames: (F,) bool, which frames they belong to.
            num_frames: frames per clip.
            divisors: what the summed terms of each of `LOSS_KINDS` are divided by. `None`: the counts of this batch,
                but the number of target masks averaged over the processes, as in the release.
            pixel_logits: (F, K, h, w) of the head over the fused features; `None`: no `loss_pixel`.
        """
        config = self.config
        if divisors is None:
            divisors = self._own_divisors(class_labels, num_frames, predictions[0][0].device)
        classes, masks = [logits for logits, _ in predictions], [logits for _, logits in predictions]
        if len(mask_labels) < len(label_frames):
            annotated = upload(label_frames.nonzero()[:, 0], classes[0].device)
            classes = [logits.index_select(0, annotated) for logits in classes]  # L x (A, Q, K + 1)
            masks = [logits.index_select(0, annotated) for logits in masks]
            pixel_logits = None if pixel_logits is None else pixel_logits.index_select(0, annotated)
        masks = [logits.float() for logits in masks]  # L x (A, Q, h, w)
        matches = self.match(classes, masks, mask_labels, class_labels)
        class_sums = self._class_sums(torch.stack(classes), class_labels, matches)  # (L,)
        mask_sums, dice_sums = self._mask_sums(masks, mask_labels, matches)  # (L,) each
        last = len(predictions) - 1
        losses: dict[str, torch.Tensor] = {}
        for layer in [last, *range(last)]:
            suffix = "" if layer == last else f"_{layer}"
            losses[f"loss_class{suffix}"] = config.class_weight * class_sums[layer] / divisors["loss_class"]
            losses[f"loss_mask{suffix}"] = config.mask_weight * mask_sums[layer] / divisors["loss_mask"]
            losses[f"loss_dice{suffix}"] = config.dice_weight * dice_sums[layer] / divisors["loss_dice"]
        if config.consistency_weight:
            pairs = torch.tensor(neighbours(num_frames, config.consistency_window), dtype=torch.long)
            pairs = upload(pairs, classes[0].device)
            for layer in range(last):
                distances = frame_distances(predictions[layer][1], pairs, config.adaptive_consistency)
                losses[f"loss_consistency_{layer}"] = (
                    config.consistency_weight * distances.sum() / divisors["loss_consistency"]
                )
        if pixel_logits is not None:
            sums = pixel_sum(pixel_logits, mask_labels, class_labels)
            losses["loss_pixel"] = config.pixel_weight * sums / divisors["loss_pixel"]
        return losses

    def counts(self, class_labels: Sequence[torch.Tensor], num_frames: Sequence[int]) -> dict[str, float]:
        """What the terms of a batch are means over, by kind; known before the network has run.

        Args:
            class_labels: per annotated frame (C_i,).
            num_frames: frames of each clip.

        Returns:
            For each of `LOSS_KINDS`: class weights of all queries (matched ones weigh 1), target masks (twice), pairs
            of neighbouring frames, annotated frames. A count may be 0, and its terms are then 0: divide by 1.
        """
        targets = [len(labels) for labels in class_labels]
        masks, queries = float(sum(targets)), self.config.num_queries
        matched = sum(min(count, queries) for count in targets)
        unmatched = len(targets) * queries - matched
        pairs = len(neighbours(num_frames, self.config.consistency_window))
        return {
            "loss_class": matched + self.config.no_object_weight * unmatched,
            "loss_mask": masks,
            "loss_dice": masks,
            "loss_consistency": float(pairs),
            "loss_pixel": float(len(targets)),
        }

    def _own_divisors(
        self, class_labels: list[torch.Tensor], num_frames: list[int], device: torch.device
    ) -> dict[str, float | torch.Tensor]:
        counts = self.counts(class_labels, num_frames)
        divisors: dict[str, float | torch.Tensor] = {kind: count or 1.0 for kind, count in counts.items()}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            masks = torch.tensor(counts["loss_mask"], device=device)
            torch.distributed.all_reduce(masks)
            masks = (masks / torch.distributed.get_world_size()).clamp(min=1)
            divisors.update(loss_mask=masks, loss_dice=masks)
        return divisors

    @torch.no_grad()
    def match(
        self,
        classes: list[torch.Tensor],
        masks: list[torch.Tensor],
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
    ) -> Matches:
        """Hungarian matching of every layer and annotated frame.

        Args:
            classes, masks: logits of every layer, (A, Q, K + 1) and (A, Q, h, w).
            mask_labels, class_labels: per annotated frame (C_i, H, W) and (C_i,).
        """
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise ImportError("training needs scipy for the Hungarian matching: pip install scipy") from error
        device, counts = masks[0].device, [len(labels) for labels in class_labels]
        if not sum(counts):
            return Matches(*torch.empty(3, len(masks), 0, dtype=torch.long, device=device))
        places = [(frame, place) for frame, count in enumerate(counts) for place in range(count)]
        place = upload(torch.tensor(places), device).unbind(1)  # of every target in the tables of all frames
        labels = torch.zeros(len(counts), max(counts), dtype=torch.long, device=device)
        labels[place] = upload(torch.cat(class_labels), device).to(labels)
        targets = torch.zeros(*labels.shape, *mask_labels[0].shape[-2:], device=device)
        targets[place] = torch.cat(mask_labels).to(targets)
        with torch.autocast(device.type, enabled=False):  # differences of large sums: 8 bits are too few
            costs = torch.stack(
                [self._costs(logits, maps, targets, labels) for logits, maps in zip(classes, masks, strict=True)]
            )  # (L, A, Q, C)
        pairs = []
        for layer in costs.cpu().numpy():
            first, found = 0, []
            for frame, (cost, count) in enumerate(zip(layer, counts, strict=True)):
                queries, order = linear_sum_assignment(cost[:, :count])
                found.append(np.stack([np.full_like(queries, frame), queries, first + order]))
                first += count
            pairs.append(np.concatenate(found, axis=1))  # (3, R)
        return Matches(*upload(torch.from_numpy(np.stack(pairs, axis=1)), device))

    def _costs(
        self, logits: torch.Tensor, maps: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Class, BCE and dice cost of one layer: (A, Q, C). Points are shared by all masks of a frame."""
        config = self.config
        points = self.draw_points("matching", len(maps), config.train_num_points, maps.device)
        wanted = sample_points(targets, points).transpose(1, 2)  # (A, P, C)
        probability = logits.float().softmax(-1)  # (A, Q, K + 1)
        cost_class = -probability.gather(2, labels[:, None].expand(-1, logits.shape[1], -1))
        sums = blocked_sums if maps.device.type == "cpu" else point_sums
        outside, product, total, overlap = sums(maps, points, wanted)
        # BCE(x, y) = softplus(x) - x y, so that one softplus and one product serve both kinds of points
        cost_mask = (outside[..., None] - product) / points.shape[1]
        cost_dice = 1 - (2 * overlap + 1) / (total[..., None] + wanted.sum(1)[:, None] + 1)
        cost = config.class_weight * cost_class + config.mask_weight * cost_mask + config.dice_weight * cost_dice
        return torch.nan_to_num(cost, nan=0.0, posinf=1e10, neginf=-1e10)

    def _class_sums(self, logits: torch.Tensor, class_labels: list[torch.Tensor], matches: Matches) -> torch.Tensor:
        """Weighted cross entropy over K classes and "no object" (index K), summed over the queries of every layer.

        Args: logits (L, A, Q, K + 1). Returns: (L,).
        """
        layers, no_object = len(logits), logits.shape[-1] - 1
        target = torch.full(logits.shape[:3], no_object, dtype=torch.long, device=logits.device)
        layer = torch.arange(layers, device=logits.device)[:, None]
        target[layer, matches.frames, matches.queries] = upload(torch.cat(class_labels), target.device).to(target)[
            matches.targets
        ]
        weights = torch.ones(no_object + 1, device=logits.device)
        weights[no_object] = self.config.no_object_weight
        entropy = nnf.cross_entropy(logits.float().flatten(0, 2), target.flatten(), weights, reduction="none")
        return entropy.view(layers, -1).sum(1)

    def _mask_sums(
        self, masks: list[torch.Tensor], mask_labels: list[torch.Tensor], matches: Matches
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """BCE and dice on sampled points, summed over the matched masks of every layer: each (L,)."""
        layers, each = matches.queries.shape
        if each == 0:
            nothing = torch.stack([maps.sum() * 0 for maps in masks])
            return nothing, nothing
        chosen = zip(masks, matches.frames, matches.queries, strict=True)
        source = torch.cat([maps[frames, queries] for maps, frames, queries in chosen])[:, None]  # (L * R, 1, h, w)
        target = torch.cat(mask_labels).to(source)[matches.targets.flatten(), None]  # (L * R, 1, H, W)
        with torch.no_grad():
            points = self._uncertain_points(source)
            labels = sample_points(target, points)[:, 0]  # (L * R, P)
        logits = sample_points(source, points)[:, 0]
        bce = nnf.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        sigmoid = logits.sigmoid()
        dice = 1 - (2 * (sigmoid * labels).sum(1) + 1) / (sigmoid.sum(1) + labels.sum(1) + 1)
        return bce.view(layers, each).sum(1), dice.view(layers, each).sum(1)

    def _uncertain_points(self, logits: torch.Tensor) -> torch.Tensor:
        """PointRend's sampling: of oversampled candidates those with the smallest |logit|, then uniform ones."""
        config, pairs = self.config, len(logits)
        candidates = int(config.train_num_points * config.oversample_ratio)
        kept = int(config.train_num_points * config.importance_sample_ratio)
        points = self.draw_points("candidates", pairs, candidates, logits.device)
        uncertainty = -sample_points(logits, points)[:, 0].abs()
        index = uncertainty.topk(kept, dim=1, sorted=False).indices
        points = points.gather(1, index[..., None].expand(-1, -1, 2))
        random = self.draw_points("random", pairs, config.train_num_points - kept, logits.device)
        return torch.cat([points, random], dim=1)


def neighbours(num_frames: Sequence[int], window: int | None) -> list[int]:
    """First frames (packed) of all pairs of neighbouring frames of a clip, but not of those across two windows."""
    first, start = [], 0
    for frames in num_frames:
        first += [start + t for t in range(frames - 1) if window is None or (t + 1) % window]
        start += frames
    return first


def frame_distances(masks: torch.Tensor, first: list[int] | torch.Tensor, adaptive: bool) -> torch.Tensor:
    """d exp(-d) of each pair of frames, d = 1 - cos of all Q mask logits of the two frames (L_ada): (pairs,).

    Args:
        masks: mask logits (F, Q, h, w).
        first: of [`neighbours`].
        adaptive: False gives the plain d.
    """
    flat = masks.float().flatten(1)  # (F, Q * h * w)
    if not len(first):
        return flat.sum()[None] * 0
    index = first if torch.is_tensor(first) else torch.tensor(first, device=masks.device)
    squares, products = FrameProducts.apply(flat)
    power = squares + 1e-12  # a flat mask of zeros has no direction, but must have a gradient
    distance = 1 - products[index] / (power[index] * power[index + 1]).sqrt()
    return distance * (-distance).exp() if adaptive else distance


class FrameProducts(torch.autograd.Function):
    """Rows x_t (F, N) -> their squares x_t . x_t (F,), and their products with the next row x_t . x_(t+1) (F - 1,).

    The gradient is one product with a tridiagonal matrix, in place of many passes over the masks of all frames; a
    second derivative is not to be had. Forward: plain sums, because they add in a tree; the norms inside
    `cosine_similarity` do not and move 1 - cos by 1e-5.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(rows)
        return rows.square().sum(1), (rows[:-1] * rows[1:]).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_squares: torch.Tensor, to_products: torch.Tensor) -> torch.Tensor:
        (rows,) = ctx.saved_tensors
        band = torch.diag(2 * to_squares) + torch.diag(to_products, 1) + torch.diag(to_products, -1)  # (F, F)
        return band @ rows


def pixel_sum(
    logits: torch.Tensor, mask_labels: Sequence[torch.Tensor], class_labels: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Sum over frames of the mean cross entropy of their pixels; those in no mask are left out.

    Args:
        logits: (A, K, h, w), enlarged bilinearly to the masks.
        mask_labels: per frame (C_i, H, W).
        class_labels: per frame (C_i,).
    """
    if not mask_labels:
        return logits.sum() * 0
    ignored = logits.shape[1]
    size = mask_labels[0].shape[-2:]
    target = torch.full((len(logits), *size), ignored, dtype=torch.long, device=logits.device)
    for frame, (masks, classes) in enumerate(zip(mask_labels, class_labels, strict=True)):
        for mask, index in zip(masks, classes, strict=True):
            target[frame].masked_fill_(mask > 0.5, index)
    enlarged = nnf.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    entropy = nnf.cross_entropy(enlarged, target, ignore_index=ignored, reduction="none").flatten(1)  # (A, H * W)
    return (entropy.sum(1) / (target != ignored).flatten(1).sum(1).clamp(min=1)).sum()


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values of maps (N, C, h, w) at points (N, P, 2) in [0, 1] (zeros outside): (N, C, P)."""
    grid = 2.0 * points[:, :, None] - 1.0  # (N, P, 1, 2)
    return nnf.grid_sample(maps, grid.to(maps), mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]


def point_sums(maps: torch.Tensor, points: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the costs of matching are made of, with x the mask logits and y the targets at the points of a frame.

    Args: maps (A, Q, h, w); points (A, P, 2); wanted (A, P, C).
    Returns: sums over the points of softplus(x) (A, Q), x y (A, Q, C), sigmoid(x) (A, Q), sigmoid(x) y (A, Q, C).
    """
    predicted = sample_points(maps, points)  # (A, Q, P)
    sigmoid = predicted.sigmoid()
    return nnf.softplus(predicted).sum(-1), predicted @ wanted, sigmoid.sum(-1), sigmoid @ wanted


def blocked_sums(maps: torch.Tensor, points: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As [`point_sums`], on a CPU: what is read for a block of points stays in the cache until it is summed.

    The points are the same for all queries: a read is a weighted sum of four rows of a table (pixels x Q) with zeros
    around the map.
    """
    frames, queries, height, width = maps.shape
    size = constant((width, height), maps)
    place = points.to(maps) * size + 0.5  # in the map with its frame of zeros
    first = place.floor().clamp_(min=0).minimum(size)
    right, below = (place - first).unbind(-1)
    corner = (first[..., 1] * (width + 2) + first[..., 0]).int()
    index = torch.stack([corner, corner + 1, corner + width + 2, corner + width + 3], dim=-1)  # (A, P, 4)
    rows = torch.stack([1 - below, below], dim=-1)[..., None]
    factor = (rows * torch.stack([1 - right, right], dim=-1)[..., None, :]).flatten(2)  # (A, P, 4)
    outside, total = maps.new_zeros(2, frames, queries)
    product, overlap = maps.new_zeros(2, frames, queries, wanted.shape[2])
    parts = [part.split(POINTS_AT_ONCE, dim=1) for part in (index, factor, wanted)]
    for frame in range(frames):
        table = nnf.pad(maps[frame].permute(1, 2, 0), (0, 0, 1, 1, 1, 1)).flatten(0, 1)  # (pixels, Q)
        for cells, shares, truth in zip(*parts, strict=True):
            read = nnf.embedding_bag(cells[frame], table, per_sample_weights=shares[frame], mode="sum")  # (B, Q)
            product[frame].addmm_(read.T, truth[frame])
            outside[frame] += nnf.softplus(read).sum(0)
            total[frame] += read.sigmoid_().sum(0)
            overlap[frame].addmm_(read.T, truth[frame])
    return outside, product, total, overlap

"""Boxes of masks, their non-maximum suppression, and the clean-up of small regions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch


def masks_to_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Boxes around masks.

    Args:
        masks (`torch.Tensor` of shape `(N, H, W)`): bool.

    Returns:
        int64 (N, 4): left, top, right, bottom, the last two inclusive; zeros for an empty mask.
    """
    height, width = masks.shape[-2:]
    edges = []
    for inside, size in ((masks.any(dim=1), width), (masks.any(dim=2), height)):  # columns (N, W), rows (N, H)
        places = torch.arange(size, device=masks.device)
        first = torch.where(inside, places, size).amin(dim=1)
        last = torch.where(inside, places, -1).amax(dim=1)
        edges.append((first, last))
    boxes = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], dim=1)
    return torch.where((boxes[:, 2] < 0)[:, None], 0, boxes)


def box_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: of two boxes whose IoU is above the threshold the better stays.

    torchvision's where that is installed, else the same in plain PyTorch (slower; equal on every case tried).

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,).
        threshold: IoU.

    Returns:
        Indices of what stays, best first; equal scores in their order.
    """
    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    nms: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] = greedy_nms
    with contextlib.suppress(ImportError, RuntimeError, OSError):  # absent, or built for another torch
        from torchvision import ops

        nms = ops.nms
    return nms(torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), threshold).numpy()


def greedy_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """`torchvision.ops.nms` without torchvision: boxes (N, 4) and scores (N,) -> kept indices (K,)."""
    order = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner = torch.maximum(boxes[best, :2], boxes[order, :2])
        extent = (torch.minimum(boxes[best, 2:], boxes[order, 2:]) - corner).clamp(min=0)
        shared = extent[:, 0] * extent[:, 1]
        overlap = (shared / (areas[best] + areas[order] - shared)).double()  # compared with a double there, too
        order = order[~(overlap > threshold)]  # 0 / 0 suppresses nothing
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


def remove_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill holes, then drop islands, of fewer than `min_area` pixels (neighbours touch at corners, too).

    If every island is small the largest stays.

    Args:
        mask: bool (H, W).
        min_area: pixels.

    Returns:
        The mask, and whether it changed.
    """
    from scipy import ndimage

    changed = False
    for holes in (True, False):
        labels, count = ndimage.label(mask != holes, structure=np.ones((3, 3), dtype=bool))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        small = sizes < min_area
        small[0] = False
        if not small.any():
            continue
        changed = True
        if holes:
            mask = mask | small[labels]
        elif small[1:].all():
            mask = labels == sizes[1:].argmax() + 1
        else:
            mask = mask & ~small[labels]
    return mask, changed

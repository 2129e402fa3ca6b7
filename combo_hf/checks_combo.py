"""Checks of saved settings and of what the network gives out: a damaged file or weight is said to be one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


MASK_STRIDE = 4

Size = tuple[int, int]


@contextmanager
def blaming(file: str) -> Iterator[None]:
    """Nothing but a file is read meanwhile: whatever transformers trips over, the file is damaged.

    Raises:
        ValueError: in place of an `AttributeError` and the like.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{file} is damaged, or of another kind ({type(error).__name__}: {error}).") from error


def check_channels(name: str, values: Any, least: float) -> None:
    """Raise `ValueError` unless these are three finite numbers above `least` (0 or minus infinity)."""
    numbers = list(values) if isinstance(values, (list, tuple)) else []
    if len(numbers) != 3 or not all(type(value) in (int, float) and least < value < math.inf for value in numbers):
        more = "" if least else " above 0"
        raise ValueError(f"{name}: wanted three finite numbers{more}, of R, G and B, got {values!r}.")


def check_outputs(
    classes: torch.Tensor, masks: torch.Tensor, counts: list[int], target_sizes: Sequence[Size | None] | None
) -> list[Size]:
    """The size of every clip's label maps, after checking that everything fits."""
    if (
        not torch.is_tensor(classes)
        or not torch.is_tensor(masks)
        or classes.ndim != 3
        or masks.ndim != 4
        or classes.shape[:2] != masks.shape[:2]
    ):
        raise ValueError(
            "outputs: wanted class_queries_logits (F, Q, K + 1) and masks_queries_logits (F, Q, h, w), got "
            f"{getattr(classes, 'shape', classes)} and {getattr(masks, 'shape', masks)}."
        )
    if not (torch.isfinite(classes).all() and torch.isfinite(masks).all()):
        raise ValueError("outputs: the logits hold NaN or infinite numbers; the weights or the inputs are damaged.")
    if sum(counts) != masks.shape[0] or min(counts, default=0) < 1:
        raise ValueError(f"num_frames: wanted counts that add up to {masks.shape[0]} frames, got {counts}.")
    default = (MASK_STRIDE * masks.shape[2], MASK_STRIDE * masks.shape[3])
    if target_sizes is None:
        return [default] * len(counts)
    if len(target_sizes) != len(counts):
        raise ValueError(
            f"target_sizes: wanted one (height, width) for each of {len(counts)} clips, got {target_sizes}."
        )
    sizes = [default if size is None else tuple(int(side) for side in size) for size in target_sizes]
    if any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise ValueError(f"target_sizes: wanted (height, width) in pixels, got {target_sizes}.")
    return sizes

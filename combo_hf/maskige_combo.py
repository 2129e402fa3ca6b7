"""Class-agnostic masks -> Maskige: one colour picture that carries them all (paper, appendix B.2; X(c) = cA).

The rule of the release: masks are painted in ascending order of area and a smaller mask keeps its pixels; the
smallest gets palette colour 1, the next colour 2, ...; what no mask covers has colour 0; the index picture is then
resized by "nearest" without regard to the aspect ratio. The palette has the 150 ADE20K colours (7 and 49 of them are
equal) and black above.

Departures: equal areas keep their order (the sort of the release is unstable, its result undefined), and of more than
255 masks the 255 largest are painted (indices of the release wrap at 256).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


MAX_MASKS = 255
MAX_SIDE = 16384

# ADE20K scene parsing, classes 0..149, RRGGBB each.
_ADE20K_HEX = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff0652"
    "8fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0"
    "ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff"
    "8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff"
    "00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ff"
    "ff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff007aff"
    "00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff0070"
    "5cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff500"
    "0abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
PALETTE = np.zeros((256, 3), dtype=np.uint8)
PALETTE[:150] = np.frombuffer(bytes.fromhex(_ADE20K_HEX), dtype=np.uint8).reshape(150, 3)
PALETTE.setflags(write=False)


def paint_maskige(masks: Any, size: tuple[int, int] = (224, 224)) -> np.ndarray:
    """Paint the masks of one frame.

    Args:
        masks (`np.ndarray` or `torch.Tensor` of shape `(K, H, W)`): bool, or numbers that are all 0 or 1; K may be 0.
            They may overlap.
        size (`tuple[int, int]`, *optional*, defaults to `(224, 224)`): height and width of the picture in pixels.

    Returns:
        `np.ndarray` (height, width, 3) uint8, RGB.

    Raises:
        ValueError: wrong rank, no pixels, values other than 0 and 1, or an impossible size.

    Examples:
        >>> import numpy as np
        >>> from combo_hf import paint_maskige
        >>> masks = np.ones((2, 4, 4), bool)
        >>> masks[1, 2:] = False  # the smaller one is on top
        >>> paint_maskige(masks, size=(4, 4))[:, 0].tolist()
        [[180, 120, 120], [180, 120, 120], [6, 230, 230], [6, 230, 230]]
    """
    sides = list(size) if isinstance(size, (tuple, list)) else []
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and 1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"size: wanted (height, width) of 1 to {MAX_SIDE} pixels, got {size!r}.")
    height, width = sides
    masks = check_masks(masks)
    # "nearest" picks pixels, so that it is enough to paint those
    rows, columns = nearest_pixels(masks.shape[1], height), nearest_pixels(masks.shape[2], width)
    order = by_area(masks)
    index = paint_numbers(masks, order, np.arange(1, len(order) + 1), rows)
    return PALETTE.take(index.take(columns, axis=1), axis=0)


def nearest_pixels(length: int, wanted: int) -> np.ndarray:
    """The pixels of a row of `length` that Pillow takes where it resizes by "nearest" to `wanted`: int (wanted,)."""
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((wanted, 1), Image.Resampling.NEAREST))[0].astype(np.intp)


def by_area(masks: np.ndarray) -> np.ndarray:
    """Indices of at most the 255 largest masks (K, H, W), ascending by area; equal areas keep their order."""
    areas = [np.count_nonzero(mask) for mask in masks]  # one by one: with `axis`, numpy adds up integers instead
    return np.argsort(areas, kind="stable")[-MAX_MASKS:]


def maskige_index(masks: np.ndarray) -> np.ndarray:
    """Rank picture of boolean masks (K, H, W): uint8 (H, W), 0 = uncovered, 1 = the smallest mask, and so on."""
    order = by_area(masks)
    return paint_numbers(masks, order, np.arange(1, len(order) + 1))


def paint_numbers(
    masks: np.ndarray, order: np.ndarray, numbers: np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """Give masks their colour numbers; where they overlap, the smaller one is on top.

    Args:
        masks: bool (K, H, W).
        order: indices of the masks to paint, ascending by area ([`by_area`]).
        numbers: of these masks, 1..255.
        rows: paint these rows only: indices (R,).

    Returns:
        uint8 (H, W), or (R, W) with `rows`; 0 = uncovered.
    """
    shape = masks.shape[1:] if rows is None else (len(rows), masks.shape[2])
    top = np.zeros(shape, dtype=np.uint8)
    ranks = np.arange(len(order), 0, -1, dtype=np.uint8)  # the smallest mask has the highest
    for mask, rank in zip(order, ranks, strict=True):
        where = masks[mask] if rows is None else masks[mask].take(rows, axis=0)
        np.maximum(top, where.view(np.uint8) * rank, out=top)
    names = np.zeros(256, dtype=np.uint8)
    names[ranks] = numbers
    return names.take(top)


def check_masks(masks: Any, name: str = "masks") -> np.ndarray:
    """Check class-agnostic masks of one frame and return them as a boolean array (K, H, W).

    Raises:
        ValueError: wrong rank, no pixels, or values other than 0 and 1.
    """
    array = masks.detach().cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)
    if array.ndim != 3:
        raise ValueError(f"{name}: wanted masks of shape (K, H, W), got shape {array.shape}; one mask is mask[None].")
    if array.shape[1] < 1 or array.shape[2] < 1:
        raise ValueError(
            f"{name}: masks without pixels, shape {array.shape}; no mask at all is np.zeros((0, H, W), bool)."
        )
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind == "f":
        binary = bool(((array == 0) | (array == 1)).all())
    else:  # extremes are found ten times as fast as values are compared
        kind = array.dtype.kind
        binary = kind in "ui" and (not array.size or bool(array.max() <= 1 and (kind == "u" or array.min() >= 0)))
    if not binary:
        raise ValueError(f"{name}: wanted boolean masks (or only 0 and 1), got {array.dtype}; threshold them first.")
    return array.view(bool) if array.dtype.itemsize == 1 else array.astype(bool)

"""Where a model is clicked: on a regular grid, or inside of superpixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from combo_hf.proposals_combo import SuperpixelProposals


def point_grid(points_per_side: int) -> np.ndarray:
    """Centres of a square grid over the unit square, row by row: float64 (n * n, 2), x and y."""
    side = np.linspace(0.5 / points_per_side, 1 - 0.5 / points_per_side, points_per_side)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def superpixel_points(frame: Image.Image, count: int) -> np.ndarray:
    """The innermost point of each of the largest superpixels, in the unit square.

    A click costs a model the same wherever it is: where nothing changes, one is enough.

    Args:
        frame: RGB.
        count: at most so many points.

    Returns:
        float64 (P, 2), x and y, P at least 1; of the largest superpixel first.
    """
    from scipy import ndimage

    superpixels = SuperpixelProposals()
    factor = min(1.0, superpixels.working_size / max(frame.size))
    small = frame.resize((max(1, round(frame.width * factor)), max(1, round(frame.height * factor))))
    points = []
    for mask in superpixels([small])[0][:count]:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # the frame's edge is one, too
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        points.append(((column + 0.5) / small.width, (row + 0.5) / small.height))
    return np.array(points) if points else point_grid(1)

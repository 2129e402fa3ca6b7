"""Where the masks of a Maskige come from: the protocol "frames -> boolean masks", and a default without any weights.

The paper proposes masks with Semantic-SAM, SAM or MobileSAM. Those are optional models; the default here is
Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), which costs a fraction of a second per frame on
one core. A model should be used with the kind of proposals it was trained with.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .maskige_combo import PALETTE, nearest_pixels


MAX_PARAMETER = 100_000
MAX_SEGMENTS = 255  # as many as a Maskige shows; a boolean mask of a 1080p frame takes 2 MB


class ProposalGenerator(Protocol):
    """Anything that maps frames to class-agnostic masks.

    A generator may have `to_dict()` -> JSON-able dict with its `"name"`, so that a processor can save and restore it,
    and `maskige(frame, (height, width))`, the picture painted of its masks, if it can do without the masks.
    """

    def __call__(self, frames: list[Image.Image]) -> list[np.ndarray]:
        """Masks of every frame: bool (K_i, H, W) at the frame's own size, K_i may be 0. Frames are RGB."""


class SuperpixelProposals:
    r"""Superpixels of each frame: segments that together cover it, found without weights.

    The frame is segmented at a reduced size and the segments are enlarged ("nearest") to its own.

    Args:
        working_size (`int`, *optional*, defaults to 224): longest side in pixels at which the frame is segmented.
        scale (`float`, *optional*, defaults to 150.0): preference for large segments.
        sigma (`float`, *optional*, defaults to 0.8): Gaussian smoothing in pixels before the segmentation.
        min_fraction (`float`, *optional*, defaults to 0.005): segments are merged up to this part of the frame's
            area, and what remains smaller is dropped. No frame has more than 1 / min_fraction, or 255, segments.

    Raises:
        ValueError: a parameter out of range.
        ImportError: scikit-image is not installed.
    """

    name = "superpixels"

    def __init__(
        self, working_size: int = 224, scale: float = 150.0, sigma: float = 0.8, min_fraction: float = 0.005
    ) -> None:
        numbers = (working_size, scale, sigma, min_fraction)
        if not all(isinstance(value, (int, float)) and abs(value) <= MAX_PARAMETER for value in numbers):
            raise ValueError(f"superpixels: wanted numbers up to {MAX_PARAMETER}, got {numbers}.")
        if working_size < 8 or scale <= 0 or sigma < 0 or not 0 <= min_fraction < 1:
            raise ValueError(
                "superpixels: wanted working_size >= 8, scale > 0, sigma >= 0 and 0 <= min_fraction < 1, got "
                f"{working_size}, {scale}, {sigma}, {min_fraction}."
            )
        self.working_size, self.scale, self.sigma, self.min_fraction = working_size, scale, sigma, min_fraction

    def __call__(self, frames: list[Image.Image]) -> list[np.ndarray]:
        """Segment frames.

        Args:
            frames (`list[PIL.Image.Image]`): RGB, any sizes.

        Returns:
            `list[np.ndarray]`: for every frame bool (K, H, W), largest segment first.
        """
        return [self._masks(frame.convert("RGB")) for frame in frames]

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, as [`get_proposal_generator`] takes them."""
        return {
            "name": self.name,
            "working_size": self.working_size,
            "scale": self.scale,
            "sigma": self.sigma,
            "min_fraction": self.min_fraction,
        }

    def maskige(self, frame: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """As [`paint_maskige`] paints the masks of an RGB frame, without making them: (height, width, 3) uint8."""
        labels = self._labels(frame)
        kept = self._kept(labels)
        rows, columns = (
            nearest_pixels(*sides) for sides in zip(labels.shape, (frame.height, frame.width), strict=True)
        )
        times = np.outer(np.bincount(rows, minlength=len(labels)), np.bincount(columns, minlength=labels.shape[1]))
        areas = np.bincount(labels.ravel(), times.ravel(), minlength=labels.max() + 1)[kept]  # in the frame
        order = np.argsort(areas, kind="stable")
        order = order[areas[order] > 0]
        numbers = np.zeros(labels.max() + 1, np.uint8)
        numbers[kept[order]] = np.arange(1, len(order) + 1)
        rows, columns = rows[nearest_pixels(frame.height, size[0])], columns[nearest_pixels(frame.width, size[1])]
        return PALETTE.take(numbers[labels[rows[:, None], columns]], axis=0)

    def _kept(self, labels: np.ndarray) -> np.ndarray:
        """Numbers of the segments that count, the largest first."""
        areas = np.bincount(labels.ravel())
        order = np.argsort(-areas, kind="stable")
        return order[areas[order] >= max(1, self.min_fraction * labels.size)][:MAX_SEGMENTS]

    def _masks(self, frame: Image.Image) -> np.ndarray:
        labels = self._labels(frame)
        kept = self._kept(labels)
        enlarged = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(frame.size, Image.Resampling.NEAREST))
        masks = enlarged[None] == kept[:, None, None]
        return masks[masks.any(axis=(1, 2))]  # a segment may fall between the rows of an even smaller frame

    def _labels(self, frame: Image.Image) -> np.ndarray:
        """Segment numbers (h, w) at the working size."""
        try:
            from skimage.segmentation import felzenszwalb
        except ImportError as error:
            raise ImportError(
                "Superpixel proposals need scikit-image: pip install 'scikit-image>=0.24'. Or pass masks or maskiges."
            ) from error
        factor = min(1.0, self.working_size / max(frame.size))
        width, height = (max(1, round(side * factor)) for side in frame.size)
        small = np.asarray(frame.resize((width, height), Image.Resampling.BILINEAR))
        if min(small.shape[:2]) < 3:  # the smoothing needs some extent; such a ribbon is one segment
            return np.zeros(small.shape[:2], dtype=np.int64)
        min_size = max(1, round(self.min_fraction * height * width))
        return felzenszwalb(small, scale=self.scale, sigma=self.sigma, min_size=min_size)


def get_proposal_generator(source: Any) -> ProposalGenerator:
    """Find a proposal generator.

    Args:
        source: a name (`"superpixels"`, or one of `combo_hf.proposals.PROPOSAL_GENERATORS` where the package is
            installed), a dict with `"name"` and the generator's parameters, or a generator, which is returned as it
            is.

    Returns:
        A callable, frames -> masks.

    Raises:
        ValueError: the name is not known.
        TypeError: neither name, dict nor callable, or an option that the generator does not have.
    """
    if callable(source):
        return source
    if isinstance(source, str):
        source = {"name": source}
    if not isinstance(source, dict) or "name" not in source:
        raise TypeError(f"proposal_generator: wanted a name, a dict with 'name', or a callable, got {source!r}.")
    parameters = {key: value for key, value in source.items() if key != "name"}
    known: dict[str, Any] = {SuperpixelProposals.name: SuperpixelProposals}
    if source["name"] not in known:
        known.update(_optional_generators())
    if source["name"] not in known:
        raise ValueError(
            f"proposal_generator: {source['name']!r} is not known here, wanted one of {sorted(known)}. Further models "
            "come with the installed package combo_hf; or pass a callable that maps frames to boolean masks."
        )
    try:
        return known[source["name"]](**parameters)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rpartition("argument ")[2]
        raise TypeError(f"proposal_generator: {source['name']!r} has no option {option}.") from error


def is_harmless(source: Any) -> bool:
    """Whether a generator described in a file may be made without asking: it loads no model and writes no file."""
    return source is None or (source.get("name") if isinstance(source, dict) else source) == SuperpixelProposals.name


def _optional_generators() -> dict[str, Any]:
    """Generators of the installed package; none when this file was loaded from a checkpoint alone."""
    try:
        package = importlib.import_module("combo_hf.proposals")
    except ImportError:
        return {}
    return getattr(package, "PROPOSAL_GENERATORS", {})

"""The one automatic mask generator: a grid of clicks, one model, every mask that the model is sure of.

Mirrors `SamAutomaticMaskGenerator` of segment-anything (without crops), which MobileSAM and Semantic-SAM copied:
clicks on a regular grid, masks filtered by the predicted IoU and by stability, box NMS, and optionally the removal of
small holes and islands. What differs between the models is in an adapter ([`PointPromptModel`]) and in defaults.

Crops of the frame (`crop_n_layers` above 0, off in the official scripts) are not there.
Departures, none of which changes the result: masks are filtered by predicted IoU before they are enlarged; survivors
are kept as bits; no run-length encoding.

Axes: P clicks of a batch, M masks per click, N candidates, K masks of a frame, H W its size, h w low resolution.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image

from combo_hf.files.environment import fingerprint_weights, resolve_device
from combo_hf.proposals.boxes import box_nms, masks_to_boxes, remove_small_regions
from combo_hf.proposals.clicks import point_grid, superpixel_points
from combo_hf.proposals.loading import resolve_dtype


CHUNK_PIXELS = 2**25  # enlarged at a time: 128 MB of float32
CPU_PIXELS = 2**22  # on a CPU what stays in its cache is faster: 11 ms a mask at 720p, not 17
MODEL_PIXELS = 1024 * 1024  # SAM enlarges to its own input size on the way
CLICKS = ("grid", "superpixels")
SECOND_NMS = 0.7  # of the NMS after the clean-up the larger of this and box_nms_thresh counts (crop_nms_thresh)


@dataclass(frozen=True)
class Candidates:
    """What a model answers to P clicks.

    Attributes:
        logits (`torch.Tensor` of shape `(P, M, h, w)`): masks at low resolution, > 0 inside.
        ious (`torch.Tensor` of shape `(P, M)`): predicted IoU.
    """

    logits: torch.Tensor
    ious: torch.Tensor


class PointPromptModel(Protocol):
    """A segmentation model that answers clicks; `model` is its network."""

    model: torch.nn.Module

    def encode(self, frame: Image.Image) -> Any:
        """Everything about an RGB frame that does not depend on the clicks."""

    def decode(self, encoded: Any, points: np.ndarray) -> Candidates:
        """Masks for clicks: float64 (P, 2), x and y in pixels of the frame."""

    def upscale(self, encoded: Any, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, h, w) -> float32 (N, H, W) at the frame's size."""


@dataclass(frozen=True)
class MaskSettings:
    """Grid and thresholds; the defaults are those of SAM.

    Args:
        points_per_side: clicks per row and column of the grid.
        points_per_batch: clicks decoded at once: memory against speed.
        pred_iou_thresh: masks of a lower predicted IoU go; 0 or less keeps all.
        stability_score_thresh: masks that change more than this between two thresholds go; 0 or less keeps all.
        stability_score_offset: the two thresholds are -offset and +offset.
        box_nms_thresh: of two masks whose boxes overlap by more (IoU) the one of lower predicted IoU goes.
        min_mask_region_area: holes and islands below so many pixels go; 0 leaves masks as they are.
        clicks: `"grid"`, or `"superpixels"`: one click inside of each of the `max_clicks` largest superpixels.
        max_clicks: with superpixels.
        max_side: a frame with a longer side (pixels) is reduced to it first, and so are its masks; `None`: never.

    Raises:
        ValueError: a value out of range.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    clicks: str = "grid"
    max_clicks: int = 32
    max_side: int | None = 4096
    memory_only: ClassVar[tuple[str, ...]] = ("points_per_batch",)  # what no mask depends on

    def __post_init__(self) -> None:
        checks: dict[str, tuple[float, float, type | tuple[type, ...]]] = {
            "points_per_side": (1, 512, int),
            "points_per_batch": (1, 2**20, int),
            "pred_iou_thresh": (-1e9, 1e9, (int, float)),
            "stability_score_thresh": (-1e9, 1.0, (int, float)),
            "stability_score_offset": (0.0, 1e9, (int, float)),
            "box_nms_thresh": (0.0, 1.0, (int, float)),
            "min_mask_region_area": (0, 2**40, int),
            "max_clicks": (1, 512, int),
            "max_side": (16, 2**20, int),
        }
        if self.clicks not in CLICKS:
            raise ValueError(f"clicks: wanted one of {', '.join(CLICKS)}, got {self.clicks!r}.")
        for name, (low, high, kind) in checks.items():
            value: Any = getattr(self, name)
            if name == "max_side" and value is None:
                continue
            right = isinstance(value, kind)
            if not right or isinstance(value, bool) or not low <= value <= high:
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name}: wanted {what} from {low:g} to {high:g}, got {value!r}.")


@dataclass(frozen=True)
class Proposals:
    """Masks of one frame, best first (after a clean-up: unchanged ones first).

    Attributes:
        masks: bool (K, H, W); while they are collected bits, uint8 (N, H, ceil(W / 8)): there may be thousands.
        boxes: int64 (K, 4): left, top, right, bottom, the last two inclusive.
        scores: float32 (K,), predicted IoU.
        stability: float32 (K,).
        points: float64 (K, 2): the click (x, y) that gave the mask.
    """

    masks: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    points: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """Pixels of every mask: int64 (K,)."""
        return np.count_nonzero(self.masks, axis=(1, 2)).astype(np.int64)

    def take(self, rows: np.ndarray) -> Proposals:
        """These masks, in this order."""
        return Proposals(*(getattr(self, column)[rows] for column in _COLUMNS))

    @staticmethod
    def join(parts: list[Proposals]) -> Proposals:
        """The masks of all parts."""
        return Proposals(*(np.concatenate([getattr(part, column) for part in parts]) for column in _COLUMNS))


_COLUMNS = [field.name for field in dataclasses.fields(Proposals)]


class PointGridProposals:
    """Masks of frames by clicking everywhere: a `ProposalGenerator` over a [`PointPromptModel`].

    Args:
        adapter ([`PointPromptModel`]): the model.
        source (`str`, *optional*): folder or Hub id it came from; without it the generator cannot be saved by name.
        **options: fields of `settings_class`.

    Raises:
        TypeError: an option that does not exist.
        ValueError: an option out of range.
    """

    name: ClassVar[str]
    example: ClassVar[str] = "a folder or a Hub id"
    settings_class: ClassVar[type[MaskSettings]] = MaskSettings

    def __init__(self, adapter: PointPromptModel, *, source: str | None = None, **options: Any) -> None:
        self.adapter, self.source, self.settings = adapter, source, self._settings(options)

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype) -> PointPromptModel:
        """Load the model; to be overridden."""
        raise NotImplementedError(f"{cls.__name__}.load_adapter")

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> PointGridProposals:
        """Load a model and wrap it.

        Args:
            model (`str` or `Path`): folder or Hub id.
            device: `"cpu"`, `"cuda:0"`, ...; default: the first accelerator there is.
            dtype: `torch.float32` (default), `torch.float16`, `torch.bfloat16`, or such a name.
            **options: as for the class.

        Raises:
            ValueError: no model named, not its kind of weights, an option out of range.
            TypeError: an option that does not exist.
            OSError: the folder or repository cannot be read.
        """
        if model is None:
            raise ValueError(f"{cls.name}: which weights? Pass model={cls.example}.")
        cls._settings(options)  # refused before the weights are loaded
        adapter = cls.load_adapter(str(model), resolve_device(device), resolve_dtype(dtype))
        return cls(adapter, source=str(model), **options)

    @classmethod
    def _settings(cls, options: dict[str, Any]) -> MaskSettings:
        known = [field.name for field in dataclasses.fields(cls.settings_class)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"{cls.name}: no option {unknown[0]!r}; there are {', '.join(known)}.")
        return cls.settings_class(**options)

    def __call__(self, frames: list[Image.Image]) -> list[np.ndarray]:
        """Masks of frames.

        Args:
            frames (`list[PIL.Image.Image]`): any sizes.

        Returns:
            `list[np.ndarray]`: for every frame bool (K, H, W), at its own size unless a side is above `max_side`.
        """
        return [self.generate(frame).masks for frame in frames]

    @torch.no_grad()
    def generate(self, frame: Image.Image) -> Proposals:
        """Masks of one frame with scores, boxes and clicks.

        Raises:
            TypeError: not a PIL image.
            ValueError: so narrow that nothing would be left of the short side.
        """
        frame = _fit(frame, self.settings.max_side)
        encoded = self.adapter.encode(frame)
        points, count = self._clicks(frame), self.settings.points_per_batch
        batches = [points[start : start + count] for start in range(0, len(points), count)]
        packed = Proposals.join([self._answers(encoded, batch, frame) for batch in batches])
        packed = packed.take(box_nms(packed.boxes, packed.scores, self.settings.box_nms_thresh))
        masks = np.unpackbits(packed.masks, axis=-1, count=frame.width).astype(bool)
        proposals = dataclasses.replace(packed, masks=masks)
        return self._clean(proposals) if self.settings.min_mask_region_area and len(masks) else proposals

    def _clicks(self, frame: Image.Image) -> np.ndarray:
        """Where the model is clicked: float64 (P, 2), x and y in pixels."""
        if self.settings.clicks == "grid":
            places = point_grid(self.settings.points_per_side)
        else:
            places = superpixel_points(frame, self.settings.max_clicks)
        return places * np.array(frame.size, dtype=np.float64)

    def _answers(self, encoded: Any, points: np.ndarray, frame: Image.Image) -> Proposals:
        """Masks for a batch of clicks that pass both thresholds, as bits."""
        answers = self.adapter.decode(encoded, points)
        logits, ious = answers.logits.flatten(0, 1), answers.ious.flatten().float()  # (P * M, h, w), (P * M,)
        clicks = np.repeat(points, answers.logits.shape[1], axis=0)
        if self.settings.pred_iou_thresh > 0:
            sure = ious > self.settings.pred_iou_thresh
            logits, ious, clicks = logits[sure], ious[sure], clicks[sure.cpu().numpy()]
        scores = ious.cpu().numpy()
        limit = min(CHUNK_PIXELS, CPU_PIXELS) if logits.device.type == "cpu" else CHUNK_PIXELS
        count = max(1, limit // max(frame.width * frame.height, MODEL_PIXELS))
        bits = np.zeros((0, frame.height, -(-frame.width // 8)), dtype=np.uint8)
        parts = [Proposals(bits, np.zeros((0, 4), np.int64), scores[:0], np.zeros(0, np.float32), clicks[:0])]
        for start in range(0, len(logits), count):
            chunk = slice(start, start + count)
            parts.append(self._stable(encoded, logits[chunk], scores[chunk], clicks[chunk]))
        return Proposals.join(parts)

    def _stable(self, encoded: Any, logits: torch.Tensor, scores: np.ndarray, clicks: np.ndarray) -> Proposals:
        """Enlarge some masks and keep, as bits, those whose edge does not depend on the threshold."""
        enlarged = self.adapter.upscale(encoded, logits)  # (N, H, W)
        stability = stability_score(enlarged, self.settings.stability_score_offset)
        threshold = self.settings.stability_score_thresh
        stable = stability >= threshold if threshold > 0 else torch.ones_like(stability, dtype=torch.bool)
        masks, rows = enlarged[stable] > 0, stable.cpu().numpy()
        bits, boxes = np.packbits(masks.cpu().numpy(), axis=-1), masks_to_boxes(masks).cpu().numpy()
        return Proposals(bits, boxes, scores[rows], stability[stable].cpu().numpy(), clicks[rows])

    def _clean(self, proposals: Proposals) -> Proposals:
        """Fill small holes, drop small islands, then once more NMS, where untouched masks come first."""
        cleaned = [remove_small_regions(mask, self.settings.min_mask_region_area) for mask in proposals.masks]
        masks = np.stack([mask for mask, _ in cleaned])
        untouched = np.array([not changed for _, changed in cleaned], dtype=np.float32)
        boxes = masks_to_boxes(torch.from_numpy(masks)).numpy()
        kept = box_nms(boxes, untouched, max(self.settings.box_nms_thresh, SECOND_NMS))
        return dataclasses.replace(proposals, masks=masks, boxes=boxes).take(kept)

    def to_dict(self) -> dict[str, Any]:
        """Name, weights and options, as [`get_proposal_generator`] takes them."""
        dtype = str(getattr(self.adapter, "dtype", torch.float32)).removeprefix("torch.")
        return {"name": self.name, "model": self.source, "dtype": dtype, **dataclasses.asdict(self.settings)}

    def identity(self) -> dict[str, Any]:
        """What a result depends on: the options without pure memory settings, and a fingerprint of the weights."""
        options = self.to_dict()
        for name in ("model", *self.settings.memory_only):
            options.pop(name)
        return {**options, "weights": fingerprint_weights(self.adapter.model)}


def stability_score(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """IoU of a mask thresholded at +offset and at -offset: (N, H, W) -> float32 (N,); 0 / 0 is NaN."""
    high = (logits > offset).flatten(1).sum(dim=1, dtype=torch.int32)
    low = (logits > -offset).flatten(1).sum(dim=1, dtype=torch.int32)
    return high / low


def _fit(frame: Image.Image, max_side: int | None) -> Image.Image:
    if not isinstance(frame, Image.Image):
        raise TypeError(f"frames: wanted PIL images, got {type(frame).__name__}.")
    if min(frame.size) < 1:
        raise ValueError(f"frames: an image without pixels, {frame.width} x {frame.height}.")
    frame = frame.convert("RGB")
    if max_side is None or max(frame.size) <= max_side:
        return frame
    factor = max_side / max(frame.size)
    width, height = (max(1, round(side * factor)) for side in frame.size)
    return frame.resize((width, height), Image.Resampling.BILINEAR)

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
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image

from combo_hf.files.environment import fingerprint_weights, resolve_device
from combo_hf.proposals.boxes import box_nms, masks_to_boxes, remove_small_regions


CHUNK_PIXELS = 2**25  # enlarged at a time: 128 MB of float32
CPU_PIXELS = 2**22  # on a CPU what stays in its cache is faster: 11 ms a mask at 720p, not 17
MODEL_PIXELS = 1024 * 1024  # SAM enlarges to its own input size on the way
SECOND_NMS = 0.7  # of the NMS after the clean-up the larger of this and box_nms_thresh counts (crop_nms_thresh)
MEMORY_KNOB = "points_per_batch"


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
    max_side: int | None = 4096

    def __post_init__(self) -> None:
        checks = {
            "points_per_side": (1, 512, int),
            "points_per_batch": (1, 2**20, int),
            "pred_iou_thresh": (-1e9, 1e9, (int, float)),
            "stability_score_thresh": (-1e9, 1.0, (int, float)),
            "stability_score_offset": (0.0, 1e9, (int, float)),
            "box_nms_thresh": (0.0, 1.0, (int, float)),
            "min_mask_region_area": (0, 2**40, int),
            "max_side": (16, 2**20, int),
        }
        for name, (low, high, kind) in checks.items():
            value = getattr(self, name)
            if name == "max_side" and value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name}: wanted {what} from {low:g} to {high:g}, got {value!r}.")


@dataclass(frozen=True)
class Proposals:
    """Masks of one frame, best first (after a clean-up: unchanged ones first).

    Attributes:
        masks: bool (K, H, W).
        scores: float32 (K,), predicted IoU.
        stability: float32 (K,).
        areas: int64 (K,), pixels.
        boxes: int64 (K, 4): left, top, right, bottom, the last two inclusive.
        points: float64 (K, 2): the click (x, y) that gave the mask.
    """

    masks: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    points: np.ndarray


class PointGridProposals:
    """Masks of frames by clicking everywhere: a `ProposalGenerator` over a [`PointPromptModel`].

    Args:
        adapter ([`PointPromptModel`]): the model.
        source (`str`, *optional*): folder or Hub id it came from; without it the generator cannot be saved by name.
        **options: fields of [`MaskSettings`] and the model's own options (`adapter_options`).

    Raises:
        TypeError: an option that does not exist.
        ValueError: an option out of range.
    """

    name: ClassVar[str]
    example: ClassVar[str] = "a folder or a Hub id"
    defaults: ClassVar[dict[str, Any]] = {}
    adapter_options: ClassVar[dict[str, Any]] = {}
    batch_matters: ClassVar[bool] = False

    def __init__(self, adapter: PointPromptModel, *, source: str | None = None, **options: Any) -> None:
        settings, own = self._split(options)
        self.adapter, self.source, self.settings, self.options = adapter, source, settings, own

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> PointPromptModel:
        """Load the model; to be overridden."""
        raise NotImplementedError(f"{cls.__name__}.load_adapter")

    @classmethod
    def from_pretrained(
        cls, model: Any = None, *, device: Any = None, dtype: Any = None, **options: Any
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
        _, own = cls._split(options)
        adapter = cls.load_adapter(str(model), resolve_device(device), resolve_dtype(dtype), **own)
        return cls(adapter, source=str(model), **options)

    @classmethod
    def _split(cls, options: dict[str, Any]) -> tuple[MaskSettings, dict[str, Any]]:
        own = {**cls.adapter_options, **{key: options[key] for key in cls.adapter_options if key in options}}
        common = {key: value for key, value in options.items() if key not in cls.adapter_options}
        known = [field.name for field in dataclasses.fields(MaskSettings)]
        unknown = sorted(set(common) - set(known))
        if unknown:
            raise TypeError(f"{cls.name}: no option {unknown[0]!r}; there are {', '.join([*known, *own])}.")
        return MaskSettings(**{**cls.defaults, **common}), own

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
        grid = point_grid(self.settings.points_per_side) * np.array(frame.size, dtype=np.float64)
        batches = [
            self._candidates(encoded, grid[start : start + self.settings.points_per_batch], frame.size)
            for start in range(0, len(grid), self.settings.points_per_batch)
        ]
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        kept = box_nms(columns["boxes"], columns["scores"], self.settings.box_nms_thresh)
        columns = {name: values[kept] for name, values in columns.items()}
        columns["masks"] = np.unpackbits(columns["masks"], axis=-1, count=frame.width).astype(bool)
        if self.settings.min_mask_region_area and len(kept):
            columns = self._clean(columns)
        return Proposals(areas=np.count_nonzero(columns["masks"], axis=(1, 2)).astype(np.int64), **columns)

    def _candidates(self, encoded: Any, points: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Masks of a batch of clicks that pass both thresholds, as packed bits (N, H, ceil(W / 8))."""
        found = self.adapter.decode(encoded, points)
        logits, ious = found.logits.flatten(0, 1), found.ious.flatten().float()  # (P * M, h, w), (P * M,)
        clicks = np.repeat(points, found.logits.shape[1], axis=0)
        if self.settings.pred_iou_thresh > 0:
            sure = ious > self.settings.pred_iou_thresh
            logits, ious, clicks = logits[sure], ious[sure], clicks[sure.cpu().numpy()]
        width, height = size
        limit = min(CHUNK_PIXELS, CPU_PIXELS) if logits.device.type == "cpu" else CHUNK_PIXELS
        count = max(1, limit // max(width * height, MODEL_PIXELS))
        parts = [self._stable(encoded, chunk) for chunk in logits.split(count)] if len(logits) else []
        nothing = {
            "masks": np.zeros((0, height, -(-width // 8)), dtype=np.uint8),
            "boxes": np.zeros((0, 4), dtype=np.int64),
            "stability": np.zeros(0, dtype=np.float32),
            "stable": np.zeros(0, dtype=bool),
        }
        columns = {name: np.concatenate([empty, *(part[name] for part in parts)]) for name, empty in nothing.items()}
        stable = columns.pop("stable")
        return {**columns, "scores": ious.cpu().numpy()[stable], "points": clicks[stable]}

    def _stable(self, encoded: Any, logits: torch.Tensor) -> dict[str, np.ndarray]:
        """Enlarge some masks and keep those whose edge does not depend on the threshold; `stable` says which."""
        enlarged = self.adapter.upscale(encoded, logits)  # (N, H, W)
        stability = stability_score(enlarged, self.settings.stability_score_offset)
        threshold = self.settings.stability_score_thresh
        stable = stability >= threshold if threshold > 0 else torch.ones_like(stability, dtype=torch.bool)
        masks = enlarged[stable] > 0
        return {
            "masks": np.packbits(masks.cpu().numpy(), axis=-1),
            "boxes": masks_to_boxes(masks).cpu().numpy(),
            "stability": stability[stable].cpu().numpy(),
            "stable": stable.cpu().numpy(),
        }

    def _clean(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fill small holes, drop small islands, then once more NMS, where untouched masks come first."""
        cleaned = [remove_small_regions(mask, self.settings.min_mask_region_area) for mask in columns["masks"]]
        masks = np.stack([mask for mask, _ in cleaned])
        untouched = np.array([not changed for _, changed in cleaned], dtype=np.float32)
        boxes = masks_to_boxes(torch.from_numpy(masks)).numpy()
        kept = box_nms(boxes, untouched, max(self.settings.box_nms_thresh, SECOND_NMS))
        return {name: values[kept] for name, values in {**columns, "masks": masks, "boxes": boxes}.items()}

    def to_dict(self) -> dict[str, Any]:
        """Name, weights and options, as [`get_proposal_generator`] takes them."""
        dtype = str(getattr(self.adapter, "dtype", torch.float32)).removeprefix("torch.")
        settings = dataclasses.asdict(self.settings)
        return {"name": self.name, "model": self.source, "dtype": dtype, **settings, **self.options}

    def identity(self) -> dict[str, Any]:
        """What a result depends on: the options without pure memory knobs, and a fingerprint of the weights."""
        options = self.to_dict()
        options.pop("model")
        if not self.batch_matters:
            options.pop(MEMORY_KNOB)
        return {**options, "weights": fingerprint_weights(self.adapter.model)}


def point_grid(points_per_side: int) -> np.ndarray:
    """Centres of a square grid over the unit square, row by row: float64 (n * n, 2), x and y."""
    side = np.linspace(0.5 / points_per_side, 1 - 0.5 / points_per_side, points_per_side)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def stability_score(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """IoU of a mask thresholded at +offset and at -offset: (N, H, W) -> float32 (N,); 0 / 0 is NaN."""
    high = (logits > offset).flatten(1).sum(dim=1, dtype=torch.int32)
    low = (logits > -offset).flatten(1).sum(dim=1, dtype=torch.int32)
    return high / low


def resolve_dtype(dtype: Any) -> torch.dtype:
    """`None`, a `torch.dtype` or its name -> a float type.

    Raises:
        ValueError: anything else.
    """
    found = dtype
    if dtype is None or isinstance(dtype, str):
        found = getattr(torch, (dtype or "float32").removeprefix("torch."), None)
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype: wanted float32, float16 or bfloat16, got {dtype!r}.")
    return found


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

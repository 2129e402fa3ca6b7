"""Semantic-SAM (Li et al. 2023) as a proposal generator: the masks that the paper of COMBO uses by default.

Mirrors the `SemanticSamAutomaticMaskGenerator` of the release as COMBO's script calls it: Swin-L, level 3, frames at
their own size. No weights come with this package: convert an official file with [`convert_semantic_sam`], whose
licence note applies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from combo_hf.proposals.loading import check_model_type, load_complete
from combo_hf.proposals.mask_generator import Candidates, MaskSettings, PointGridProposals
from combo_hf.proposals.modeling_semantic_sam import SemanticSamFeatures, SemanticSamModel, enlarge


MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of 0 to 255


class SemanticSamAdapter:
    """[`PointPromptModel`] over [`SemanticSamModel`].

    Args:
        model: the network; put into evaluation mode.
        levels: levels of detail to answer with, 1 to 6; one mask per click and level.
    """

    def __init__(self, model: SemanticSamModel, levels: list[int] | tuple[int, ...] = (3,)) -> None:
        self.model, self.levels = model.eval(), list(levels)

    def encode(self, frame: Image.Image) -> SemanticSamFeatures:
        """Normalise and encode; the frame keeps its size."""
        pixels = torch.from_numpy(np.array(frame.convert("RGB"))).to(self.model.device)
        mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
        with torch.no_grad():
            return self.model.encode(((pixels - mean) / std).permute(2, 0, 1)[None])

    def decode(self, encoded: SemanticSamFeatures, points: np.ndarray) -> Candidates:
        """One mask per click and level, levels in the order asked for. The clicks see each other."""
        height, width = encoded.size
        relative = torch.from_numpy(points / np.array([width, height])).float()
        with torch.no_grad():
            output = self.model.decode(encoded, relative[None], self.levels)
        return Candidates(output.mask_logits[0], output.iou_scores[0])

    def upscale(self, encoded: SemanticSamFeatures, logits: torch.Tensor) -> torch.Tensor:
        """Bilinear to the padded frame, then the padding is cut off."""
        return enlarge(logits, encoded)


@dataclass(frozen=True)
class SemanticSamSettings(MaskSettings):
    """[`MaskSettings`] with the defaults of Semantic-SAM.

    Args:
        points_per_batch: no memory setting here: clicks of a batch attend to each other, so that another number gives
            other masks. The model's configuration has its own (200 in the release), which is the default.
        level: levels of detail, 1 to 6; one mask per click and level (COMBO: `[3]`).
    """

    points_per_batch: int = 200
    stability_score_thresh: float = 0.92
    min_mask_region_area: int = 10
    level: list[int] = field(default_factory=lambda: [3])
    memory_only: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        level = self.level
        if not isinstance(level, (list, tuple)) or not level or any(type(entry) is not int for entry in level):
            raise ValueError(f"level: wanted a list of some of 1 to 6, got {level!r}.")
        if any(not 1 <= entry <= 6 for entry in level) or len(set(level)) < len(level):
            raise ValueError(f"level: wanted different levels from 1 to 6, got {level!r}.")
        object.__setattr__(self, "level", list(level))


class SemanticSamProposals(PointGridProposals):
    """Semantic-SAM's automatic masks: 32 x 32 clicks at one or more of six levels of detail."""

    name: ClassVar[str] = "semantic_sam"
    example: ClassVar[str] = "a folder made by 'combo-hf proposals convert FILE.pth --model semantic_sam'"
    settings_class: ClassVar[type[MaskSettings]] = SemanticSamSettings
    settings: SemanticSamSettings

    def __init__(self, adapter: SemanticSamAdapter, *, source: str | None = None, **options: Any) -> None:
        options = {"points_per_batch": adapter.model.config.points_per_batch, **options}
        super().__init__(adapter, source=source, **options)
        adapter.levels = self.settings.level

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype) -> SemanticSamAdapter:
        """Load a converted [`SemanticSamModel`]."""
        check_model_type(cls.name, model, SemanticSamModel.config_class.model_type)
        network: Any = load_complete(SemanticSamModel, model, dtype=torch.float32)
        return SemanticSamAdapter(network.to(device, dtype))

"""MobileSAM (Zhang et al. 2023) as a proposal generator: SAM's decoder behind a small image encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from combo_hf.proposals.mask_generator import PointGridProposals
from combo_hf.proposals.sam import SamAdapter, check_model_type, load_sam


class MobileSamProposals(PointGridProposals):
    """MobileSAM's automatic masks; grid and thresholds are SAM's, as in the release of COMBO."""

    name: ClassVar[str] = "mobile_sam"
    example: ClassVar[str] = "a folder made by 'combo-hf proposals convert mobile_sam.pt --model mobile_sam'"

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> SamAdapter:
        """Load a converted [`MobileSamModel`] and its image processor."""
        from combo_hf.proposals.modeling_mobile_sam import MobileSamModel

        check_model_type(cls.name, model, "mobile_sam")
        return load_sam(MobileSamModel, model, device, dtype)

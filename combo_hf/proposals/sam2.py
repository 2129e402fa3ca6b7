"""SAM 2 and EdgeTAM as proposal generators, frame by frame, on transformers' models; not used in the paper.

Their image processor needs torchvision, EdgeTAM's backbone also timm; below transformers 5.20 EdgeTAM's configuration
needs the Hub even where the weights are local. Mirrors `SAM2AutomaticMaskGenerator` with its
defaults: the frame is stretched to the square input, low-resolution masks are enlarged to the frame in one step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from combo_hf.proposals.mask_generator import Candidates, PointGridProposals
from combo_hf.proposals.sam import EncodedFrame, SamAdapter, check_model_type, load_complete


class Sam2Adapter(SamAdapter):
    """[`PointPromptModel`] over `Sam2Model` or `EdgeTamModel`."""

    def encode(self, frame: Image.Image) -> EncodedFrame:
        """Stretch to the square input, normalise, encode; features of three scales."""
        inputs = self.image_processor(frame, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device, self.dtype)
        with self._autocast():
            features = self.model.get_image_embeddings(pixels)
        return EncodedFrame(features, (frame.height, frame.width), tuple(pixels.shape[-2:]))

    def decode(self, encoded: EncodedFrame, points: np.ndarray) -> Candidates:
        """Three masks for every click."""
        scale = np.array(encoded.input_size[::-1]) / np.array(encoded.size[::-1])
        clicks = torch.from_numpy(points * scale).float()[None, :, None].to(self.device)  # (1, P, 1, 2)
        labels = torch.ones(clicks.shape[:3], dtype=torch.int32, device=self.device)
        with self._autocast():
            output = self.model(
                image_embeddings=list(encoded.features),
                input_points=clicks,
                input_labels=labels,
                multimask_output=True,
            )
        return Candidates(output.pred_masks[0], output.iou_scores[0])

    def upscale(self, encoded: EncodedFrame, logits: torch.Tensor) -> torch.Tensor:
        """Bilinear to the frame."""
        return F.interpolate(logits[:, None].float(), encoded.size, mode="bilinear", align_corners=False)[:, 0]


class Sam2Proposals(PointGridProposals):
    """SAM 2's automatic masks, every frame on its own."""

    name: ClassVar[str] = "sam2"
    example: ClassVar[str] = "'facebook/sam2.1-hiera-tiny' (or -small, -base-plus, -large), or a folder"
    defaults: ClassVar[dict[str, Any]] = {"pred_iou_thresh": 0.8}
    network: ClassVar[str] = "Sam2Model"
    model_types: ClassVar[tuple[str, ...]] = ("sam2", "sam2_video")  # released files name the video model

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Sam2Adapter:
        """Load the model and its image processor.

        Raises:
            ImportError: torchvision (EdgeTAM: or timm) is missing.
        """
        import transformers

        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(f"{cls.name} needs torchvision: pip install 'combo-hf[proposals]' ({error}).") from error
        check_model_type(cls.name, model, *cls.model_types)
        loaded = load_complete(getattr(transformers, cls.network), model)
        processor = sam2_image_processor(model, loaded.config.prompt_encoder_config.image_size)
        return Sam2Adapter(loaded.to(device), processor, dtype)


class EdgeTamProposals(Sam2Proposals):
    """EdgeTAM's automatic masks, every frame on its own."""

    name: ClassVar[str] = "edgetam"
    example: ClassVar[str] = "'yonigozlan/EdgeTAM-hf', or a folder"
    network: ClassVar[str] = "EdgeTamModel"
    model_types: ClassVar[tuple[str, ...]] = ("edgetam", "edgetam_video")


def sam2_image_processor(model: str, side: int) -> Any:
    """SAM 2's image processor: as saved beside the weights, else for the network's input size."""
    from transformers import Sam2ImageProcessor

    try:
        return Sam2ImageProcessor.from_pretrained(model)
    except OSError:
        return Sam2ImageProcessor(size={"height": side, "width": side})

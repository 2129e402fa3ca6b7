"""MobileSAM: SAM's prompt encoder and mask decoder (transformers') behind a TinyViT image encoder (ours)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, SamModel
from transformers import initialization as init
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPreTrainedModel,
    SamPromptEncoder,
)

from combo_hf.proposals.modeling_tiny_vit import TinyVitAttention, TinyVitEncoder


class MobileSamVisionConfig(PretrainedConfig):
    r"""TinyViT-5M as MobileSAM has it (`build_sam_vit_t`).

    Args:
        hidden_sizes (`list[int]`): width of the four stages.
        depths (`list[int]`): blocks of the four stages; the first stage is convolutional.
        num_attention_heads (`list[int]`): of the stages 1 to 3 (the first entry is not used).
        window_sizes (`list[int]`): of the stages 1 to 3 (the first entry is not used).
        strides (`list[int]`): of the patch merging after the stages 0 to 2. TinyViT has 2 everywhere; MobileSAM keeps
            the last stage at stride 16.
        expand_ratio, mlp_ratio (`float`): widening inside the convolutional and the attention blocks.
        output_channels (`int`): width of the image embedding.
        image_size (`int`): side of the square input.
        num_pos_feats, scale: of the shared position encoding, named as in `SamVisionConfig`.

    Raises:
        ValueError: lists that do not fit each other.
    """

    model_type = "mobile_sam_vision_model"
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_sizes: Any = (64, 128, 160, 320),
        depths: Any = (2, 2, 6, 2),
        num_attention_heads: Any = (2, 4, 5, 10),
        window_sizes: Any = (7, 7, 14, 7),
        strides: Any = (2, 2, 1),
        expand_ratio: float = 4.0,
        mlp_ratio: float = 4.0,
        output_channels: int = 256,
        image_size: int = 1024,
        num_pos_feats: int = 128,
        scale: float = 1.0,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_sizes, self.depths, self.strides = list(hidden_sizes), list(depths), list(strides)
        self.num_attention_heads, self.window_sizes = list(num_attention_heads), list(window_sizes)
        self.expand_ratio, self.mlp_ratio = expand_ratio, mlp_ratio
        self.output_channels, self.image_size = output_channels, image_size
        self.num_pos_feats, self.scale, self.initializer_range = num_pos_feats, scale, initializer_range
        self.hidden_size = self.hidden_sizes[-1]
        lengths = [len(values) for values in (self.hidden_sizes, self.depths, self.num_attention_heads,
                                              self.window_sizes, [0, *self.strides])]  # fmt: skip
        if lengths != [4] * 5:
            raise ValueError(
                "MobileSamVisionConfig: wanted 4 hidden_sizes, depths, num_attention_heads and window_sizes and 3 "
                f"strides, got {lengths[:4]} and {lengths[4] - 1}."
            )
        for width, heads in zip(self.hidden_sizes[1:], self.num_attention_heads[1:], strict=True):
            if width % heads:
                raise ValueError(f"MobileSamVisionConfig: a width of {width} cannot be dealt out to {heads} heads.")


class MobileSamConfig(PretrainedConfig):
    """Image encoder, prompt encoder and mask decoder of MobileSAM; the defaults are the released model."""

    model_type = "mobile_sam"
    sub_configs = {
        "vision_config": MobileSamVisionConfig,
        "prompt_encoder_config": SamPromptEncoderConfig,
        "mask_decoder_config": SamMaskDecoderConfig,
    }

    def __init__(
        self,
        vision_config: Any = None,
        prompt_encoder_config: Any = None,
        mask_decoder_config: Any = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        given = (vision_config, prompt_encoder_config, mask_decoder_config)
        for (name, kind), value in zip(self.sub_configs.items(), given, strict=True):
            setattr(self, name, value if isinstance(value, PretrainedConfig) else kind(**(value or {})))
        self.initializer_range = initializer_range
        kwargs.setdefault("tie_word_embeddings", True)  # one position encoding for clicks and image
        super().__init__(**kwargs)


class MobileSamModel(SamModel):
    """MobileSAM (Zhang et al. 2023); called as `SamModel` is."""

    config_class = MobileSamConfig
    config: MobileSamConfig  # type: ignore[assignment]  # its parts have SamConfig's names
    _no_split_modules = ["TinyVitAttentionBlock"]

    def __init__(self, config: MobileSamConfig) -> None:
        SamPreTrainedModel.__init__(self, config)  # SamModel's own would build a ViT
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.vision_encoder = TinyVitEncoder(config.vision_config)  # type: ignore[assignment]  # for the ViT
        self.prompt_encoder = SamPromptEncoder(config)  # type: ignore[arg-type]
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """First layer of the image encoder."""
        return self.vision_encoder.patch_embed

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TinyVitAttention):
            init.zeros_(module.attention_biases)

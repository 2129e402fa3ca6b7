"""Configuration of the Semantic-SAM proposal model (Li et al., 2023, arXiv:2307.04767), inference path only."""

from __future__ import annotations

import copy
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig


STAGES = ["stage1", "stage2", "stage3", "stage4"]
VARIANTS: dict[str, dict[str, Any]] = {  # the two released sizes: Swin-T and Swin-L
    "tiny": {
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
    },
    "large": {
        "model_type": "swin",
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": 12,
    },
}
LEVEL_TOKENS = [3, 2, 0, 4, 1, 5]  # the release's `prompt_switch`, for levels 1 to 6


class SemanticSamConfig(PretrainedConfig):
    r"""Configuration of [`SemanticSamModel`].

    Args:
        backbone_config (`dict` or `PretrainedConfig`): four stages of strides 4 to 32, built by `AutoBackbone`.
            Default: Swin-L, the size COMBO uses.
        hidden_dim (`int`): width of pixel decoder, click tokens and mask features.
        num_attention_heads (`int`): heads of all attentions.
        deformable_points (`int`): points that a token reads in each of the four levels.
        encoder_layers, encoder_feedforward_dim (`int`): deformable pixel decoder.
        decoder_layers, decoder_feedforward_dim (`int`): interactive decoder.
        level_tokens (`list[int]`): one token per level of detail is decoded for every click; entry l - 1 is the token
            that answers level l. The release numbers levels 1 to 6 but has them in another order inside.
        click_box_size (`float`): side of the box, as a part of the frame, that stands for a click.
        points_per_batch (`int`): clicks decoded together. Not a memory setting: the clicks of a batch attend to each
            other, so another number gives other masks (the release: 200).

    Raises:
        ValueError: a value that no network can be built from.
    """

    model_type = "semantic_sam"

    def __init__(
        self,
        backbone_config: dict | PretrainedConfig | None = None,
        hidden_dim: int = 256,
        num_attention_heads: int = 8,
        deformable_points: int = 4,
        encoder_layers: int = 6,
        encoder_feedforward_dim: int = 2048,
        decoder_layers: int = 9,
        decoder_feedforward_dim: int = 2048,
        level_tokens: list[int] | None = None,
        click_box_size: float = 0.005,
        points_per_batch: int = 200,
        **kwargs: Any,
    ) -> None:
        if backbone_config is None:
            backbone_config = VARIANTS["large"]
        if isinstance(backbone_config, dict):
            backbone_config = _build_backbone_config(backbone_config)
        self.backbone_config = backbone_config
        self.hidden_dim = hidden_dim
        self.num_attention_heads = num_attention_heads
        self.deformable_points = deformable_points
        self.encoder_layers = encoder_layers
        self.encoder_feedforward_dim = encoder_feedforward_dim
        self.decoder_layers = decoder_layers
        self.decoder_feedforward_dim = decoder_feedforward_dim
        self.level_tokens = list(LEVEL_TOKENS if level_tokens is None else level_tokens)
        self.click_box_size = click_box_size
        self.points_per_batch = points_per_batch
        super().__init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise `ValueError` where no network can be built; names the field, the value and what fits."""
        if self.hidden_dim % self.num_attention_heads or self.hidden_dim % 4:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of 4 (sine positions of x and y) and of "
                f"num_attention_heads {self.num_attention_heads}."
            )
        if sorted(self.level_tokens) != list(range(len(self.level_tokens))) or not self.level_tokens:
            raise ValueError(f"level_tokens must hold each of 0, 1, 2, ... once, got {self.level_tokens}.")
        if not 0 < self.click_box_size < 1:
            raise ValueError(f"click_box_size is {self.click_box_size}; use a part of the frame, between 0 and 1.")
        counts = ("points_per_batch", "deformable_points", "encoder_layers", "decoder_layers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more.")

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> SemanticSamConfig:
        """Configuration of a released size.

        Args:
            variant: `"tiny"` (Swin-T) or `"large"` (Swin-L).
            **overrides: fields that replace the default ones.

        Raises:
            ValueError: unknown variant.
        """
        if variant not in VARIANTS:
            raise ValueError(f"Semantic-SAM was released in the sizes {sorted(VARIANTS)}, got {variant!r}.")
        return cls(**{"backbone_config": VARIANTS[variant], **overrides})


def _build_backbone_config(values: dict) -> PretrainedConfig:
    values = copy.deepcopy(values)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"backbone_config needs a model_type that transformers knows, got {model_type!r}.")
    values.setdefault("out_features", STAGES)
    return CONFIG_MAPPING[model_type].from_dict(values)

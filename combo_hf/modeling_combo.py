"""COMBO: which pixels make this sound? The whole network on one screen.

    frames (F,3,H,W) --+-> Siam encoder -> pixel decoder -> mask features (F,d,h,w) -+-> bilateral fusion -+
    Maskiges (F,3,H,W) +                        |                                    |                     |
                                                +-> three scales --------------------|----------+          |
    log-mel (F,1,96,64) -> VGGish (F,D) ---------------------------------------------+          |          |
                                     audio projection -> query audio (F,Q,d) -> masked-attention decoder <-+
                                                                                 -> classes and masks per query

Axes used in all files: B clips, T frames of a clip, F packed frames (the sum of T over the batch), Q queries, K
classes (background included, index 0), C channels, d hidden width, D audio width, H W image, h w = H/4 W/4 mask, S
tokens of a scale. Clips of different length share a batch without padding; `num_frames` (B,) says where each ends.
Nothing in evaluation mode depends on the other clips of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_combo import ComboConfig
from .label_maps_combo import gate_classes, weigh_background
from .loss_combo import ComboLoss
from .modeling_combo_decoder import ComboDecoder, spread_audio
from .modeling_combo_encoders import ComboSiamEncoder, ComboVGGish
from .modeling_combo_fusion import ComboAudioProjection, ComboBilateralFusion
from .modeling_combo_inputs import FittingWeights, check_inputs, check_labels, frames_per_clip
from .modeling_combo_pixel_decoder import ComboPixelDecoder
from .remote_code_combo import ENTRIES, announced_code, push_arguments, write_code


@dataclass
class ComboModelOutput(ModelOutput):
    """Output of [`ComboModel`].

    Args:
        class_queries_logits (`torch.FloatTensor` of shape `(F, Q, K + 1)`): class scores, index K is "no object".
        masks_queries_logits (`torch.FloatTensor` of shape `(F, Q, h, w)`): mask logits at a quarter of the input.
        auxiliary_logits (`list` of the two above, on request): learned queries first, then every layer but the last.
        query_audio (`torch.FloatTensor` of shape `(F, Q, d)`): the sound added to each query.
        audio_embeddings (`torch.FloatTensor` of shape `(F, D)`): VGGish embedding of each frame's second.
        fusion_attention (`torch.FloatTensor` of shape `(F, M, h, w)`): where each head of the bilateral fusion looks.
        fused_features (`torch.FloatTensor` of shape `(F, d, h, w)`, with the auxiliary logits): mask features after
            the bilateral fusion.
    """

    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    auxiliary_logits: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    query_audio: torch.Tensor | None = None
    audio_embeddings: torch.Tensor | None = None
    fusion_attention: torch.Tensor | None = None
    fused_features: torch.Tensor | None = None


@dataclass
class ComboForAudioVisualSegmentationOutput(ComboModelOutput):
    """[`ComboModelOutput`] with `loss` (scalar) and `loss_dict` (name -> weighted term, summing to `loss`)."""

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


class ComboPreTrainedModel(FittingWeights, PreTrainedModel):
    """Initialisation, and what transformers and accelerate ask of a model class."""

    config: ComboConfig
    config_class = ComboConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["video", "audio"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # The parts of Figure 2, each on one device: between them the hooks of accelerate move what they hand on.
    _no_split_modules = [
        "ComboSiamEncoder",
        "ComboVGGish",
        "ComboPixelDecoder",
        "ComboBilateralFusion",
        "ComboAudioProjection",
        "ComboDecoder",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every layer starts as in the release: xavier for linear layers, Kaiming for convolutions, N(0, 1) for
        embeddings; then `reset_combo_parameters` of the module around them draws again what starts otherwise."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)
            else:
                init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)
        reset = getattr(module, "reset_combo_parameters", None)
        if reset is not None:
            reset()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Never as "custom code": of such, transformers leaves out every module that has no tensor of its own, so that
        its `reset_combo_parameters` would not run. Tensors that were loaded are safe: `transformers.initialization`
        passes over them."""
        super()._initialize_weights(module)


class ComboModel(ComboPreTrainedModel):
    """The COMBO network. `forward` reads as the paper's Figure 2."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__(config)
        self.encoder = ComboSiamEncoder(config)
        self.audio_encoder = ComboVGGish(config)
        self.pixel_decoder = ComboPixelDecoder(config, self.encoder.channels)
        self.fusion = ComboBilateralFusion(config)
        self.audio_projection = ComboAudioProjection(config)
        self.decoder = ComboDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The layer that takes the pixels, as in other models of pictures."""
        return next(module for module in self.encoder.backbone.modules() if isinstance(module, nn.Conv2d))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        maskige_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        num_frames: torch.Tensor | list[int] | None = None,
        output_auxiliary_logits: bool = False,
    ) -> ComboModelOutput:
        """Segment packed clips. `return_dict=False` gives a tuple of what is not `None`.

        Args:
            pixel_values: `(F, 3, H, W)` normalised frames, H and W multiples of 32.
            maskige_values: `(F, 3, H, W)` normalised Maskiges; `None` only if `config.use_maskige` is False.
            input_features: `(F, 1, 96, 64)` log-mel examples, one per frame; or `(F, D)`, what `embed_audio` made of
                them, so that several frames of one second need it once.
            num_frames: `(B,)` frames of each clip, summing to F; `None`: one clip.
            output_auxiliary_logits: also return the predictions of the learned queries and of all layers but the last.

        Raises:
            ValueError: shapes that do not fit together; the message says what was wanted and what came.
        """
        num_frames = check_inputs(self.config, pixel_values, maskige_values, input_features, num_frames)
        feature_maps = self.encoder(pixel_values, maskige_values)
        assert input_features is not None, "checked"
        audio = input_features if input_features.ndim == 2 else self.audio_encoder(input_features)  # (F, D)
        features, scales = self.pixel_decoder(feature_maps)
        mask_features, fused_audio, attention = self.fusion(features, self._dropped(audio))
        projected = self.audio_projection(fused_audio)
        query_audio = spread_audio(projected, num_frames, self.config.num_queries, self.config.audio_query_layout)
        predictions = self.decoder(mask_features, scales, query_audio, output_auxiliary_logits)
        return ComboModelOutput(
            class_queries_logits=predictions[-1][0],
            masks_queries_logits=predictions[-1][1],
            auxiliary_logits=predictions[:-1] if output_auxiliary_logits else None,
            query_audio=query_audio,
            audio_embeddings=audio,
            fusion_attention=attention,
            fused_features=mask_features if output_auxiliary_logits else None,
        )

    def _dropped(self, audio: torch.Tensor) -> torch.Tensor:
        """Embeddings (F, D) with those of a share of the frames set to 0, see `config.audio_dropout`."""
        share = self.config.audio_dropout
        if share == 0 or not (self.training or share == 1):
            return audio
        return audio * (torch.rand(len(audio), 1, device=audio.device) >= share).to(audio)


class ComboForAudioVisualSegmentation(ComboPreTrainedModel):
    """COMBO with its training loss.

    Args:
        config ([`ComboConfig`]): the weights are random; [`from_pretrained`] loads those of a checkpoint.

    Examples:
        >>> import torch
        >>> from combo_hf import ComboConfig, ComboForAudioVisualSegmentation
        >>> model = ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny")).eval()
        >>> frames, maskiges = torch.rand(2, 5, 3, 96, 96)  # of one clip of five seconds
        >>> with torch.no_grad():
        ...     output = model(frames, maskiges, torch.zeros(5, 1, 96, 64), num_frames=[5])
        >>> output.class_queries_logits.shape, output.masks_queries_logits.shape
        (torch.Size([5, 20, 3]), torch.Size([5, 20, 24, 24]))
    """

    def __init__(self, config: ComboConfig) -> None:
        super().__init__(config)
        self.model = ComboModel(config)
        self.criterion = ComboLoss(config)
        self.pixel_head = None
        if config.pixel_weight:
            self.pixel_head = nn.Conv2d(config.hidden_dim, config.num_labels, kernel_size=1)
        self.class_gate = None
        if config.class_gate:
            self.class_gate = nn.Linear(config.audio_config["embedding_size"], config.num_labels - 1)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs, decoders and masks, whatever the backbones compute in ([`set_backbone_dtype`])."""
        return next(p.dtype for p in self.model.pixel_decoder.parameters() if p.is_floating_point())

    def set_backbone_dtype(self, dtype: torch.dtype) -> ComboForAudioVisualSegmentation:
        """Let the visual backbones compute in another precision than the rest; for segmenting, not for training.

        In `torch.bfloat16` they, which are most of the work, are faster on processors and GPUs with bfloat16 products,
        while decoders and masks stay in full precision. Weights that were rounded stay so: load them again to go back.

        Args:
            dtype (`torch.dtype`): a floating point type.

        Raises:
            TypeError: not a floating point type.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"set_backbone_dtype wants a floating point type such as torch.bfloat16, got {dtype!r}.")
        for backbone in (self.model.encoder.backbone, self.model.encoder.maskige_backbone):
            if backbone is not None:
                backbone.to(dtype)
        return self

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """Log-mel examples `(N, 1, 96, 64)` -> their embeddings `(N, D)`, which `forward` takes in their place."""
        return self.model.audio_encoder(input_features)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        carry_code: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save weights and configuration, and beside them the code that loads them.

        Args:
            save_directory, is_main_process, state_dict, push_to_hub, **kwargs: as in
                `PreTrainedModel.save_pretrained`.
            carry_code: copy this package's core (some 20 small files), so that the folder loads with
                `trust_remote_code=True` where the package is not installed. `False`: a folder for installations only.
        """
        push = push_arguments(save_directory, kwargs) if push_to_hub else {}
        with announced_code([self.config], carry_code, ENTRIES):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if carry_code and is_main_process:
            write_code(save_directory)
        if push_to_hub and is_main_process:
            self.push_to_hub(**push)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        maskige_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        num_frames: torch.Tensor | list[int] | None = None,
        mask_labels: list[torch.Tensor] | None = None,
        class_labels: list[torch.Tensor] | None = None,
        label_frames: torch.Tensor | None = None,
        output_auxiliary_logits: bool = False,
        loss_divisors: Mapping[str, float | torch.Tensor] | None = None,
        video_ids: Sequence[str] | None = None,
    ) -> ComboForAudioVisualSegmentationOutput:
        """Segment packed clips and, with labels, compute the loss. Inputs of [`ComboModel`], and:

        Args:
            mask_labels: one `(C_i, H, W)` binary mask stack per annotated frame.
            class_labels: one `(C_i,)` class index vector per annotated frame.
            label_frames: `(F,)` bool, marks the annotated frames; `None`: all frames.
            loss_divisors: by kind of term, to share one loss between batches or processes; see [`ComboLoss`].
            video_ids: names of the clips, as [`ComboCollator`] gives them; not used.

        Raises:
            ValueError: inputs or labels that do not fit together.
        """
        targets: list[Any] | None = None
        if mask_labels is not None:
            *targets, num_frames = check_labels(
                self.config, pixel_values, mask_labels, class_labels, label_frames, num_frames
            )
        all_layers = output_auxiliary_logits or targets is not None
        out = self.model(pixel_values, maskige_values, input_features, num_frames, all_layers, return_dict=True)
        values = dict(out.items())
        predictions = [*(out.auxiliary_logits or []), (out.class_queries_logits, out.masks_queries_logits)]
        if self.class_gate is not None:
            heard = self.class_gate(out.audio_embeddings)  # (F, K - 1)
            predictions = [(gate_classes(classes, heard), masks) for classes, masks in predictions]
            values["class_queries_logits"], values["auxiliary_logits"] = predictions[-1][0], predictions[:-1]
        if targets is not None:
            clips = frames_per_clip(num_frames, len(pixel_values))
            pixels = None if self.pixel_head is None else self.pixel_head(out.fused_features)  # (F, K, h, w)
            values["loss_dict"] = self.criterion(predictions, *targets, clips, loss_divisors, pixels)
            values["loss"] = torch.stack(list(values["loss_dict"].values())).sum()
        if not self.training:
            weight = self.config.background_weight
            values["class_queries_logits"] = weigh_background(values["class_queries_logits"], weight)
        if not output_auxiliary_logits:
            values.pop("auxiliary_logits", None)
            values.pop("fused_features", None)
        return ComboForAudioVisualSegmentationOutput(**values)

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_combo import ComboConfig
from .loss_combo import ComboLoss
from .modeling_combo_decoder import ComboDecoder, spread_audio
from .modeling_combo_encoders import ComboSiamEncoder, ComboVGGish
from .modeling_combo_fusion import ComboAudioProjection, ComboBilateralFusion
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
    """

    class_queries_logits: torch.FloatTensor | None = None
    masks_queries_logits: torch.FloatTensor | None = None
    auxiliary_logits: list | None = None
    query_audio: torch.FloatTensor | None = None
    audio_embeddings: torch.FloatTensor | None = None
    fusion_attention: torch.FloatTensor | None = None


@dataclass
class ComboForAudioVisualSegmentationOutput(ComboModelOutput):
    """[`ComboModelOutput`] with `loss` (scalar) and `loss_dict` (name -> weighted term, summing to `loss`)."""

    loss: torch.FloatTensor | None = None
    loss_dict: dict | None = None


class ComboPreTrainedModel(PreTrainedModel):
    config_class = ComboConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ComboPixelDecoderLayer", "ComboDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for linear layers, Kaiming for convolutions; modules with tables of their own fill them."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                init.zeros_(module.bias)
        if hasattr(module, "reset_combo_parameters"):
            module.reset_combo_parameters()


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

    def forward(
        self,
        pixel_values: torch.Tensor,
        maskige_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        num_frames: torch.Tensor | list[int] | None = None,
        output_auxiliary_logits: bool = False,
        tap: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> ComboModelOutput:
        """Segment packed clips.

        Args:
            pixel_values: `(F, 3, H, W)` normalised frames, H and W multiples of 32.
            maskige_values: `(F, 3, H, W)` normalised Maskiges; `None` only if `config.use_maskige` is False.
            input_features: `(F, 1, 96, 64)` log-mel examples, one per frame.
            num_frames: `(B,)` frames of each clip, summing to F; `None`: one clip.
            output_auxiliary_logits: also return the predictions of the learned queries and of all layers but the last.
            tap: filled with intermediate states by name, for inspection and parity tests.

        Raises:
            ValueError: shapes that do not fit together; the message says what was wanted and what came.
        """
        num_frames = check_inputs(self.config, pixel_values, maskige_values, input_features, num_frames)
        feature_maps = self.encoder(pixel_values, maskige_values)
        audio = self.audio_encoder(input_features)
        features, scales = self.pixel_decoder(feature_maps, tap)
        mask_features, fused_audio, attention = self.fusion(features, audio)
        projected = self.audio_projection(fused_audio)
        query_audio = spread_audio(projected, num_frames, self.config.num_queries, self.config.audio_query_layout)
        predictions = self.decoder(mask_features, scales, query_audio, output_auxiliary_logits, tap)
        if tap is not None:
            tap.update({f"fused/res{level + 2}": maps for level, maps in enumerate(feature_maps)})
            tap.update({f"multi_scale/{level}": maps for level, maps in enumerate(scales)})
            tap.update(vggish=audio, mask_features=features, bfm_visual=mask_features, bfm_audio=fused_audio)
            tap.update(audio_transformed=projected)
        return ComboModelOutput(
            class_queries_logits=predictions[-1][0],
            masks_queries_logits=predictions[-1][1],
            auxiliary_logits=predictions[:-1] if output_auxiliary_logits else None,
            query_audio=query_audio,
            audio_embeddings=audio,
            fusion_attention=attention,
        )


class ComboForAudioVisualSegmentation(ComboPreTrainedModel):
    """COMBO with its training loss."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__(config)
        self.model = ComboModel(config)
        self.criterion = ComboLoss(config)
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

    def save_pretrained(
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
        **kwargs: Any,
    ) -> ComboForAudioVisualSegmentationOutput:
        """Segment packed clips and, with labels, compute the loss. Inputs of [`ComboModel`], and:

        Args:
            mask_labels: one `(C_i, H, W)` binary mask stack per annotated frame.
            class_labels: one `(C_i,)` class index vector per annotated frame.
            label_frames: `(F,)` bool, marks the annotated frames; `None`: all frames.
            loss_divisors: by kind of term, to share one loss between batches or processes; see [`ComboLoss`].

        Raises:
            ValueError: inputs or labels that do not fit together.
        """
        train = mask_labels is not None
        if train:
            num_labelled = check_labels(self.config, pixel_values, mask_labels, class_labels, label_frames)
        out = self.model(
            pixel_values, maskige_values, input_features, num_frames, output_auxiliary_logits or train, **kwargs
        )
        loss, loss_dict = None, None
        if train:
            clips = frames_per_clip(num_frames, len(pixel_values))
            loss_dict = self.criterion(
                [*out.auxiliary_logits, (out.class_queries_logits, out.masks_queries_logits)],
                mask_labels,
                class_labels,
                num_labelled,
                clips,
                loss_divisors,
            )
            loss = torch.stack(list(loss_dict.values())).sum()
        values = dict(out.items())
        if not output_auxiliary_logits:
            values.pop("auxiliary_logits", None)
        return ComboForAudioVisualSegmentationOutput(**values, loss=loss, loss_dict=loss_dict)


def frames_per_clip(num_frames: torch.Tensor | list[int] | None, total: int) -> list[int]:
    """Frames of each clip as a list; `None` means one clip of `total` frames."""
    if num_frames is None:
        return [total]
    counts = num_frames.tolist() if torch.is_tensor(num_frames) else num_frames
    if not isinstance(counts, (list, tuple)) or any(type(count) is bool or count != int(count) for count in counts):
        raise ValueError(f"num_frames: wanted whole numbers of frames (B,), one for each clip, got {num_frames!r}.")
    return [int(count) for count in counts]


def check_inputs(
    config: ComboConfig,
    pixel_values: torch.Tensor,
    maskige_values: torch.Tensor | None,
    input_features: torch.Tensor | None,
    num_frames: torch.Tensor | list[int] | None,
) -> list[int]:
    """Raise `ValueError` where the inputs of the network do not fit; returns the frames of each clip."""
    for name, values in (("pixel_values", pixel_values), ("maskige_values", maskige_values),
                         ("input_features", input_features)):  # fmt: skip
        _check_floats(name, values)
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3 or not shape[0] or shape[2] % 32 or shape[3] % 32 or not shape[2] * shape[3]:
        raise ValueError(
            f"pixel_values must be (F, 3, H, W), H and W multiples of 32, at least one frame; got {shape}."
        )
    if config.use_maskige:
        if maskige_values is None:
            raise ValueError(
                "maskige_values is missing; this model was built with use_maskige=True. "
                "Pass what the processor returns, or build the model with use_maskige=False."
            )
        if maskige_values.shape != pixel_values.shape:
            raise ValueError(f"maskige_values {tuple(maskige_values.shape)} must have pixel_values' shape {shape}.")
    elif maskige_values is not None:
        raise ValueError("maskige_values given, but this model was built with use_maskige=False; pass None.")
    if input_features is None:
        raise ValueError("input_features is missing: one log-mel example (1, 96, 64) per frame; silence is log(0.01).")
    if tuple(input_features.shape) != (shape[0], 1, 96, 64):
        raise ValueError(f"input_features must be ({shape[0]}, 1, 96, 64), got {tuple(input_features.shape)}.")
    clips = frames_per_clip(num_frames, shape[0])
    if sum(clips) != shape[0] or min(clips) < 1:
        raise ValueError(f"num_frames {clips} must be positive and sum to the {shape[0]} frames of pixel_values.")
    return clips


def _check_floats(name: str, values: Any) -> None:
    if values is None and name != "pixel_values":  # what may be missing is for the caller to say
        return
    if not torch.is_tensor(values) or not values.is_floating_point():
        raise ValueError(f"{name}: wanted a tensor of floats, got {getattr(values, 'dtype', type(values))}.")


def check_labels(
    config: ComboConfig,
    pixel_values: torch.Tensor,
    mask_labels: list[torch.Tensor],
    class_labels: list[torch.Tensor] | None,
    label_frames: torch.Tensor | None,
) -> torch.Tensor:
    """Raise `ValueError` where labels do not fit the frames; returns `label_frames` (F,) bool."""
    frames = len(pixel_values)
    if not all(isinstance(labels, (list, tuple)) and all(map(torch.is_tensor, labels))
               for labels in (mask_labels, [] if class_labels is None else class_labels)):  # fmt: skip
        raise ValueError("mask_labels and class_labels: wanted lists of tensors, one per annotated frame.")
    if label_frames is None:
        label_frames = torch.ones(frames, dtype=torch.bool, device=pixel_values.device)
    if not torch.is_tensor(label_frames) or tuple(label_frames.shape) != (frames,) or label_frames.dtype != torch.bool:
        raise ValueError(
            f"label_frames must be bool ({frames},), got {getattr(label_frames, 'dtype', type(label_frames))} "
            f"{tuple(getattr(label_frames, 'shape', ()))}."
        )
    count = int(label_frames.sum())
    if not count:
        raise ValueError("label_frames: no frame is annotated, so that there is no loss; leave the labels out.")
    if class_labels is None or not len(mask_labels) == len(class_labels) == count:
        got = (len(mask_labels), None if class_labels is None else len(class_labels))
        raise ValueError(f"mask_labels and class_labels need one entry per annotated frame: {count}; got {got}.")
    for index, (masks, classes) in enumerate(zip(mask_labels, class_labels, strict=True)):
        whole = classes.ndim == 1 and not classes.is_floating_point() and not classes.is_complex()
        if not whole or masks.is_complex():
            raise ValueError(
                f"annotated frame {index}: wanted class ids (C,) and masks, got {classes.dtype}, {masks.dtype}."
            )
        if masks.ndim != 3 or len(masks) != len(classes) or not masks.shape[1] * masks.shape[2]:
            raise ValueError(f"annotated frame {index}: masks {tuple(masks.shape)} and {len(classes)} classes differ.")
        if len(classes) and not (0 <= int(classes.min()) and int(classes.max()) < config.num_labels):
            raise ValueError(f"annotated frame {index}: classes must be in 0..{config.num_labels - 1}, got {classes}.")
    return label_frames

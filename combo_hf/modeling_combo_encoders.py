"""Encoders of COMBO: the Siam-Encoder Module over frame and Maskige, and VGGish over the log-mel.

Paper section 3.2 (Siam-Encoder Module, channel weights) and 3.1 (audio). Frame and Maskige go through two backbones of
one architecture; per level the Maskige's features are weighted by channel and added to the frame's. Departures: one
module serves both inputs when `share_encoders` is set, and then frame and Maskige travel in one batch.

Longer than other files: it also holds the faster layers of the backbones and EfficientNet-Lite, which is made of them.

Axes: F packed frames, C channels, H W image, D audio embedding. See modeling_combo.py for the alphabet.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import nn
from transformers import AutoBackbone, PretrainedConfig
from transformers.modeling_outputs import BackboneOutput

from .configuration_combo import ComboConfig, EfficientNetLiteConfig
from .modeling_combo_kernels import (
    constant,
    fingerprint,
    is_pixelwise,
    is_plain,
    linear,
    onednn_applies,
    pixel_product,
    rectify,
)


class ComboChannelWeights(nn.Module):
    """a = sigmoid(W2 relu(W1 GAP(x))): one weight per channel and frame, from the Maskige features alone."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def reset_combo_parameters(self) -> None:
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = features.mean(dim=(2, 3))  # (F, C)
        return self.fc2(self.fc1(pooled).relu()).sigmoid()[:, :, None, None]  # (F, C, 1, 1)


class ComboSiamEncoder(nn.Module):
    """Frames and Maskiges -> four feature maps, strides 4 to 32: F_l = F_v + a_l * F_m.

    `maskige_backbone` is `None` when the encoders are shared (one module, so that safetensors holds it once) or when
    the Maskige is not used.
    """

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        self.freeze_batch_norm = config.freeze_batch_norm
        self.backbone = build_backbone(config)
        self.channels: list[int] = self.backbone.channels
        self.maskige_backbone: nn.Module | None = None
        self.channel_weights: nn.ModuleList | None = None
        if config.use_maskige:
            if not config.share_encoders:
                self.maskige_backbone = build_backbone(config)
            self.channel_weights = nn.ModuleList(
                ComboChannelWeights(channels, config.channel_reduction) for channels in self.channels
            )

    def train(self, mode: bool = True) -> ComboSiamEncoder:
        """Frozen parts stay frozen: `from_pretrained` makes all parameters trainable, then calls `eval()`."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval().requires_grad_(False)
        return self

    def forward(self, pixel_values: torch.Tensor, maskige_values: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Args: pixel_values (F, 3, H, W); maskige_values (F, 3, H, W) or None.
        Returns: four maps (F, C_l, H / 2^(l+1), W / 2^(l+1)), l = 1..4."""
        if maskige_values is None or self.channel_weights is None:
            return run_backbone(self.backbone, pixel_values)
        if self.maskige_backbone is None:
            both = run_backbone(self.backbone, torch.cat([pixel_values, maskige_values]))  # (2F, C_l, ., .)
            frame_maps, maskige_maps = zip(*(maps.chunk(2) for maps in both), strict=True)
        else:
            frame_maps = run_backbone(self.backbone, pixel_values)
            maskige_maps = run_backbone(self.maskige_backbone, maskige_values)
        return tuple(
            frame + weights(maskige) * maskige
            for frame, maskige, weights in zip(frame_maps, maskige_maps, self.channel_weights, strict=True)
        )


def run_backbone(backbone: nn.Module, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Feature maps in the dtype of the pictures, also where the weights of the backbone are of another."""
    dtype = next(backbone.parameters(), pictures).dtype
    order = torch.preserve_format
    shared = torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized()
    if pictures.device.type == "cpu" and not shared:  # gradients of 1x1 kernels would lie otherwise than their weights
        order = torch.channels_last  # what convolutions on a CPU would else turn every map into, and back
    maps = backbone(pictures.to(dtype, memory_format=order)).feature_maps
    return tuple(level.to(pictures.dtype, memory_format=order) for level in maps)


def _plain_backbone(config: PretrainedConfig) -> Any:
    if config.model_type == EfficientNetLiteConfig.model_type:
        return ComboEfficientNetLite(cast(EfficientNetLiteConfig, config))
    try:
        backbone = AutoBackbone.from_config(config)
        backbone.channels  # noqa: B018  # looked up in the configuration only now: an error if it contradicts itself
        return backbone
    except ImportError as error:
        if config.model_type != "timm_backbone":
            raise
        raise ImportError("a backbone of timm needs timm: pip install 'combo-hf[timm]'") from error
    except ValueError as error:
        if sys.flags.optimize < 2:
            raise
        raise ValueError("transformers' backbones read their docstrings; run Python without -OO.") from error
    except (RuntimeError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(f"backbone_config: no {config.model_type} can be built of it ({reason}).") from error


def build_backbone(config: ComboConfig) -> Any:
    """`AutoBackbone` with the two facts in which transformers' ports differ from what COMBO was trained with, and
    with faster ways to compute two of its layers ([`ComboFoldedConvolution`], [`ComboReducedAttention`]).

    PVTv2: layer norms inside attention and patch embedding have eps 1e-5 in the original (1e-6 elsewhere);
    transformers uses one value. ResNet: batch norm is frozen, so its affine parameters are not trained.
    """
    backbone = _plain_backbone(config.backbone_config)
    if config.backbone_config.model_type == "pvt_v2":
        for name, module in backbone.named_modules():
            if name.endswith(("patch_embedding.layer_norm", "attention.layer_norm")):
                module.eps = 1e-5
    if config.freeze_batch_norm:
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
    for module in backbone.modules():
        # Another class for the same object: names of parameters, copies and checkpoints stay what they are.
        module.__class__ = FASTER_LAYERS.get(type(module).__name__, type(module))
    return backbone


class ComboFoldedConvolution(nn.Module):
    """transformers' `ResNetConvLayer` and `ResNetShortCut`: convolution, batch norm, activation.

    A batch norm that does not learn from its batch is a factor and a shift per channel: they go into the weights of
    the convolution, and a training step keeps one map per layer less.
    """

    convolution: nn.Conv2d
    normalization: nn.BatchNorm2d

    _packed: tuple[Any, ...] | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        convolution, norm = self.convolution, self.normalization
        plain = is_plain(convolution, nn.Conv2d) and is_plain(norm, nn.BatchNorm2d)
        same = convolution.weight.dtype == hidden_states.dtype
        launched = hidden_states.is_cuda and not torch.is_grad_enabled()  # one kernel a batch norm; folding takes six
        if not plain or launched or norm.training or convolution.bias is not None or norm.running_mean is None:
            hidden_states = norm(convolution(hidden_states))
        elif torch.is_grad_enabled() or not (same and onednn_applies(hidden_states)):
            weight, shift = self._folded()
            if is_pixelwise(convolution, hidden_states):
                hidden_states = pixel_product(hidden_states, weight, shift)
            else:
                if max(convolution.kernel_size) > 1 and hidden_states.is_contiguous(memory_format=torch.channels_last):
                    weight = weight.contiguous(memory_format=torch.channels_last)  # once, not in each direction
                hidden_states = nnf.conv2d(hidden_states, weight, shift, convolution.stride, convolution.padding,
                                           convolution.dilation, convolution.groups)  # fmt: skip
        else:
            hidden_states = self._by_packed_weights(hidden_states)
        activation = getattr(self, "activation", None)
        if isinstance(activation, nn.ReLU):
            return rectify(hidden_states)  # nobody else holds what the convolution returned
        return hidden_states if activation is None else activation(hidden_states)

    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights with the batch norm inside, and its shift: (C, C_in, k, k) and (C,)."""
        kind, norm = self.convolution.weight.dtype, self.normalization  # rounded once, at the end
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
        weight = (self.convolution.weight.float() * factor[:, None, None, None]).to(kind)
        return weight, (norm.bias.float() - norm.running_mean.float() * factor).to(kind)

    def _by_packed_weights(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Convolution with weights that were folded and brought into oneDNN's order once.

        They are made anew where the [`fingerprint`] of what they were made of has changed. The activation stays
        outside: oneDNN's ReLU turns NaN into 0, which would hide damage.
        """
        layer, norm = self.convolution, self.normalization
        assert norm.running_mean is not None and norm.running_var is not None
        sources = (layer.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        where = [list(side) for side in (layer.padding, layer.stride, layer.dilation)]
        key = (norm.eps, *map(fingerprint, sources))
        packed = self._packed
        if packed is None or packed[0] != key:
            weight, shift = self._folded()
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, *where, layer.groups, list(hidden_states.shape)
            )
            packed = self._packed = (key, weight, shift)
        _, weight, shift = packed
        return torch.ops.mkldnn._convolution_pointwise(
            hidden_states, weight, shift, *where, layer.groups, "none", [], ""
        )

    def train(self, mode: bool = True) -> ComboFoldedConvolution:
        self._packed = None  # training does not use it
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_packed"}  # cannot be copied


class ComboResidualLayer(nn.Module):
    """transformers' `ResNetBasicLayer` and `ResNetBottleNeckLayer`; these may change a view in place ([`rectify`])."""

    shortcut: nn.Module
    layer: nn.Module
    activation: nn.Module

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        total = self.layer(hidden_state) + self.shortcut(hidden_state)
        return total.relu_() if isinstance(self.activation, nn.ReLU) else self.activation(total)


class ComboLiteLayer(ComboFoldedConvolution):
    """Convolution, batch norm and ReLU6 or nothing, padded as TensorFlow's "SAME": more on the right and below."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels, kernel, stride, groups=groups, bias=False)
        self.normalization = nn.BatchNorm2d(channels, eps=1e-3)
        self.activation = nn.ReLU6(inplace=True) if active else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.convolution.kernel_size, self.convolution.stride
        if kernel > 1:
            missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in hidden_states.shape[2:]]
            height, width = missing
            hidden_states = nnf.pad(hidden_states, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(hidden_states)


class ComboLiteBlock(nn.Module):
    """Inverted residual: expand the channels, a convolution by channel, project."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = ComboLiteLayer(channels_in, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ComboLiteLayer(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ComboLiteLayer(hidden, channels, 1, active=False)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result = self.project(self.depthwise(self.expand(hidden_states)))
        return result + hidden_states if self.residual else result


class ComboEfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its head: four maps of strides 4, 8, 16 and 32 (24, 40, 112 and 320 channels).

    Takes pictures normalised with ImageNet's mean and deviation, like every backbone here, and brings them to [-1, 1],
    which its released weights were trained with.
    """

    GROUPS = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))  # kernel, stride, expansion
    LEVELS = (1, 2, 4, 6)  # groups whose maps are returned
    FACTOR = tuple(std / 127.5 for std in (58.395, 57.12, 57.375))
    SHIFT = tuple(mean / 127.5 - 1 for mean in (123.675, 116.28, 103.53))

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ComboLiteLayer(3, config.stem_size, 3, stride=2)
        width, blocks, self.ends = config.stem_size, [], []
        for (kernel, stride, expansion), channels, depth in zip(
            self.GROUPS, config.hidden_sizes, config.depths, strict=True
        ):
            for number in range(depth):
                blocks.append(ComboLiteBlock(width, channels, kernel, stride if number == 0 else 1, expansion))
                width = channels
            self.ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.channels = [config.hidden_sizes[level] for level in self.LEVELS]

    def forward(self, pixel_values: torch.Tensor) -> BackboneOutput:
        """Args: pixel_values (F, 3, H, W). Returns: `feature_maps`, four of (F, C_l, H / 2^(l+1), W / 2^(l+1))."""
        factor, shift = (constant(values, pixel_values).view(1, 3, 1, 1) for values in (self.FACTOR, self.SHIFT))
        pictures = pixel_values * factor + shift
        if pictures.device.type == "cpu":  # convolutions by channel are slow otherwise, backwards most of all
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        hidden_states = self.stem(pictures)
        wanted, maps = [self.ends[level] for level in self.LEVELS], []
        for number, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if number in wanted:
                maps.append(hidden_states)
        return BackboneOutput(feature_maps=tuple(maps))


class ComboReducedAttention(nn.Module):
    """transformers' `PvtV2SelfAttention` by `scaled_dot_product_attention`: scores and shares are never stored."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    proj: nn.Linear
    attn_drop: nn.Dropout
    proj_drop: nn.Dropout
    layer_norm: nn.LayerNorm
    pool: nn.Module
    spatial_reduction: nn.Module
    act: nn.Module
    num_attention_heads: int
    spatial_reduction_ratio: int
    linear_attention: bool

    def forward(
        self, hidden_states: torch.Tensor, height: int, width: int, output_attentions: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """Args: hidden_states (F, N, C). Returns: (F, N, C), and on request the attention (F, M, N, S)."""

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)

        query, reduced = split(linear(self.query, hidden_states)), hidden_states
        if self.linear_attention or self.spatial_reduction_ratio > 1:
            reduced = reduced.transpose(1, 2).unflatten(2, (height, width))
            reduced = self.spatial_reduction(self.pool(reduced) if self.linear_attention else reduced)
            reduced = self.layer_norm(reduced.flatten(2).transpose(1, 2))
            reduced = self.act(reduced) if self.linear_attention else reduced
        key, value = split(linear(self.key, reduced)), split(linear(self.value, reduced))
        if output_attentions:
            shares = self.attn_drop((query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1))
            return self._project(shares @ value), shares
        dropout = self.attn_drop.p if self.training else 0.0
        return (self._project(nnf.scaled_dot_product_attention(query, key, value, dropout_p=dropout)),)

    def _project(self, context: torch.Tensor) -> torch.Tensor:
        """(F, M, N, C / M) -> (F, N, C)."""
        return self.proj_drop(linear(self.proj, context.transpose(1, 2).flatten(2)))


class ComboFeedForward(nn.Module):
    """transformers' `PvtV2ConvFeedForwardNetwork`, with the products of [`linear`]."""

    dense1: nn.Linear
    dense2: nn.Linear
    relu: nn.Module
    dwconv: nn.Module
    intermediate_act_fn: nn.Module
    dropout: nn.Dropout

    def forward(self, hidden_states: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Args: hidden_states (F, N, C), N = height * width. Returns: (F, N, C)."""
        hidden_states = self.dwconv(self.relu(linear(self.dense1, hidden_states)), height, width)
        hidden_states = self.dropout(self.intermediate_act_fn(hidden_states))
        return self.dropout(linear(self.dense2, hidden_states))


FASTER_LAYERS: dict[str, type[nn.Module]] = {
    "ResNetConvLayer": ComboFoldedConvolution,
    "ResNetShortCut": ComboFoldedConvolution,
    "ResNetBasicLayer": ComboResidualLayer,
    "ResNetBottleNeckLayer": ComboResidualLayer,
    "PvtV2SelfAttention": ComboReducedAttention,
    "PvtV2ConvFeedForwardNetwork": ComboFeedForward,
}


class ComboVGGish(nn.Module):
    """VGGish: log-mel example (96, 64) -> embedding (D,), ReLU after every layer, the last too; no PCA.

    Four blocks of 3x3 convolutions, each ended by a 2x2 max pooling; then fully connected layers over (time, band,
    channel) flattened in that order.
    """

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        self.frozen = config.freeze_audio_encoder
        sizes = config.audio_config
        layers: list[nn.Module] = []
        channels_in = 1
        for block in sizes["channels"]:
            for channels in block:
                layers += [nn.Conv2d(channels_in, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        dense: list[nn.Module] = []
        width_in = channels_in * (96 // 16) * (64 // 16)
        for width in [*sizes["hidden_sizes"], sizes["embedding_size"]]:
            dense += [nn.Linear(width_in, width), nn.ReLU(inplace=True)]
            width_in = width
        self.embeddings = nn.Sequential(*dense)
        if self.frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> ComboVGGish:
        super().train(mode)
        if self.frozen:
            self.requires_grad_(False)
        return self

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """Args: input_features (F, 1, 96, 64) log-mel. Returns: (F, D), not negative."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.features(input_features)  # (F, C, 6, 4)
            return linear(self.embeddings, maps.permute(0, 2, 3, 1).flatten(1))  # (F, 6 * 4 * C) -> (F, D)

"""Configuration of COMBO: every size, switch and loss weight of the network, as JSON, and the presets.

Sources: paper (CVPR 2024) section 3 and appendix Table I; the released configurations. Where the release departs from
the paper, the value of the release is the default and the field says so.

Longer than other files, and its constructor than other functions: a checkpoint carries its configuration as one file,
and every field has a line in the signature, in the documentation and in what is kept.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from .remote_code_combo import (
    ENTRIES,
    LOADED_AS_REMOTE_CODE,
    check_kind,
    check_label_count,
    check_label_names,
    reading,
    without_choices,
)


AVSS_CLASSES = (
    "background accordion airplane axe baby bassoon bell bird boat boy bus car cat cello clarinet clipper clock dog "
    "donkey drum duck elephant emergency-car erhu flute frying-food girl goose guitar gun guzheng hair-dryer handpan "
    "harmonica harp helicopter hen horse keyboard leopard lion man marimba missile-rocket motorcycle mower parrot "
    "piano pig pipa saw saxophone sheep sitar sorna squirrel tabla tank tiger tractor train trombone truck "
    "trumpet tuba ukulele utv vacuum-cleaner violin wolf woman"
).split()

BINARY_CLASSES = ["background", "sounding object"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]  # strides 4, 8, 16, 32: res2 .. res5 of the paper


class EfficientNetLiteConfig(PretrainedConfig):
    """EfficientNet-Lite0 (Google, 2020) as visual backbone: inverted residuals with ReLU6, without squeeze-excitation.

    Args:
        stem_size (`int`): channels of the first convolution.
        hidden_sizes (`list[int]`), depths (`list[int]`): channels and blocks of the seven groups.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        stem_size: int = 32,
        hidden_sizes: list[int] | None = None,
        depths: list[int] | None = None,
        out_features: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.stem_size = stem_size
        self.hidden_sizes = list(hidden_sizes or (16, 24, 40, 80, 112, 192, 320))
        self.depths = list(depths or (1, 2, 2, 3, 3, 4, 1))
        self.out_features = list(out_features or STAGES)
        super().__init__(**kwargs)
        if not len(self.hidden_sizes) == len(self.depths) == 7:
            raise ValueError(f"efficientnet_lite has 7 groups, got {self.hidden_sizes} and {self.depths}.")


BACKBONES: dict[str, dict[str, Any]] = {
    "r50": {"model_type": "resnet"},  # transformers' default sizes are ResNet-50
    "pvtv2-b5": {
        "model_type": "pvt_v2",
        "hidden_sizes": [64, 128, 320, 512],
        "depths": [3, 6, 40, 3],
        "num_attention_heads": [1, 2, 5, 8],
        "sr_ratios": [8, 4, 2, 1],
        "mlp_ratios": [4, 4, 4, 4],
        "layer_norm_eps": 1e-6,
        "drop_path_rate": 0.1,
    },
    "tiny": {
        "model_type": "resnet",
        "embedding_size": 24,
        "hidden_sizes": [24, 48, 96, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
}

VGGISH = {"channels": [[64], [128], [256, 256], [512, 512]], "hidden_sizes": [4096, 4096], "embedding_size": 128}

IGNORE_INDEX = 255  # in label maps: of no class, left out of losses and scores

# All in which the subsets differ for a network. (window: in L_ada the release counts a 10-frame clip as two halves.)
SUBSETS: dict[str, dict[str, Any]] = {
    "s4": {"classes": BINARY_CLASSES, "num_frames": 5, "consistency_window": 5},
    "ms3": {"classes": BINARY_CLASSES, "num_frames": 5, "consistency_window": 5},
    "avss": {"classes": AVSS_CLASSES, "num_frames": 10, "consistency_window": 5},
}

# Small enough to train on a laptop and to ship: the same parts, fewer of each. From scratch, so that none is frozen.
TINY: dict[str, Any] = {
    "backbone_config": BACKBONES["tiny"],
    "image_size": 96,
    "audio_config": {"channels": [[16], [24], [32], [48]], "hidden_sizes": [128], "embedding_size": 64},
    "freeze_audio_encoder": False,
    "freeze_batch_norm": False,
    "channel_reduction": 8,
    "hidden_dim": 64,
    "num_attention_heads": 4,
    "pixel_decoder_layers": 2,
    "pixel_decoder_feedforward_dim": 128,
    "fusion_heads": 4,
    "audio_hidden_dim": 128,
    "num_queries": 20,
    "decoder_layers": 3,
    "decoder_feedforward_dim": 128,
    "train_num_points": 1024,
    "consistency_weight": 2.0,
}

# For real pictures on a CPU: one encoder that knows ImageNet, for frame and Maskige.
MINI: dict[str, Any] = {
    **TINY,
    "backbone_config": {"model_type": "efficientnet_lite"},
    "image_size": 160,
    "share_encoders": True,
    "audio_config": {"channels": [[16], [48], [96], [128]], "hidden_sizes": [192], "embedding_size": 64},
    "freeze_audio_encoder": True,
    "freeze_batch_norm": True,
    "hidden_dim": 96,
    "pixel_decoder_feedforward_dim": 192,
    "num_queries": 8,
    "decoder_feedforward_dim": 192,
    "train_num_points": 2048,
    "no_object_weight": 0.4,
}

OWN_PRESETS = {"tiny": TINY, "mini": MINI}  # the others are the release's
TIMM = "timm/"  # begins the name of a backbone of timm

MAX_FILE = 1 << 24  # bytes of config.json: the names of 10,000 classes have 4 MB at most
MAX_SIZE = 1_000_000  # of any width or number of parts: a file with more is damaged
MAX_LAYERS = 512  # of a part, each a module of its own: thousands would be built for minutes
LAYERS = ("pixel_decoder_layers", "decoder_layers")
# What takes memory by its number, and none of the file of weights: of a stranger, small weights could ask for any.
MOST = {**dict.fromkeys(LAYERS, MAX_LAYERS), "num_frames": 128, "num_queries": 2000, "pixel_decoder_points": 64}
MAX_CLIP_PIXELS = 10 * 1024 * 1024  # of all frames of a clip; `tiny` takes 2 GB for them
MAX_MAPS = 1 << 29  # numbers in the score maps of a frame, one for each class, or in the masks of a clip
BACKBONE_LAYERS = ("depths", "num_hidden_layers", "num_layers")  # what transformers' backbones call theirs
WHOLE = (
    "channel_reduction hidden_dim num_attention_heads pixel_decoder_layers pixel_decoder_points "
    "pixel_decoder_feedforward_dim fusion_heads audio_hidden_dim num_queries decoder_layers decoder_feedforward_dim "
    "image_size num_frames train_num_points"
).split()
RANGES = {
    **{f"{name}_weight": (0.0, math.inf) for name in ("class", "mask", "dice", "consistency", "no_object", "pixel")},
    "fusion_dropout": (0.0, 1.0),
    "fusion_gate_init": (-math.inf, math.inf),
    "oversample_ratio": (1.0, math.inf),
    "importance_sample_ratio": (0.0, 1.0),
    "background_weight": (0.001, 1.0),
    "audio_dropout": (0.0, 1.0),
}
SWITCHES = (
    "use_maskige share_encoders freeze_batch_norm freeze_audio_encoder fusion adaptive_consistency class_gate"
).split()


class ComboConfig(PretrainedConfig):
    r"""Configuration of [`ComboModel`] and [`ComboForAudioVisualSegmentation`].

    Args:
        backbone_config (`dict`, `str` or `PretrainedConfig`): visual backbone, built by `AutoBackbone`; four stages,
            strides 4 to 32. `"timm/NAME"` is a backbone of timm, which `pip install 'combo-hf[timm]'` brings.
        use_maskige (`bool`): encode the Maskige beside the frame (Siam encoder); off: `maskige_values=None`.
        share_encoders (`bool`): one backbone for frame and Maskige; the release has two of one architecture.
        freeze_batch_norm (`bool`): batch norms of the backbone keep statistics and affine (FrozenBN of the release).
        channel_reduction (`int`): W1 of the channel weights maps C to C / channel_reduction.
        audio_config (`dict`): VGGish sizes: `channels` per pooling block, `hidden_sizes`, `embedding_size`.
        freeze_audio_encoder (`bool`): VGGish is not trained (release: true).
        hidden_dim (`int`): d of the paper, width of pixel decoder, mask features and queries.
        num_attention_heads (`int`): heads of pixel decoder and query decoder.
        pixel_decoder_layers, pixel_decoder_points, pixel_decoder_feedforward_dim (`int`): deformable encoder.
        fusion (`bool`): bilateral fusion; off only in the released *test* configuration of AVSS/R50.
        fusion_heads, fusion_dropout, fusion_gate_init: heads, dropout on the attention, start of both residual gates.
        audio_hidden_dim (`int`): width of the audio MLP 128 -> 4096 -> 4096 -> d.
        num_queries, decoder_layers, decoder_feedforward_dim (`int`): masked-attention decoder (9 layers = 3 rounds).
        audio_query_layout (`"per_frame"` or `"official"`): which second each query hears. There is a reshape without a
            transpose in the release: with T frames and Q queries, query q of frame t hears frame `(q * T + t) // Q`
            (and, in a batch, other clips). `"official"` does the same inside each clip, as published numbers (batch of
            one) and converted weights need it; `"per_frame"` gives every query its own frame's sound.
        image_size (`int`), num_frames (`int`): side of the square input, frames per clip in training.
        class_weight, mask_weight, dice_weight (`float`): lambda of class, BCE and dice, in matching and loss.
        consistency_weight (`float`): lambda of the inter-frame consistency (10 in every released configuration; the
            paper has 5 for AVSS).
        adaptive_consistency (`bool`): weigh d = 1 - cos by exp(-d) (L_ada); off: plain cosine distance.
        consistency_window (`int` or `None`): the clip is cut into windows of so many frames, pairs across two windows
            do not count (release: 5, hence a 10-frame clip counts as two halves). `None`: all neighbours of the clip.
        no_object_weight (`float`): class weight of "no object".
        pixel_weight (`float`): lambda of a loss that the release has not: cross entropy of all classes at every pixel,
            of a 1x1 convolution over the fused mask features, in training only. 0: no such layer.
        train_num_points, oversample_ratio, importance_sample_ratio: point sampling of the mask losses.
        background_weight (`float`): factor of the background's score in evaluation mode, 0.001 to 1.0 (the release).
            Weights from a short training want less: [`calibrate_background`] finds it on validation clips.
        class_gate (`bool`): a linear layer over the audio embedding says how likely each class is heard in a frame's
            second, and a query's class counts as far as it is heard ([`gate_classes`]). The release has none.
        audio_dropout (`float`): share of training frames whose sound is kept from fusion and queries (modality
            dropout), so that sight tells the classes and sound opens the gate. 1: only the gate hears, always.
        id2label (`dict`): class names; index 0 is the background, which is a predicted class. Default: two classes.

    Raises:
        ValueError: a value that no network can be built from.

    Examples:
        >>> from combo_hf import ComboConfig
        >>> config = ComboConfig.from_preset("pvtv2-b5-avss", num_queries=200)
        >>> config.num_labels, config.num_frames, config.backbone_config.model_type
        (71, 10, 'pvt_v2')
    """

    model_type = "combo"
    if TYPE_CHECKING:  # in the base class both may be None
        id2label: dict[int, str]
        num_labels: int

    # Longer than other functions: one keyword and one line per field is how configurations are written and read.
    def __init__(
        self,
        backbone_config: dict | PretrainedConfig | None = None,
        use_maskige: bool = True,
        share_encoders: bool = False,
        freeze_batch_norm: bool = True,
        channel_reduction: int = 16,
        audio_config: dict | None = None,
        freeze_audio_encoder: bool = True,
        hidden_dim: int = 256,
        num_attention_heads: int = 8,
        pixel_decoder_layers: int = 6,
        pixel_decoder_points: int = 4,
        pixel_decoder_feedforward_dim: int = 1024,
        fusion: bool = True,
        fusion_heads: int = 8,
        fusion_dropout: float = 0.1,
        fusion_gate_init: float = 1e-4,
        audio_hidden_dim: int = 4096,
        num_queries: int = 100,
        decoder_layers: int = 9,
        decoder_feedforward_dim: int = 2048,
        audio_query_layout: str = "per_frame",
        image_size: int = 224,
        num_frames: int = 5,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        consistency_weight: float = 10.0,
        adaptive_consistency: bool = True,
        consistency_window: int | None = None,
        no_object_weight: float = 0.1,
        train_num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        background_weight: float = 1.0,
        pixel_weight: float = 0.0,
        class_gate: bool = False,
        audio_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if backbone_config is None:
            backbone_config = BACKBONES["r50"]
        if isinstance(backbone_config, (dict, str)):
            backbone_config = _build_backbone_config(backbone_config)
        if not isinstance(backbone_config, PretrainedConfig):
            raise ValueError(f"backbone_config: wanted a dict with a model_type, got {backbone_config!r}.")
        self.backbone_config = backbone_config
        self.use_maskige = use_maskige
        self.share_encoders = share_encoders
        self.freeze_batch_norm = freeze_batch_norm
        self.channel_reduction = channel_reduction
        self.audio_config = {**copy.deepcopy(VGGISH), **(audio_config or {})}
        self.freeze_audio_encoder = freeze_audio_encoder
        self.hidden_dim = hidden_dim
        self.num_attention_heads = num_attention_heads
        self.pixel_decoder_layers = pixel_decoder_layers
        self.pixel_decoder_points = pixel_decoder_points
        self.pixel_decoder_feedforward_dim = pixel_decoder_feedforward_dim
        self.fusion = fusion
        self.fusion_heads = fusion_heads
        self.fusion_dropout = fusion_dropout
        self.fusion_gate_init = fusion_gate_init
        self.audio_hidden_dim = audio_hidden_dim
        self.num_queries = num_queries
        self.decoder_layers = decoder_layers
        self.decoder_feedforward_dim = decoder_feedforward_dim
        self.audio_query_layout = audio_query_layout
        self.image_size = image_size
        self.num_frames = num_frames
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.consistency_weight = consistency_weight
        self.adaptive_consistency = adaptive_consistency
        self.consistency_window = consistency_window
        self.no_object_weight = no_object_weight
        self.train_num_points = train_num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.background_weight = background_weight
        self.pixel_weight = pixel_weight
        self.class_gate = class_gate
        self.audio_dropout = audio_dropout
        if kwargs.get("id2label") is None and "num_labels" not in kwargs:
            kwargs |= _labels(BINARY_CLASSES)
        if not LOADED_AS_REMOTE_CODE:
            # A checkpoint says here which of its own files to run; with the package at hand none is needed, and
            # `transformers.pipeline` would ask for trust in vain.
            kwargs = {name: value for name, value in kwargs.items() if name not in ENTRIES}
        check_label_count(kwargs)
        super().__init__(**kwargs)
        self.check()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in the base class; a damaged file is a `ValueError`, whatever is wrong with it."""
        with reading(f"{pretrained_model_name_or_path}: config.json"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        if os.path.getsize(json_file) > MAX_FILE:
            raise ValueError(f"config.json has more than {MAX_FILE} bytes.")
        return super()._dict_from_json_file(json_file)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class, likewise; so is the configuration of another kind of model."""
        check_kind("config.json: model_type", cls.model_type, config_dict.get("model_type"))
        with reading("config.json"):
            return super().from_dict(without_choices(config_dict), **kwargs)

    def check(self) -> None:
        """Raise `ValueError` where the values contradict each other; names the field, the value and what fits."""
        self._check_values()
        if self.audio_query_layout not in ("per_frame", "official"):
            raise ValueError(f"audio_query_layout is {self.audio_query_layout!r}; use 'per_frame' or 'official'.")
        if self.decoder_layers % 3 or self.decoder_layers < 3:
            raise ValueError(f"decoder_layers is {self.decoder_layers}; the decoder visits 3 scales: use 3, 6, 9, ...")
        for heads in ("num_attention_heads", "fusion_heads"):
            if self.hidden_dim % getattr(self, heads):
                raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of {heads} {getattr(self, heads)}.")
        if self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of 4 (sine positions of x and y).")
        if self.image_size % 32 or self.image_size < 64:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 32 and at least 64.")
        self.check_input_size(self.image_size, self.image_size)
        window = self.consistency_window
        if window is not None and (type(window) is not int or window < 2):
            raise ValueError(f"consistency_window is {window!r}; use None or at least 2 frames.")
        check_label_names(self.id2label)
        if self.num_labels < 2:
            raise ValueError(f"{self.num_labels} label(s); wanted the background (index 0) and at least one class.")
        missing = {"channels", "hidden_sizes", "embedding_size"} - set(self.audio_config)
        if missing or len(self.audio_config["channels"]) != 4 or not all(_sizes(self.audio_config)):
            wanted = "4 blocks of channels, hidden_sizes and embedding_size"
            raise ValueError(f"audio_config: wanted {wanted}, got {str(self.audio_config)[:200]}.")

    def check_input_size(self, height: int, width: int) -> None:
        """Raise `ValueError` where clips of this size in pixels would take memory that a stranger must not ask for."""
        pixels, clip = height * width, f"a clip of {self.num_frames} frames of {height} x {width} pixels"
        if self.num_frames * pixels > MAX_CLIP_PIXELS:
            raise ValueError(f"{clip} has more than {MAX_CLIP_PIXELS} pixels; make size or num_frames smaller.")
        if max(self.num_labels * pixels, self.num_queries * self.num_frames * pixels // 16) > MAX_MAPS:
            maps = f"{clip}, {self.num_labels} classes and {self.num_queries} queries"
            raise ValueError(f"{maps}: more than {MAX_MAPS} numbers in its maps; make size or num_frames smaller.")

    def _check_values(self) -> None:
        for name in WHOLE:
            value, most = getattr(self, name), MOST.get(name, MAX_SIZE)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; wanted a whole number from 1 to {most}.")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; wanted a number from {low:g} to {high:g}, finite.")
        for name in SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted true or false.")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ComboConfig:
        """Configuration by name: `{r50, pvtv2-b5}-{s4, ms3, avss}` as released, `tiny` or `mini`.

        Args:
            name: for example `"pvtv2-b5-avss"`.
            **overrides: fields that replace the preset's.

        Raises:
            ValueError: unknown name; the message lists the known ones.
        """
        if name in OWN_PRESETS:
            return cls(**{**OWN_PRESETS[name], **overrides})
        backbone, _, subset = name.rpartition("-")
        if backbone not in ("r50", "pvtv2-b5") or subset not in SUBSETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(preset_names())}.")
        facts = dict(SUBSETS[subset])
        classes = _labels(facts.pop("classes"))
        return cls(**{"backbone_config": BACKBONES[backbone], **classes, **facts, **overrides})


def preset_names() -> list[str]:
    """Names that `ComboConfig.from_preset` takes."""
    return [f"{backbone}-{subset}" for backbone in ("r50", "pvtv2-b5") for subset in SUBSETS] + [*OWN_PRESETS]


def _labels(classes: Sequence[str]) -> dict[str, dict]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def _sizes(audio: dict[str, Any]) -> Iterator[bool]:
    for block in (*audio["channels"], audio["hidden_sizes"], [audio["embedding_size"]]):
        yield isinstance(block, (list, tuple)) and 0 < len(block) <= MAX_LAYERS
        for size in block if isinstance(block, (list, tuple)) else ():
            yield type(size) is int and 1 <= size <= MAX_SIZE


def _build_backbone_config(values: dict | str) -> PretrainedConfig:
    if isinstance(values, str):
        if not values.startswith(TIMM):
            raise ValueError(f"backbone_config: wanted a dict, or a name such as 'timm/resnet18', got {values!r}.")
        values = {"model_type": "timm_backbone", "backbone": values.removeprefix(TIMM), "out_indices": [1, 2, 3, 4]}
    values = copy.deepcopy(values)
    model_type = values.get("model_type")
    check_label_count(values)
    for name in BACKBONE_LAYERS:  # before transformers makes a list of them
        value = values.get(name)
        counts = value if isinstance(value, (list, tuple)) else [value]
        if sum(count for count in counts if isinstance(count, int)) > MAX_LAYERS:
            raise ValueError(f"backbone_config: {name} is {value!r}; wanted at most {MAX_LAYERS} layers in all.")
    if model_type == EfficientNetLiteConfig.model_type:
        return EfficientNetLiteConfig.from_dict(values)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"backbone_config needs a model_type that transformers knows, got {model_type!r}.")
    from transformers import AutoBackbone  # not before it is needed: seconds

    # The configuration of another network may ask the Hub for that of the backbone which it names.
    if CONFIG_MAPPING[model_type] not in AutoBackbone._model_mapping:
        raise ValueError(f"backbone_config: wanted the model_type of a backbone, got {model_type!r}.")
    if model_type == "timm_backbone":  # its weights are in the checkpoint; "hf_hub:..." and the like would be fetched
        values["use_pretrained_backbone"] = False
        if not re.fullmatch(r"[\w.-]+", str(values.get("backbone"))):
            raise ValueError(f"backbone_config: wanted the name of a network of timm, got {values.get('backbone')!r}.")
    else:
        values.setdefault("out_features", STAGES)
    return CONFIG_MAPPING[model_type].from_dict(values)

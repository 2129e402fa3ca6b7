"""A fresh network starts as the official one does: the distribution of every tensor, against the recorded statistics
of the official code and, in any clone, against the rules written out. Backbones and VGGish come from files there."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from combo_hf.configuration_combo import BACKBONES, OWN_PRESETS, ComboConfig, preset_names
from combo_hf.conversion.fill import cut, rename
from combo_hf.conversion.official import RULES
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


ERRORS = 6  # standard errors that a statistic of a drawn tensor may be off: 1e-9 for each
FROM_FILES = re.compile(r"model\.(encoder\.(maskige_)?backbone|audio_encoder)\.")
SHALLOW = {"r50": {"depths": [1] * 4}, "pvtv2-b5": {"depths": [1] * 4, "num_hidden_layers": 4}}


def fresh(preset: str) -> ComboForAudioVisualSegmentation:
    """As the preset, but for the depth of what comes from files."""
    torch.manual_seed(0)
    overrides = {}
    if preset not in OWN_PRESETS:
        backbone = preset.rpartition("-")[0]
        overrides["backbone_config"] = {**BACKBONES[backbone], **SHALLOW[backbone]}
        overrides["audio_config"] = {"hidden_sizes": [8]}
    return ComboForAudioVisualSegmentation(ComboConfig.from_preset(preset, **overrides))


def own_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not FROM_FILES.match(name)}


@pytest.mark.parametrize(("record", "preset"), [("s4_r50", "r50-s4"), ("avss_pvt", "pvtv2-b5-avss")])
def test_every_tensor_has_the_recorded_distribution(goldens, record, preset):
    recorded = goldens.values(f"combo/init_{record}.json")
    tensors = own_tensors(fresh(preset))
    for official, wanted in recorded.items():
        parts = cut(rename(official, RULES), torch.zeros(wanted["shape"]))
        joined = torch.cat([tensors.pop(name).flatten() for name in parts])
        if not wanted["std"]:
            assert wanted["min"] - 1e-6 <= joined.min() <= joined.max() <= wanted["max"] + 1e-6, official
            continue
        # the record is of three draws, of which it has the mean
        error = ERRORS * wanted["std"] * math.sqrt(4 / 3 / joined.numel())
        assert abs(joined.mean() - wanted["mean"]) <= error + 1e-5, official
        assert abs(joined.std(correction=0) - wanted["std"]) <= error + 1e-5, official
        if joined.numel() >= 100 and max(-wanted["min"], wanted["max"]) < 2 * wanted["std"]:  # uniform
            assert joined.abs().max() <= 1.05 * max(-wanted["min"], wanted["max"]), official
    assert not tensors, "of which the record says nothing"


def normal(shape: tuple[int, ...]) -> tuple[str, float]:
    return "normal", 1.0


def zeros(shape: tuple[int, ...]) -> tuple[str, float]:
    return "constant", 0.0


def ones(shape: tuple[int, ...]) -> tuple[str, float]:
    return "constant", 1.0


def gate(shape: tuple[int, ...]) -> tuple[str, float]:
    return "constant", 1e-4


def xavier(shape: tuple[int, ...]) -> tuple[str, float]:
    return "uniform", math.sqrt(6 / (shape[0] + shape[1]))


def joined_xavier(shape: tuple[int, ...]) -> tuple[str, float]:
    return "uniform", math.sqrt(6 / (3 * shape[0] + shape[1]))


def fan_in(shape: tuple[int, ...]) -> tuple[str, float]:
    """torch's default for linear layers."""
    return "uniform", 1 / math.sqrt(math.prod(shape[1:]))


def caffe_xavier(shape: tuple[int, ...]) -> tuple[str, float]:
    return "uniform", math.sqrt(3 / math.prod(shape[1:]))


# The first pattern that matches the name's end wins; a bias drawn with `fan_in` has the bound of its layer's weight.
STARTS = [
    (r"encoder\.channel_weights\..*", fan_in),
    (r"audio_projection\..*", fan_in),
    (r"decoder\.(class_head|mask_head)\..*", fan_in),
    (r"(query_features|query_positions|level_embed|audio_position)(\.weight)?", normal),
    (r"(visual|audio)_gate", gate),
    (r"norm\.weight|(input_projections\.\d|lateral|output)\.1\.weight", ones),
    (r"norm\.bias|(input_projections\.\d|lateral|output)\.1\.bias", zeros),
    (r"attention_weights\..*|sampling_offsets\.weight", zeros),
    (r"fc\d\.bias", fan_in),
    (r"(cross|self)_attn\.[qkv]_proj\.weight", joined_xavier),
    (r"(lateral|output)\.0\.weight|mask_projection\.weight", caffe_xavier),
    (r"bias", zeros),
    (r"weight", xavier),
]


def assert_starts(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.endswith("sampling_offsets.bias"):  # a ring of one direction per head, point p at p pixels
            reach = tensor.unflatten(0, (-1, 3, 4, 2)).abs().amax((0, 1, 3))  # (P,)
            assert reach.tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0]), name
            continue
        rule = next(rule for pattern, rule in STARTS if re.search(rf"(?:{pattern})$", name))
        shaped = re.sub(r"bias$", "weight", name) if rule is fan_in else name
        kind, value = rule(tuple(tensors[shaped].shape))
        if kind == "constant":
            assert bool((tensor == torch.tensor(value)).all()), name
            continue
        std = value if kind == "normal" else value / math.sqrt(3)
        error = ERRORS * std / math.sqrt(tensor.numel())
        assert abs(tensor.mean()) <= error, name
        assert abs(tensor.square().mean().sqrt() - std) <= error, name
        assert kind == "normal" or tensor.abs().max() <= value * (1 + 1e-6), name


@pytest.mark.parametrize("preset", [name for name in preset_names() if not name.endswith("-ms3")])
def test_every_tensor_follows_the_rules(preset):
    assert_starts(own_tensors(fresh(preset)))


def test_what_a_checkpoint_lacks_starts_alike(tmp_path):
    """Loaded from a file with a third of the tensors: these are the file's, and the others are drawn as ever."""
    model = fresh("tiny")
    model.save_pretrained(tmp_path, carry_code=False)
    path = tmp_path / "model.safetensors"
    held = {name: tensor for name, tensor in list(load_file(path).items())[::3] if tensor.is_floating_point()}
    held = {name: torch.full_like(tensor, 7.0) for name, tensor in held.items()}
    save_file(held, path, metadata={"format": "pt"})
    torch.manual_seed(1)
    loaded = ComboForAudioVisualSegmentation.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    tensors = loaded.state_dict()
    assert all(bool((tensors[name] == 7).all()) for name in held)
    replaced = own_tensors(loaded)
    for name in held.keys() & replaced.keys():  # for the rules, which look at whole layers
        replaced[name] = own_tensors(fresh("tiny"))[name]
    assert_starts(replaced)

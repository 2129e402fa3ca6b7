"""Conversion of official checkpoints: every name accounted for, sizes as recorded, errors, nothing half-written."""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import PRESETS, manifest, official_weights
from transformers import AutoConfig, AutoModelForImageClassification

from combo_hf.configuration_combo import ComboConfig
from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.official import DROPPED, RULES, ConversionReport, convert_official_checkpoint, cut, rename
from combo_hf.conversion.pretrained import load_pretrained_backbones, load_vggish
from combo_hf.conversion.saving import save_converted
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


PARTS = {  # part of the manifests -> prefix of ours
    "backbone": "encoder.backbone.",
    "pre_sam_backbone": "encoder.maskige_backbone.",
    "scale_factor_module": "encoder.channel_weights.",
    "audio_backbone": "audio_encoder.",
    "sem_seg_head.pixel_decoder": "pixel_decoder.",
    "sem_seg_head.fusion_module": "fusion.",
    "sem_seg_head.audio_transformation": "audio_projection.",
    "sem_seg_head.predictor": "decoder.",
}


def meta_model(config: str) -> ComboForAudioVisualSegmentation:
    fusion = config != "avss_r50"  # the released test configuration leaves it out
    with torch.device("meta"):
        return ComboForAudioVisualSegmentation(ComboConfig.from_preset(PRESETS[config], fusion=fusion))


def tiny(**overrides) -> ComboForAudioVisualSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny", **overrides))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.stem.conv1.norm.running_var", "encoder.backbone.embedder.embedder.normalization.running_var"),
        ("backbone.res4.0.shortcut.weight", "encoder.backbone.encoder.stages.2.layers.0.shortcut.convolution.weight"),
        ("pre_sam_backbone.res2.1.conv3.weight",
         "encoder.maskige_backbone.encoder.stages.0.layers.1.layer.2.convolution.weight"),
        ("backbone.block3.39.attn.kv.bias", "encoder.backbone.encoder.layers.2.blocks.39.attention.{key,value}.bias"),
        ("sem_seg_head.pixel_decoder.transformer.encoder.layers.5.norm2.bias",
         "pixel_decoder.layers.5.final_layer_norm.bias"),
        ("sem_seg_head.predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_weight",
         "decoder.layers.8.cross_attn.{q,k,v}_proj.weight"),
        ("sem_seg_head.fusion_module.b_attn.attn_list.0.values_a_proj.weight",
         "fusion.attention.audio_value_proj.weight"),
        ("something.else", None),
    ],
)  # fmt: skip
def test_names(name: str, expected: str | None):
    assert rename(name, RULES) == (expected and f"model.{expected}")


def test_cut_along_the_first_axis():
    parts = cut("a.{q,k,v}.w", torch.arange(6.0).view(6, 1))
    assert {name: part.flatten().tolist() for name, part in parts.items()} == {
        "a.q.w": [0, 1], "a.k.w": [2, 3], "a.v.w": [4, 5]}  # fmt: skip
    with pytest.raises(ValueError, match="cannot be cut"):
        cut("a.{q,k}.w", torch.zeros(3))


@pytest.mark.parametrize("config", PRESETS)
def test_every_name_has_one_place_of_its_shape(shared: Path, config: str):
    wanted = {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    places = collections.Counter()
    for name, shape, _ in manifest(shared, config)["entries"]:
        if rename(name, DROPPED) is None:
            for place, part in cut(rename(name, RULES), torch.empty(shape, device="meta")).items():
                assert tuple(part.shape) == wanted[place], (name, place)
                places[place] += 1
    assert set(places.values()) == {1}
    assert {name for name in wanted if not name.endswith("num_batches_tracked")} == set(places)


@pytest.mark.parametrize("config", PRESETS)
def test_parameters_of_every_part(shared: Path, config: str):
    """The release counts the affine of frozen batch norms among the buffers."""
    recorded = manifest(shared, config)
    model = meta_model(config).model
    frozen = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    parameters = {name: value for name, value in model.named_parameters() if name not in frozen}
    sizes = {
        part: sum(value.numel() for name, value in parameters.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    per_part = {name: counts["params"] for name, counts in recorded["per_module"].items() if name in PARTS}
    assert sizes == {**per_part, **recorded["sem_seg_head"]}
    assert sum(sizes.values()) == recorded["total_params"]
    trainable = [value.numel() for value in model.parameters() if value.requires_grad]
    assert sum(trainable) == recorded["trainable_params"]


@pytest.mark.slow
@pytest.mark.parametrize("config", PRESETS)
def test_round_trip(shared: Path, tmp_path: Path, config: str):
    """An official file -> model -> folder -> model; no tensor changes on the way."""
    weights = {name: torch.from_numpy(array) for name, array in official_weights(shared, config, seed=7).items()}
    torch.save({"model": weights, "iteration": 1}, tmp_path / "model_best.pth")
    model, report = convert_official_checkpoint(tmp_path / "model_best.pth", PRESETS[config])
    assert set(report.consumed) | set(report.dropped) == set(weights)
    assert set(report.dropped) == {"criterion.empty_weight"}
    assert (model.config.audio_query_layout, model.config.consistency_window) == ("official", 5)
    assert model.config.fusion is (config != "avss_r50")
    folder = save_converted(model, report, tmp_path / "converted")
    again = ComboForAudioVisualSegmentation.from_pretrained(folder).state_dict()
    for name, targets in report.consumed.items():
        assert torch.equal(torch.cat([again[target].reshape(-1) for target in targets]), weights[name].reshape(-1))
    assert {"README.md", "conversion_report.json", "model.safetensors", "processor_config.json"} <= {
        path.name for path in folder.iterdir()}  # fmt: skip


def minimal(backbone: str = "backbone.stem.conv1.weight", classes: int = 2) -> dict[str, torch.Tensor]:
    """The few entries by which a COMBO checkpoint is recognised."""
    return {
        backbone: torch.zeros(64, 3, 7, 7),
        f"pre_sam_{backbone}": torch.zeros(64, 3, 7, 7),
        "sem_seg_head.predictor.class_embed.bias": torch.zeros(classes + 1),
    }


@pytest.mark.parametrize(
    ("source", "preset", "message"),
    [
        (minimal(), "tiny", "no official checkpoint has preset 'tiny'; known: r50-s4"),
        (minimal(), "r50-s5", "known: r50-s4"),
        (minimal(), "pvtv2-b5-s4", "the checkpoint has r50 and 2. It fits: r50-s4, r50-ms3"),
        (minimal(classes=71), "r50-s4", "It fits: r50-avss"),
        (minimal("backbone.patch_embed1.proj.weight"), "r50-s4", "It fits: pvtv2-b5-s4, pvtv2-b5-ms3"),
        (minimal(classes=20), "r50-s4", "It fits: no preset"),
        (minimal(), "r50-s4", "incomplete, "),
        ({**minimal(), "swin.layer": torch.zeros(1)}, "r50-s4", "1 entries are not of this release.*: swin.layer"),
        ({"layer.weight": torch.zeros(1)}, "r50-s4", "not a COMBO checkpoint"),
        ({"model": {}}, "r50-s4", "no state dict"),
        ({}, "r50-s4", "no state dict"),
        ({"model": {"a": "b"}}, "r50-s4", "'a' is a str, wanted a tensor"),
    ],
)  # fmt: skip
def test_refused_state_dicts(source: dict, preset: str, message: str):
    with pytest.raises(ValueError, match=message):
        convert_official_checkpoint(source, preset)


def test_fusion_that_the_file_does_not_have():
    with pytest.raises(ValueError, match="no bilateral fusion"):
        convert_official_checkpoint(minimal(), "r50-s4", fusion=True)


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def write_truncated(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-800])


def write_attack(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"model": Attack(path.with_suffix(".ran"))}, file)


def write_other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize(
    "write",
    [write_truncated, write_attack, write_other_archive, lambda path: path.write_bytes(b""), lambda path: None],
    ids=["truncated", "code", "archive", "empty", "absent"],
)
def test_refused_files(tmp_path: Path, name: str, write):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match="truncated or not a|no such file"):
        convert_official_checkpoint(path, "r50-s4")
    assert [entry.name for entry in tmp_path.iterdir()] in ([name], [])


def test_source_of_another_kind():
    with pytest.raises(TypeError, match="wanted a path or a state dict, got int"):
        read_state_dict(3)


def test_pickled_arrays_are_read(tmp_path: Path):
    path = tmp_path / "R-50.pkl"
    with path.open("wb") as file:
        pickle.dump({"model": {"a": np.arange(3, dtype=np.float32)}, "__author__": "x"}, file)
    assert read_state_dict(path)["a"].tolist() == [0, 1, 2]


def test_saved_folder(tmp_path: Path):
    report = ConversionReport("r50-s4", {"a": ["model.a"]}, {"b": "not needed"}, {"model.c": "zero"})
    folder = save_converted(tiny(), report, tmp_path / "out")
    assert "| dropped | 1 |" in (folder / "README.md").read_text()
    assert str(report).splitlines() == [
        "r50-s4: 1 entries consumed, 1 dropped, 1 missing",
        "  dropped: b: not needed",
        "  missing: model.c: zero",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="is not an empty folder"):
        save_converted(tiny(), report, folder)


def test_nothing_is_left_where_saving_fails(tmp_path: Path):
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_converted(tiny(), ConversionReport("r50-s4"), tmp_path / "out", Broken())
    assert list(tmp_path.iterdir()) == []


def test_vggish(tmp_path: Path):
    model, other = tiny(), tiny()
    torch.nn.init.ones_(other.model.audio_encoder.embeddings[0].weight)
    weights = {**other.model.audio_encoder.state_dict(), "pproc.pca_means": torch.zeros(3)}
    torch.save(weights, tmp_path / "vggish.pth")
    assert load_vggish(model, tmp_path / "vggish.pth") == ["pproc.pca_means"]
    assert bool((model.model.audio_encoder.embeddings[0].weight == 1).all())
    with pytest.raises(ValueError, match="VGGish does not fit: embeddings.0.weight has shape"):
        load_vggish(model, {**weights, "embeddings.0.weight": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="VGGish does not fit: .* entries are missing"):
        load_vggish(model, {"other": torch.zeros(1)})


RESNET = {"model_type": "resnet", "embedding_size": 24, "hidden_sizes": [24, 48, 96, 128], "depths": [1, 1, 1, 1],
          "layer_type": "basic"}  # fmt: skip
PVT = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 4, 8],
}


@pytest.mark.parametrize(
    ("backbone", "shared_encoders"), [(RESNET, False), (RESNET, True), (PVT, False)], ids=["resnet", "shared", "pvt"]
)
def test_imagenet_start_from_a_classifier(tmp_path: Path, backbone: dict, shared_encoders: bool):
    values = {key: value for key, value in backbone.items() if key != "model_type"}
    classifier = AutoModelForImageClassification.from_config(AutoConfig.for_model(backbone["model_type"], **values))
    classifier.save_pretrained(tmp_path)
    model = tiny(backbone_config=backbone, share_encoders=shared_encoders)
    assert load_pretrained_backbones(model, str(tmp_path)) == []
    wanted = {name.split(".", 1)[1]: value for name, value in classifier.state_dict().items()}
    encoder = model.model.encoder
    for loaded in (encoder.backbone, encoder.maskige_backbone):
        if loaded is not None:
            assert all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())
    assert (encoder.maskige_backbone is None) is shared_encoders


def test_imagenet_start_of_another_architecture(tmp_path: Path):
    AutoConfig.for_model("pvt_v2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a pvt_v2; this model has a resnet"):
        load_pretrained_backbones(tiny(), tmp_path)


def test_imagenet_start_of_another_size():
    with pytest.raises(ValueError, match="does not fit"):
        load_pretrained_backbones(tiny(), {"stem.conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1)})

"""Starting points for training: values land where they mean the same, in both encoders, from every kind of file."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import Goldens
from transformers import AutoConfig, AutoModelForImageClassification

from combo_hf.configuration_combo import BACKBONES, ComboConfig
from combo_hf.conversion.pretrained import load_encoders, load_pretrained_backbones, load_vggish
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


RESNET = {"model_type": "resnet", "embedding_size": 24, "hidden_sizes": [24, 48, 96, 128], "depths": [1, 2, 1, 1]}
PVT = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 4, 8],
}
FULL = {"s4_r50": BACKBONES["r50"], "s4_pvt": BACKBONES["pvtv2-b5"]}


def tiny(**overrides) -> ComboForAudioVisualSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny", **overrides)).eval()


def values_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def classifier_folder(folder: Path, backbone: dict, **changes) -> torch.nn.Module:
    """A transformers image classifier with random weights and statistics, saved."""
    values = {
        key: value for key, value in {**backbone, **changes}.items() if key not in ("model_type", "out_features")
    }
    torch.manual_seed(1)
    classifier = AutoModelForImageClassification.from_config(AutoConfig.for_model(backbone["model_type"], **values))
    with torch.no_grad():
        for name, value in classifier.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value.copy_(torch.rand(value.shape) + (0.5 if name.endswith(("var", "weight")) else 0))
    classifier.save_pretrained(folder)
    return classifier.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "shared_encoders"), [(RESNET, False), (RESNET, True), (PVT, False)], ids=["resnet", "shared", "pvt"]
)
def test_start_from_a_transformers_classifier(tmp_path: Path, backbone: dict, shared_encoders: bool):
    classifier = classifier_folder(tmp_path, backbone)
    model = tiny(backbone_config=backbone, share_encoders=shared_encoders)
    report = load_pretrained_backbones(model, str(tmp_path))
    wanted = {name.split(".", 1)[1]: value for name, value in classifier.state_dict().items()}
    encoder = model.model.encoder
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs = classifier(picture, output_hidden_states=True).hidden_states[-4:]
    for loaded in filter(None, (encoder.backbone, encoder.maskige_backbone)):
        assert all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())
        for ours, maps in zip(loaded(picture).feature_maps, theirs, strict=True):
            # PVTv2: 1e-5 in some norms, as its authors have it, where transformers has 1e-6
            torch.testing.assert_close(ours, maps, rtol=0, atol=float(maps.abs().max()) * 1e-4)
    assert (encoder.maskige_backbone is None) is shared_encoders
    assert {len(places) for places in report.consumed.values()} == {1 if shared_encoders else 2}
    assert not report.dropped and not report.missing


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        (RESNET, {"downsample_in_bottleneck": True}, "has downsample_in_bottleneck True, this model False"),
        (RESNET, {"hidden_act": "gelu"}, "has hidden_act gelu, this model relu"),
        (RESNET, {"hidden_sizes": [24, 48, 96, 256]}, "does not fit: encoder.stages.3.layers.0.shortcut"),
        (RESNET, {"depths": [1, 2, 1, 2]}, "does not fit: .* no place here: encoder.stages.3.layers.1"),
        (PVT, {"num_attention_heads": [1, 2, 2, 4]}, r"has num_attention_heads \[1, 2, 2, 4\], this model \[1, 2, 4"),
    ],
    ids=["stride", "activation", "width", "depth", "heads"],
)
def test_classifiers_of_another_meaning_or_size(tmp_path: Path, backbone: dict, changes: dict, message: str):
    classifier_folder(tmp_path, backbone, **changes)
    model = tiny(backbone_config=backbone)
    before = values_of(model)
    with pytest.raises(ValueError, match=message):
        load_pretrained_backbones(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_start_of_another_architecture(tmp_path: Path):
    AutoConfig.for_model("pvt_v2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a pvt_v2; this model has a resnet"):
        load_pretrained_backbones(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"stem.conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1)}, "entries are missing"),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, "entries are missing"),
        ({"head.weight": torch.zeros(1)}, "entries are missing"),
    ],
)
def test_weight_files_that_do_not_fit(tensors: dict, message: str):
    with pytest.raises(ValueError, match=f"the state dict does not fit: .*{message}"):
        load_pretrained_backbones(tiny(), tensors)


def detectron2_pickle(goldens: Goldens, config: str, path: Path, numpy_1: bool) -> dict[str, np.ndarray]:
    """The release's file: numpy arrays, the classifier and, from torchvision, counters without an axis."""
    random = np.random.default_rng(3)
    arrays = {
        name.removeprefix("backbone."): random.random(shape, np.float32)
        for name, shape, _ in goldens.manifest(config)["entries"]
        if name.startswith("backbone.")
    }
    extra = {"head.weight": np.zeros((1000, 512), np.float32)}
    if "stem.conv1.weight" in arrays:
        extra = {
            "stem.fc.bias": np.zeros(1000, np.float32),
            "res2.0.conv1.norm.num_batches_tracked": np.zeros((), int),
        }
    content = pickle.dumps({"model": {**arrays, **extra}, "__author__": "x", "matching_heuristics": True}, protocol=2)
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core") if numpy_1 else content)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("config", FULL)
def test_start_from_the_pickle_of_the_release(goldens: Goldens, tmp_path: Path, config: str):
    """Full-size backbones in an otherwise tiny model; names and shapes are those of the official model."""
    arrays = detectron2_pickle(goldens, config, tmp_path / "start.pkl", numpy_1=config == "s4_r50")
    model = tiny(backbone_config=FULL[config], freeze_batch_norm=True)
    report = load_pretrained_backbones(model, tmp_path / "start.pkl")
    (tmp_path / "start.pkl").unlink()
    assert set(report.consumed) == set(arrays)
    places = model.state_dict()
    for name, targets in report.consumed.items():
        wanted = torch.from_numpy(arrays[name]).reshape(-1)
        for encoder in ("model.encoder.backbone.", "model.encoder.maskige_backbone."):
            parts = [places[target] for target in targets if target.startswith(encoder)]
            assert torch.equal(torch.cat([part.reshape(-1) for part in parts]), wanted), name
    filled = {target for targets in report.consumed.values() for target in targets} | set(report.missing)
    assert filled == {name for name in places if "encoder.backbone." in name or "maskige_backbone." in name}
    assert len(report.dropped) == (1 if config == "s4_pvt" else 2)
    assert str(report).startswith(f"ImageNet start: {len(arrays)} entries consumed")


@pytest.mark.slow
@pytest.mark.parametrize("config", FULL)
def test_start_from_a_full_size_transformers_checkpoint(tmp_path: Path, config: str):
    with torch.random.fork_rng():
        classifier = classifier_folder(tmp_path, FULL[config])
    model = tiny(backbone_config=FULL[config], freeze_batch_norm=True)
    load_pretrained_backbones(model, tmp_path)
    wanted = {name.split(".", 1)[1]: value for name, value in classifier.state_dict().items()}
    for loaded in (model.model.encoder.backbone, model.model.encoder.maskige_backbone):
        assert all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())
    (tmp_path / "model.safetensors").unlink()
    if config == "s4_pvt":
        eps = {name.split(".")[-2]: module.eps for name, module in loaded.named_modules() if "layer_norm" in name}
        assert (eps["patch_embedding"], eps["attention"], loaded.encoder.layers[0].layer_norm.eps) == (
            1e-5,
            1e-5,
            1e-6,
        )


def test_pickled_scalars_keep_their_rank(tmp_path: Path):
    from combo_hf.conversion.files import read_state_dict

    (tmp_path / "a.PKL").write_bytes(pickle.dumps({"model": {"n": np.zeros((), np.int64), "t": np.ones((2, 3)).T}}))
    tensors = read_state_dict(tmp_path / "a.PKL")
    assert tensors["n"].shape == () and tensors["t"].shape == (3, 2) and tensors["t"].is_contiguous()


def test_vggish(tmp_path: Path):
    model, other = tiny(), tiny()
    torch.nn.init.uniform_(other.model.audio_encoder.embeddings[0].weight)
    weights = {**other.model.audio_encoder.state_dict(), "pproc.pca_means": torch.zeros(3)}
    # as torchvggish's file is written: not a zip archive
    torch.save(weights, tmp_path / "vggish.pth", _use_new_zipfile_serialization=False)
    report = load_vggish(model, tmp_path / "vggish.pth")
    for name, value in model.model.audio_encoder.state_dict().items():
        assert torch.equal(value, weights[name])
    assert set(report.dropped) == {"pproc.pca_means"} and not report.missing
    assert report.consumed["features.0.weight"] == ["model.audio_encoder.features.0.weight"]
    before = values_of(model)
    for wrong, message in [
        ({**weights, "embeddings.0.weight": torch.zeros(1, 1)}, "VGGish does not fit: embeddings.0.weight has shape"),
        ({**weights, "embeddings.0.bias": torch.full((128,), torch.inf)}, "damaged: embeddings.0.bias holds values"),
        ({"other": torch.zeros(1)}, "VGGish does not fit: .* entries are missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_vggish(model, wrong)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"share_encoders": True}, {}),
        ({}, {"share_encoders": True}),
        ({"num_queries": 5}, {"fusion": False}),
    ],
)
def test_encoders_of_another_checkpoint(tmp_path: Path, theirs: dict, ours: dict):
    other = tiny(backbone_config=RESNET, **theirs)
    torch.manual_seed(7)
    with torch.no_grad():
        for value in other.parameters():
            value.uniform_(-1, 1)
    other.save_pretrained(tmp_path)
    model = tiny(backbone_config=RESNET, **ours)
    before, wanted = values_of(model), values_of(other.model)
    report = load_encoders(model, tmp_path)
    assert report.consumed["features.0.weight"] == ["model.audio_encoder.features.0.weight"]
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.")
        if name.startswith(("encoder.backbone.", "encoder.maskige_backbone.", "audio_encoder.")):
            image = name.replace("maskige_backbone", "backbone")  # where theirs is one for both
            assert torch.equal(value, wanted[name] if name in wanted else wanted[image]), name
        else:
            assert torch.equal(value, before.get(f"model.{name}", before.get(name))), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"audio_config": {"channels": [[8], [8], [8], [8]], "hidden_sizes": [128], "embedding_size": 64}},
            "fit: feat",
        ),
        ({"backbone_config": {**RESNET, "hidden_sizes": [16, 48, 96, 128]}}, "does not fit: "),
        ({"backbone_config": {**RESNET, "hidden_act": "gelu"}}, "has hidden_act gelu, this model relu"),
        ({"backbone_config": PVT}, "is a pvt_v2; this model has a resnet"),
    ],
)
def test_encoders_that_do_not_fit_change_nothing(tmp_path: Path, changes: dict, message: str):
    tiny(**{"backbone_config": RESNET, **changes}).save_pretrained(tmp_path)
    model = tiny(backbone_config=RESNET)
    before = values_of(model)
    with pytest.raises(ValueError, match=message):
        load_encoders(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_of_torchvggish(goldens: Goldens):
    """Its file has the names of the official model's audio part, and our full-size encoder has a place for each."""
    with torch.device("meta"):
        encoder = ComboForAudioVisualSegmentation(ComboConfig.from_preset("r50-s4")).model.audio_encoder
    official = {
        name.removeprefix("audio_backbone."): tuple(shape)
        for name, shape, _ in goldens.manifest("s4_r50")["entries"]
        if name.startswith("audio_backbone.")
    }
    assert official == {name: tuple(value.shape) for name, value in encoder.state_dict().items()}

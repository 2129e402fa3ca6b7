"""Conversion of official checkpoints: every name accounted for, sizes as recorded, errors, nothing half-written."""

import collections
import json
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import PRESETS, Goldens

from combo_hf import ComboProcessor, cli
from combo_hf.configuration_combo import OWN_PRESETS, ComboConfig, preset_names
from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.fill import ConversionReport, cut, rename
from combo_hf.conversion.official import DROPPED, NO_FUSION, RULES, convert_official_checkpoint
from combo_hf.conversion.saving import save_converted
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


OFFICIAL = [name for name in preset_names() if name not in OWN_PRESETS]
# as trained: the released AVSS/R50 test configuration ("avss_r50") leaves the fusion out
CONFIGS = {preset: config for config, preset in PRESETS.items() if config != "avss_r50"}
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
def test_every_name_has_one_place_of_its_shape(goldens: Goldens, config: str):
    wanted = {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    places = collections.Counter()
    for name, shape, _ in goldens.manifest(config)["entries"]:
        if rename(name, DROPPED) is None:
            for place, part in cut(rename(name, RULES), torch.empty(shape, device="meta")).items():
                assert tuple(part.shape) == wanted[place], (name, place)
                places[place] += 1
    assert set(places.values()) == {1}
    assert {name for name in wanted if not name.endswith("num_batches_tracked")} == set(places)


def part_sizes(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of every part; the release counts the affine of frozen batch norms among the buffers."""
    frozen = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    parameters = {name: value for name, value in model.named_parameters() if name not in frozen}
    return {
        part: sum(value.numel() for name, value in parameters.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }


@pytest.mark.parametrize("config", PRESETS)
def test_parameters_of_every_part(goldens: Goldens, config: str):
    recorded = goldens.manifest(config)
    model = meta_model(config).model
    sizes = part_sizes(model)
    per_part = {name: counts["params"] for name, counts in recorded["per_module"].items() if name in PARTS}
    assert sizes == {**per_part, **recorded["sem_seg_head"]}
    assert sum(sizes.values()) == recorded["total_params"]
    trainable = [value.numel() for value in model.parameters() if value.requires_grad]
    assert sum(trainable) == recorded["trainable_params"]


def test_table_of_sizes_in_the_model_card():
    """Its rows are the six models (S4 and MS3 in one), in the order of PARTS after the total."""
    card = (Path(__file__).resolve().parents[2] / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = {}
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.match(r"`(r50|pvtv2-b5)-(s4|ms3|avss)`", cells[0]):
            rows.update(
                {name: [int(cell.replace(",", "")) for cell in cells[1:]] for name in cells[0].split("`")[1::2]}
            )
    assert set(rows) == set(OFFICIAL)
    for preset in OFFICIAL:
        with torch.device("meta"):
            sizes = part_sizes(ComboForAudioVisualSegmentation(ComboConfig.from_preset(preset)).model)
        assert rows[preset] == [sum(sizes.values()), *sizes.values()], preset


def official_file(goldens: Goldens, config: str, path: Path) -> dict[str, torch.Tensor]:
    """A detectron2 checkpoint of this configuration, full size, with cheap random values."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.rand(shape, generator=generator) if dtype == "float32" else torch.zeros(shape, dtype=torch.long)
        for name, shape, dtype in goldens.manifest(config)["entries"]
    }
    torch.save({"model": tensors, "iteration": 89999}, path)
    return tensors


@pytest.fixture
def large_folder() -> Iterator[Path]:
    """A folder that goes at once: pytest keeps those of three runs, and these hold gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("preset", OFFICIAL)
def test_round_trip(goldens: Goldens, large_folder: Path, capsys: pytest.CaptureFixture, preset: str):
    """Official file -> `combo-hf convert` -> folder -> model: no tensor changes on the way."""
    weights = official_file(goldens, CONFIGS[preset], large_folder / "model_best.pth")
    folder = large_folder / "converted"
    assert (
        cli.main(["convert", f"{large_folder / 'model_best.pth'}", "--preset", preset, "--output", f"{folder}"]) == 0
    )
    assert f"{preset}: {len(weights) - 1} entries consumed, 1 dropped" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} == {  # the code is beside them
        "README.md",
        "config.json",
        "conversion_report.json",
        "model.safetensors",
        "processor_config.json",
    }
    report = json.loads((folder / "conversion_report.json").read_text())
    assert set(report["consumed"]) | set(report["dropped"]) == set(weights)
    assert set(report["dropped"]) == {"criterion.empty_weight"}
    model = ComboForAudioVisualSegmentation.from_pretrained(folder)
    assert (model.config.audio_query_layout, model.config.consistency_window) == ("official", 5)
    again = model.state_dict()
    for name, targets in report["consumed"].items():
        assert torch.equal(torch.cat([again[target].reshape(-1) for target in targets]), weights[name].reshape(-1))
    assert set(again) == {target for targets in report["consumed"].values() for target in targets} | set(
        report["missing"]
    )
    processor = ComboProcessor.from_pretrained(folder)
    assert processor.num_frames == model.config.num_frames == (10 if preset.endswith("avss") else 5)
    assert preset in (folder / "README.md").read_text()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("config", "fusion"), [("s4_r50", True), ("avss_pvt", False)])
def test_the_saved_folder_computes_the_same(goldens: Goldens, large_folder: Path, config: str, fusion: bool):
    """Weights of the goldens, so that this is the model of test_forward.py; once without the fusion."""
    model, report = convert_official_checkpoint(goldens.weights(config), PRESETS[config], fusion)
    assert (NO_FUSION[0][1] in report.dropped.values()) is not fusion
    again = ComboForAudioVisualSegmentation.from_pretrained(save_converted(model, report, large_folder / "folder"))
    assert not again.training and again.config.fusion is fusion
    generator = torch.Generator().manual_seed(0)
    frames, maskiges = (torch.randn(3, 3, 64, 96, generator=generator) for _ in range(2))
    sound = torch.randn(3, 1, 96, 64, generator=generator)
    wanted, got = (network(frames, maskiges, sound, [1, 2]) for network in (model, again))
    assert torch.equal(wanted.class_queries_logits, got.class_queries_logits)
    assert torch.equal(wanted.masks_queries_logits, got.masks_queries_logits)
    assert bool(wanted.masks_queries_logits.isfinite().all()) and float(wanted.masks_queries_logits.std()) > 0.1


def hollow_file(goldens: Goldens, config: str, path: Path, change: Callable[[dict], object]) -> None:
    """An official file whose tensors are one zero each, repeated by strides: real names and shapes in kilobytes."""
    tensors = {name: torch.zeros(()).expand(shape) for name, shape, _ in goldens.manifest(config)["entries"]}
    content = {"model": tensors}
    change(tensors)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("r50-s4", lambda t: t.pop("backbone.res4.2.conv1.weight"),
         "entries are missing: model.encoder.backbone.encoder.stages.2.layers.2.layer.0.convolution"),
        ("pvtv2-b5-avss", lambda t: t.pop("sem_seg_head.predictor.query_feat.weight"),
         "entries are missing: model.decoder.query_features.weight"),
        ("r50-s4", lambda t: t.update({"backbone.res2.9.conv1.weight": torch.zeros(1)}),
         "does not fit: 1 entries have no place here: model.encoder.backbone.encoder.stages.0.layers.9"),
        ("r50-ms3", lambda t: t.update({"teacher.weight": torch.zeros(1)}),
         "1 entries are not of r50-ms3: teacher.weight"),
        ("r50-avss", lambda t: t.update({"sem_seg_head.predictor.query_feat.weight": torch.zeros(200, 256)}),
         "model.decoder.query_features.weight has shape (200, 256), wanted (100, 256)"),
        ("r50-s4", lambda t: t.update({"backbone.stem.conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}),
         "holds values that are not finite"),
        ("pvtv2-b5-s4", lambda t: None, "the checkpoint has r50 and 2. It fits: r50-s4, r50-ms3"),
        ("r50-avss", lambda t: None, "the checkpoint has r50 and 2. It fits: r50-s4, r50-ms3"),
        ("r50-s4", lambda t: t.clear(), "holds no state dict"),
        ("r50-s4", lambda t: [t.pop(name) for name in list(t) if "predictor" in name], "not a COMBO checkpoint"),
        ("s4-r50", lambda t: None, "known: r50-s4"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_one_line(
    goldens: Goldens, tmp_path: Path, capsys: pytest.CaptureFixture, preset: str, change: Callable, message: str
):
    wrong_file = preset in ("pvtv2-b5-s4", "s4-r50") or (preset == "r50-avss" and "It fits" in message)
    hollow_file(goldens, "s4_r50" if wrong_file else CONFIGS[preset], tmp_path / "file.pth", change)
    assert refused(tmp_path / "file.pth", preset, tmp_path / "out", capsys).find(message) > 0


def refused(path: Path, preset: str, output: Path, capsys: pytest.CaptureFixture) -> str:
    """Runs the command, which must fail with one line and write nothing; returns the line."""
    before = sorted(entry.name for entry in output.parent.iterdir())
    assert cli.main(["convert", str(path), "--preset", preset, "--output", str(output), "--quiet"]) == 2
    assert sorted(entry.name for entry in output.parent.iterdir()) == before
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1, printed
    assert path.name in printed.err
    return printed.err


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
        (minimal(), "r50-s4", "the checkpoint does not fit: .* entries are missing"),
        ({**minimal(), "swin.layer": torch.zeros(1)}, "r50-s4", "1 entries are not of r50-s4: swin.layer"),
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
def test_refused_files(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, write):
    path = tmp_path / name
    write(path)
    line = refused(path, "r50-s4", tmp_path / "out", capsys)
    assert any(text in line for text in ("truncated or not a", "no such file", "is not loaded"))
    assert "weights_only" not in line


def test_what_training_leaves_beside_the_weights(tmp_path: Path):
    """Counters and numpy numbers are data; anything that could run code is refused by name, never advised to load."""
    content = {"model": {"a": torch.ones(2)}, "iteration": 3, "best": np.float64(0.8), "scores": np.arange(3)}
    torch.save(content, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth")["a"].tolist() == [1, 1]
    torch.save({**content, "trainer": Attack(tmp_path / "ran")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="b.pth holds a .*, which is no tensor, could run code and is not loaded"):
        read_state_dict(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()


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

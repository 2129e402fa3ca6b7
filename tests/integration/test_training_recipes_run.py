"""Whole runs from a recipe: synthetic clips, rows in the layout of AVSBench, starts, push, command line, ablations."""

import dataclasses
import importlib.util
import json
import runpy
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import torch
from fixtures_training import SMALL, clips, recipe, records, small_model

from combo_hf import ComboForAudioVisualSegmentation, ComboProcessor
from combo_hf.commands import training as command
from combo_hf.data.synthetic.dataset import write_dataset
from combo_hf.training import (
    AvsbenchRecipe,
    ModelRecipe,
    SyntheticRecipe,
    TrainingRecipe,
    build_data,
    build_model,
    run_recipe,
    sources,
    train,
)
from combo_hf.training import run as building


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def parse(*words: str) -> Namespace:
    parser = ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true")
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips as a data set, without Maskiges."""
    folder = tmp_path_factory.mktemp("rows")
    write_dataset("ms3", folder, {"train": 2, "val": 1}, formats=("rows",), progress=False)
    return folder


def test_recipe_over_rows_leaves_a_checkpoint_with_its_processor(rows: Path, tmp_path: Path):
    data = AvsbenchRecipe(path=str(rows), subset="ms3", train_clips=2, proposal_generator="superpixels")
    plan = recipe(data=data, clips_per_batch=1, max_steps=2, jitter=0.4)
    result = run_recipe(plan, tmp_path / "run", cpu=True)
    assert result.step == 2 and 0 <= result.best <= 1
    processor = ComboProcessor.from_pretrained(tmp_path / "run" / "best")
    assert processor.image_processor.size == {"height": 64, "width": 64}
    model = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "best")
    assert model.config.id2label == {0: "background", 1: "sounding object"}
    train_set, val_set = build_data(plan, model.config)
    assert (len(train_set), len(val_set)) == (2, 1)
    assert torch.equal(val_set[0].frames, val_set[0].frames) and train_set[0].frames.shape[1:] == (3, 64, 64)
    silent = dataclasses.replace(data, silence_audio=True)
    quiet, _ = build_data(recipe(data=silent), model.config)
    assert quiet[0].input_features.unique().numel() == 1
    with pytest.raises(ValueError, match="split"):
        build_data(recipe(data=dataclasses.replace(data, val_split="dev")), model.config)


def test_synthetic_settings_reach_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(sources, "prepare_synthetic", lambda *args, **kwargs: asked.append(args) or clips(2))
    data = SyntheticRecipe(kind="avss", labels="semantic", seed=4, train_clips=3, cache=str(tmp_path))
    config = small_model().config
    both = build_data(recipe(data=data), config)
    assert [args[:6] for args in asked] == [
        ("avss", 4, 3, "train", 64, "semantic"),
        ("avss", 4, 50, "val", 64, "semantic"),
    ]
    asked.clear()
    mixed = build_data(recipe(data=SyntheticRecipe(kind="s4+avss", train_clips=3, blank_maskige=True)), config)
    assert [args[0] for args in asked] == ["s4", "avss"] * 2 and [len(part) for part in mixed] == [4, 4]
    assert not any(mixed[0][index].maskiges.any() for index in range(4))
    assert both[0][0].maskiges.float().std() > 0 and both[0][0].input_features.unique().numel() > 1
    blank = build_data(recipe(data=SyntheticRecipe(blank_maskige=True, silence_audio=True)), config)
    assert not blank[1][0].maskiges.any() and blank[1][0].input_features.unique().numel() == 1
    assert blank[0][0].frames.float().std() > 0


def test_starting_weights(tmp_path: Path):
    source = small_model(seed=3)
    encoder = source.model.encoder.backbone
    torch.save(source.model.audio_encoder.state_dict(), tmp_path / "vggish.pth")
    source.save_pretrained(tmp_path / "combo")
    model = build_model(ModelRecipe(overrides=SMALL, vggish=str(tmp_path / "vggish.pth")), seed=0)
    assert torch.equal(model.model.audio_encoder.features[0].weight, source.model.audio_encoder.features[0].weight)
    assert not torch.equal(model.model.encoder.backbone.embedder.embedder.convolution.weight,
                           encoder.embedder.embedder.convolution.weight)  # fmt: skip
    again = build_model(ModelRecipe(pretrained=str(tmp_path / "combo"), overrides={"consistency_weight": 1.0}))
    assert again.config.consistency_weight == 1.0
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in again.state_dict().items())
    plan = ModelRecipe(encoders=str(tmp_path / "combo"), overrides=SMALL)
    started = build_model(plan, id2label={0: "a", 1: "b", 2: "c"})
    ours, theirs = started.state_dict(), source.state_dict()
    same = {name for name in theirs if name in ours and torch.equal(ours[name], theirs[name])}
    for part in ("encoder.backbone.", "encoder.maskige_backbone.", "audio_encoder."):
        assert {name for name in theirs if name.startswith(f"model.{part}")} <= same
    assert "model.decoder.query_features.weight" not in same and started.config.num_labels == 3
    wider = {**source.config.audio_config, "embedding_size": 48}
    build_model(ModelRecipe(overrides={**SMALL, "audio_config": wider})).save_pretrained(tmp_path / "wider")
    assert build_model(ModelRecipe(encoders=str(tmp_path / "wider"), overrides=SMALL)).config.audio_config == wider
    with pytest.raises(ValueError, match="model.pretrained: .* 2 of another shape"):
        build_model(ModelRecipe(pretrained=str(tmp_path / "combo")), id2label={0: "a", 1: "b", 2: "c"})
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    wrong = [("vggish", "broken.pth"), ("backbone", "absent.pth"), ("encoders", "absent")]
    for field, path in ((field, tmp_path / name) for field, name in wrong):
        with pytest.raises((ValueError, OSError), match=f"model.{field}: "):
            build_model(ModelRecipe(overrides=SMALL, **{field: str(path)}))


@pytest.mark.parametrize("frozen", [True, False])
def test_vggish_is_frozen_or_trained(tmp_path: Path, frozen: bool):
    overrides = {**SMALL, "freeze_audio_encoder": frozen}
    model = small_model(overrides)
    before = {name: value.clone() for name, value in model.model.audio_encoder.state_dict().items()}
    train(model, clips(2), recipe(overrides, max_steps=2, weight_decay=0.0), tmp_path / "run")
    changed = [name for name, value in model.model.audio_encoder.state_dict().items() if not value.equal(before[name])]
    assert bool(changed) is not frozen


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(building, "build_data", lambda recipe, config: (clips(2), clips(2)))
    recipe(max_steps=1).save(tmp_path / "plan.yaml")
    words = ["--recipe", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert command.train(parse(*words, "seed=5")) == 0
    assert capsys.readouterr().out.startswith("1 steps, stopped by max_steps; best validation M_J 0.")
    assert TrainingRecipe.from_yaml(tmp_path / "run" / "recipe.yaml").seed == 5
    assert command.train(parse(*words, "--resume", "seed=5")) == 0
    with pytest.raises(FileExistsError, match="holds a run"):
        command.train(parse(*words))
    with pytest.raises(ValueError, match="plan.yaml: .*unknown key sed"):
        command.train(parse(*words, "sed=5"))

    def broken(*args, **kwargs):
        raise FloatingPointError("the loss of step 3 is nan; clips: a, b")

    capsys.readouterr()
    monkeypatch.setattr(building, "run_recipe", broken)
    monkeypatch.setattr("combo_hf.training.run_recipe", broken)
    assert command.train(parse(*words)) == 1
    assert capsys.readouterr().err == "combo-hf: error: the loss of step 3 is nan; clips: a, b\n"


def test_example_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(
        "sys.argv", ["train.py", "--recipe", str(tmp_path / "no.yaml"), "--output", str(tmp_path / "x")]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("combo-hf: error: ") and "no.yaml" in error and error.count("\n") == 1


@pytest.fixture
def ablations():
    spec = importlib.util.spec_from_file_location("ablations", EXAMPLES / "ablations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ablation_table(ablations):
    results = {
        ("s4", "all parts"): {0: 0.5, 1: 0.7, 2: 0.9},
        ("s4", "without audio"): {1: 0.3},
        ("s4", "25 queries"): {0: 0.6, 2: 0.8},
        ("avss", "50 queries"): {0: 0.25, 1: 0.25},
    }
    assert ablations.table(results, ["s4", "avss"]).splitlines()[2:] == [
        "| s4, M_J | all parts | 70.0 | 20.0 | 3 | - | - |",
        "| s4, M_J | without audio | 30.0 | - | 1 | -40.0 | - |",
        "| s4, M_J | 25 queries | 70.0 | 14.1 | 2 | +0.0 | 14.1 |",
        "| avss, miou | 50 queries | 25.0 | 0.0 | 2 | - | - |",
    ]


@pytest.mark.parametrize("start", [None, "combo_hf/assets/demo"])
def test_ablations_differ_in_one_thing_each(ablations, tmp_path: Path, start: str | None):
    words = ["--output", str(tmp_path), "--steps", "100", "--image-size", "64", *(["--start", start] if start else [])]
    options = ablations.build_parser().parse_args(words)
    whole = ablations.recipe_of("ms3", "all parts", 0, options)
    assert (whole.model.encoders, whole.model.overrides["freeze_audio_encoder"]) == (start, start is not None)
    for variant in ablations.VARIANTS:
        other = ablations.recipe_of("ms3", variant, 0, options)
        assert len(whole.differences(other)) == (0 if variant == "all parts" else 1), variant
        other.model.encoders = None
        with torch.device("meta"):
            build_model(other.model)
    assert ("encoders" in ablations.scale(options)) == (start is not None)


def test_ablation_run_is_done_once(ablations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablations, "build_data", lambda recipe, config: (clips(2), clips(2)))
    plan = recipe(max_steps=1)
    scores = ablations.run(plan, tmp_path / "run")
    assert 0 <= scores["M_J"] <= 1 and json.loads((tmp_path / "run" / "result.json").read_text()) == scores
    before = records(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # killed before it was written
    again = ablations.run(plan, tmp_path / "run")
    assert again["M_J"] == scores["M_J"] and records(tmp_path / "run") == before
    monkeypatch.setattr(ablations, "train", None)
    assert ablations.run(plan, tmp_path / "run") == again
    with pytest.raises(ValueError, match="holds another run .max_steps: 1, 2"):
        ablations.run(recipe(max_steps=2), tmp_path / "run")

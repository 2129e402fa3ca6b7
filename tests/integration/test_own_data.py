"""Training on own data: classes from the data set, another class head, fewer frames, several sets together."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures_own import make_folder
from fixtures_training import SMALL, recipe, small_model

from combo_hf import ComboForAudioVisualSegmentation, ComboProcessor
from combo_hf.cli import main
from combo_hf.data.synthetic.dataset import ID2LABEL, write_dataset
from combo_hf.training import (
    AvsbenchRecipe,
    MixedRecipe,
    ModelRecipe,
    SyntheticRecipe,
    TrainingRecipe,
    build_data,
    build_model,
    label_names,
    run_recipe,
    sources,
)
from combo_hf.training.start import replace_class_head


NAMES = list(ID2LABEL.values())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Clips of two frames with classes, and a list of their names, as a folder of own data has it."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("rows")
    write_dataset("avss", folder / "avss", {"train": 3, "val": 1}, 3, ("rows",), 64, num_frames=2,
                  maskiges="superpixels", progress=False)  # fmt: skip
    write_dataset("s4", folder / "s4", {"train": 2, "val": 1}, 3, ("rows",), 64, num_frames=3,
                  maskiges="superpixels", progress=False)  # fmt: skip
    (folder / "avss" / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


def own(rows: Path, **changes) -> AvsbenchRecipe:
    return AvsbenchRecipe(path=str(rows / "avss"), subset="own", **changes)


def test_the_data_set_names_the_classes_everywhere(rows: Path, tmp_path: Path):
    plan = recipe(data=own(rows), max_steps=1, best_metric="miou", clips_per_batch=1)
    run_recipe(plan, tmp_path / "run", cpu=True)
    for name in ("best", "last"):
        model = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / name)
        assert list(model.config.id2label.values()) == NAMES
        assert model.config.label2id == {name: index for index, name in enumerate(NAMES)}
        processor = ComboProcessor.from_pretrained(tmp_path / "run" / name)
        assert processor.image_processor.num_labels == len(NAMES)
        assert model.model.decoder.class_head.out_features == len(NAMES) + 1


@pytest.mark.slow  # seven commands, one after the other
def test_from_six_videos_to_a_segmented_seventh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands of docs/own-data.md, with a smaller network and fewer steps."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_folder(tmp_path / "my-videos", {"seventh": (), **dict.fromkeys("abcdef", (1.5, 3.5, 6.0))})
    (tmp_path / "my-videos" / "videos" / "seventh.mp4").rename("seventh.mp4")
    splits = "".join(f"{name},{'val' if name in 'ef' else 'train'}\n" for name in "abcdef")
    (tmp_path / "my-videos" / "splits.csv").write_text(f"video,split\n{splits}")
    page = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
    page = page[: page.index("## Clips of your own photographs")]
    lines = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^combo-hf .*", page, re.M)]
    assert " ".join(words[0] for words in lines) == "data data maskige train train evaluate evaluate predict"
    size = [f"model.overrides.{name}=64" for name in ("image_size", "train_num_points")]
    for words in lines:
        steps = [f"max_steps={2 if '--resume' in words else 1}", "clips_per_batch=2", "num_workers=0", *size]
        assert main(words + (steps if words[0] == "train" else [])) == 0, words
    model = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "runs" / "own" / "best")
    assert list(model.config.id2label.values()) == ["background", "cat", "dog"] and model.config.class_gate
    assert (tmp_path / "out" / "seventh_overlay.mp4").is_file()


def test_labels_of_an_override_agree():
    model = build_model(ModelRecipe(overrides={**SMALL, "id2label": {0: "background", 1: "owl", 2: "cat"}}))
    assert model.config.label2id == {"background": 0, "owl": 1, "cat": 2}


def test_binary_rows_have_binary_classes(rows: Path):
    data = AvsbenchRecipe(path=str(rows / "s4"), subset="own")
    assert list(label_names(recipe(data=data))["id2label"].values()) == ["background", "sounding object"]


def test_own_data_without_names_of_classes(rows: Path, tmp_path: Path):
    shutil.copytree(rows / "avss", tmp_path / "rows")
    (tmp_path / "rows" / "classes.txt").unlink()
    with pytest.raises(ValueError, match="names no classes: neither a column .* nor a classes.txt"):
        label_names(recipe(data=AvsbenchRecipe(path=str(tmp_path / "rows"), subset="own")))


def test_a_checkpoint_of_other_classes_keeps_everything_but_new_rows(tmp_path: Path, capsys: pytest.CaptureFixture):
    before = small_model({**SMALL, "id2label": {0: "background", 1: "owl", 2: "cat"}}, seed=3)
    before.save_pretrained(tmp_path / "old")
    names = {"id2label": {0: "background", 1: "dog", 2: "cat", 3: "car"}}
    names["label2id"] = {name: index for index, name in names["id2label"].items()}
    plan = ModelRecipe(pretrained=str(tmp_path / "old"), overrides={"consistency_weight": 1.0})
    with pytest.raises(ValueError, match="model.new_head=true"):
        build_model(plan, **names)
    plan.new_head = True
    after = build_model(plan, **names)
    told = f"new in the class head: dog, car; all else is from {tmp_path / 'old'}"
    assert capsys.readouterr().err.strip().endswith(told)
    assert after.config.id2label == names["id2label"] and after.config.label2id == names["label2id"]
    assert after.config.consistency_weight == 1.0 and after.config.num_labels == 4
    old, new = before.state_dict(), after.state_dict()
    for name, value in old.items():
        if "class_head" not in name:
            assert torch.equal(new[name], value), name
            continue
        assert torch.equal(new[name][[0, 2, 4]], value[[0, 2, 3]]) and not torch.equal(new[name][1], value[1])
    after.save_pretrained(tmp_path / "new")
    again = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "new")
    assert again.config.id2label == names["id2label"]
    assert replace_class_head(again, list(names["id2label"].values())) == []  # nothing is new


def test_frames_with_masks_only_and_neighbours(rows: Path):
    config = small_model().config
    first = AvsbenchRecipe(path=str(rows / "s4"), subset="s4", frames="annotated")
    train, validation = build_data(recipe(data=first), config)
    whole, _ = build_data(recipe(data=AvsbenchRecipe(path=str(rows / "s4"), subset="s4")), config)
    assert [len(train[0].frames), len(whole[0].frames), len(validation[0].frames)] == [1, 3, 3]
    assert torch.equal(train[0].input_features, whole[0].input_features[:1])
    assert torch.equal(train[0].masks, whole[0].masks) and torch.equal(train[0].frames, whole[0].frames[:1])
    two = AvsbenchRecipe(path=str(rows / "s4"), subset="s4", frames_per_clip=2)
    train, _ = build_data(recipe(data=two), config)
    seen = set()
    for epoch in range(8):
        train.set_epoch(epoch)
        example = train[1]
        assert len(example.frames) == 2 and example.label_frames.any() == (len(example.masks) > 0)
        seen.add(tuple(example.label_frames.tolist()))
    assert seen == {(True, False)}  # of S4 only the first frame is annotated: it is always among them


def test_several_sets_together(rows: Path, monkeypatch: pytest.MonkeyPatch):
    """Classes of the same name are one; the sounding object of S4 is one of its own."""
    data = MixedRecipe(parts=[AvsbenchRecipe(path=str(rows / "s4"), subset="s4"), own(rows)])
    plan = recipe(data=data)
    assert TrainingRecipe.from_dict(plan.to_dict()) == plan
    names = label_names(plan)
    assert list(names["id2label"].values()) == ["background", "sounding object", *NAMES[1:]]
    model = build_model(plan.model, **names)
    train, validation = build_data(plan, model.config)
    assert (len(train), len(validation)) == (2 + 3, 1 + 1)
    only = recipe(data=own(rows))
    alone, _ = build_data(only, build_model(plan.model, **label_names(only)).config)
    for index in range(3):
        own_ids, ids = alone[index].masks, train[2 + index].masks
        assert torch.equal(ids, torch.where((own_ids > 0) & (own_ids < 255), own_ids + 1, own_ids))
    assert set(train[0].masks.unique().tolist()) <= {0, 1, 255}
    train.set_epoch(1)
    assert train.parts[0].epoch == train.parts[1].epoch == 1
    with pytest.raises(IndexError):
        train[5]
    asked = []
    monkeypatch.setattr(sources, "prepare_synthetic", lambda *args, **kwargs: asked.append(args) or clips_of(3))
    both = MixedRecipe(parts=[SyntheticRecipe(kind="s4", labels="semantic"), own(rows)])
    train, _ = build_data(recipe(data=both), build_model(plan.model, **label_names(recipe(data=both))).config)
    assert train.parts[0].augmentation is not None and len(asked) == 2


def clips_of(count: int):
    from fixtures_training import clips

    return clips(count, labels=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "mixed"}, "parts: wanted at least one"),
        ({"source": "mixed", "parts": [{"source": "tape"}]}, "data.parts.0..source: wanted one of"),
        ({"source": "mixed", "parts": [{"source": "avsbench", "subset": "s5"}]}, "subset: wanted one of"),
        ({"source": "avsbench", "frames": "first"}, "frames: wanted one of"),
        ({"source": "avsbench", "frames_per_clip": 0}, "frames_per_clip: wanted at least 1"),
        ({"source": "avsbench", "geometry": "square"}, "geometry: wanted"),
        ({"source": "avsbench", "min_scale": 3.0}, "min_scale, max_scale: wanted"),
        ({"source": "avsbench", "jitter_strength": -1.0}, "jitter_strength: wanted"),
    ],
)
def test_impossible_data(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainingRecipe.from_dict({"data": values})

"""Evaluation of a checkpoint on rows: files, resuming, settings, what does not fit. Small clips, bundled weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from combo_hf import BUNDLED_MODEL, ComboConfig, ComboForAudioVisualSegmentation
from combo_hf.data.synthetic.dataset import write_dataset
from combo_hf.evaluation import processes
from combo_hf.evaluation import report as evaluation_report
from combo_hf.evaluation import run as evaluation_run
from combo_hf.evaluation.files import check_settings, collect_lines, part_file, read_lines, write_settings
from combo_hf.evaluation.other_sounds import other_clips
from combo_hf.evaluation.prepare import EvaluationOptions, prepare_evaluation
from combo_hf.evaluation.run import evaluate_dataset
from combo_hf.evaluation.scores import iter_class_maps, sounding_scores
from combo_hf.media_combo import MediaError
from combo_hf.metrics import SemanticScores, f_measure, jaccard


FILES = {"settings.json", "per_video.jsonl", "results.json", "per_class.json", "per_class.md"}
CLIPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Data sets by name, and a folder for each test's own."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        for kind in ("ms3", "avss"):
            write_dataset(kind, root / kind, {"test": CLIPS}, 3, ("rows",), 96, num_frames=2, maskiges="superpixels",
                          progress=False)  # fmt: skip
        yield root


def run(folders: Path, output: Path, kind: str = "ms3", model: Path = BUNDLED_MODEL, **options) -> dict:
    return evaluate_dataset(model, folders / kind, output, EvaluationOptions(**{"sheet": 0, **options}), "cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(folders: Path) -> dict[str, Path]:
    """Finished evaluations of both kinds, with a sheet."""
    for kind in ("ms3", "avss"):
        run(folders, folders / f"whole-{kind}", kind, sheet=1)
    return {kind: folders / f"whole-{kind}" for kind in ("ms3", "avss")}


@pytest.mark.parametrize("kind", ["ms3", "avss"])
def test_scores_are_those_of_the_metrics_and_all_files_are_there(folders: Path, whole: dict[str, Path], kind: str):
    assert {path.name for path in whole[kind].iterdir()} == FILES | {"sheet.png"}
    results = json.loads((whole[kind] / "results.json").read_text())
    evaluation = prepare_evaluation(BUNDLED_MODEL, folders / kind, EvaluationOptions())
    values, semantic = [], SemanticScores(9)
    for class_maps, target in iter_class_maps(evaluation.model, evaluation.clips, 1):
        scores = sounding_scores(class_maps)
        values.append((jaccard(scores, target > 0), f_measure(scores, target > 0)))
        if kind == "avss":
            semantic.update(class_maps.argmax(1), target)
    means = [sum(column) / CLIPS for column in zip(*values, strict=True)]
    lines = [json.loads(line) for line in (whole[kind] / "per_video.jsonl").read_text().splitlines()]
    assert [line["video_id"] for line in lines] == evaluation.video_ids
    assert [(line["M_J"], line["M_F"]) for line in lines] == values
    scores, table = results["scores"], json.loads((whole[kind] / "per_class.json").read_text())
    assert (results["subset"], scores["num_videos"], scores["num_frames"]) == (kind, CLIPS, 2 * CLIPS)
    if kind == "avss":
        assert scores["sounding_or_not"] == {"M_J": pytest.approx(means[0]), "M_F": pytest.approx(means[1])}
        expected = semantic.compute()
        assert {name: scores[name] for name in expected} == expected
        assert [row["iou"] for row in table] == expected["per_class_iou"] and table[0]["label"] == "background"
        assert sum(row["pixels"] for row in table) == 2 * CLIPS * 96 * 96
    else:
        assert (scores["M_J"], scores["M_F"]) == (pytest.approx(means[0]), pytest.approx(means[1]))
        assert scores["M_J"] > 0.3  # the bundled weights know such scenes
        categories = {name for line in lines for name in line["category"].split(",") if name}
        assert categories <= {row["category"] for row in table}
    background = results["background_weight"]
    assert background["of_the_model"] == 1.0
    assert background["M_J_by_weight"]["1.0"] == pytest.approx(means[0])
    assert background["M_J_by_weight"][str(background["best"])] == max(background["M_J_by_weight"].values())
    assert (whole[kind] / "per_class.md").read_text().count("\n") == len(table) + 2
    with Image.open(whole[kind] / "sheet.png") as sheet:
        assert sheet.width > 1000 and len(sheet.getcolors(1 << 24)) > 1000


def counting(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    """Names of the clips that go through the model from here on."""
    seen: list[str] = []
    predict = evaluation_run.predict_class_maps

    def count(model, examples):
        if stop_after is not None and len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.extend(example.video_id for example in examples)
        return predict(model, examples)

    monkeypatch.setattr(evaluation_run, "predict_class_maps", count)
    return seen


def test_interrupted_run_goes_on_to_the_same_files(folders: Path, whole, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counting(patch, stop_after=3)
        run(folders, tmp_path / "run", sheet=1)
    with open(part_file(tmp_path / "run", 0), "ab") as file:
        file.write(b'{"video_id": "half a li')  # what kill -9 may leave
    part_file(tmp_path / "run", 7).write_bytes(b"\0\0\n")  # and a power cut, in another process' file
    seen = counting(monkeypatch)
    run(folders, tmp_path / "run", sheet=1)
    assert len(seen) == 1
    assert contents(tmp_path / "run") == contents(whole["ms3"])
    run(folders, tmp_path / "run", sheet=1)
    assert len(seen) == 1 and contents(tmp_path / "run") == contents(whole["ms3"])


def test_protocol_may_change_afterwards_without_computing(folders: Path, whole, tmp_path: Path, monkeypatch):
    run(folders, tmp_path, "avss")
    seen = counting(monkeypatch)
    results = run(folders, tmp_path, "avss", protocol="dataset")
    assert not seen and results["protocol"] == "dataset"
    official = json.loads((whole["avss"] / "results.json").read_text())["scores"]
    assert results["scores"]["miou"] != official["miou"]
    assert results["scores"]["sounding_or_not"] == official["sounding_or_not"]


def test_changed_settings_are_refused_and_named(folders: Path, whole):
    before = contents(whole["ms3"])
    for options, words in (
        ({"batch_size": 2}, "batch_size was 1, is 2"),
        ({"silence_audio": True}, "silence_audio was False"),
        ({"limit": 2}, "videos was"),
        ({"scores": "semantic"}, "scores was 'object'"),
    ):
        with pytest.raises(FileExistsError, match=words):
            run(folders, whole["ms3"], **options)
    assert contents(whole["ms3"]) == before


def test_batches_and_workers_do_not_change_the_scores(folders: Path, whole, tmp_path: Path):
    expected = json.loads((whole["ms3"] / "results.json").read_text())["scores"]
    assert run(folders, tmp_path / "workers", num_workers=1)["scores"] == expected
    batched = run(folders, tmp_path / "batch", batch_size=3)["scores"]
    assert batched["M_J"] == pytest.approx(expected["M_J"], abs=1e-3)
    assert batched["M_F"] == pytest.approx(expected["M_F"], abs=1e-3)


def test_ablations_take_something_away(folders: Path, whole, tmp_path: Path):
    full = json.loads((whole["ms3"] / "results.json").read_text())["scores"]
    silent = run(folders, tmp_path / "silent", silence_audio=True)["scores"]
    blank = run(folders, tmp_path / "blank", blank_maskige=True)["scores"]
    other = run(folders, tmp_path / "other", other_audio=True)["scores"]
    assert silent["M_J"] < full["M_J"] and blank["M_J"] != full["M_J"]
    assert other["M_J"] < full["M_J"] and other["M_J"] != silent["M_J"]
    assert run(folders, tmp_path / "two", limit=2)["scores"]["num_videos"] == 2


@pytest.mark.parametrize(
    ("categories", "partners"),
    [
        (["", ""], [1, 0]),
        (["a", "b", "a", "b"], [3, 0, 1, 2]),  # not half way, where it is the same
        (["a,b", "b", "c", "d"], [2, 3, 0, 1]),
        (["a", "a", "a"], [1, 2, 0]),
    ],
)
def test_borrowed_sounds_are_of_another_category_where_there_is_one(categories, partners):
    assert other_clips(categories) == partners


@pytest.mark.parametrize(
    ("options", "words"),
    [({"silence_audio": True, "other_audio": True}, "exclude"), ({"other_audio": True, "limit": 1}, "two")],
)
def test_impossible_ablations(folders: Path, tmp_path: Path, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        run(folders, tmp_path, **options)


def test_classes_of_sounding_or_not_data_are_scored_on_request(folders: Path, tmp_path: Path):
    results = run(folders, tmp_path, "avss", scores="object")
    assert set(results["scores"]) == {"M_J", "M_F", "num_videos", "num_frames"}


def tiny(folder: Path, **config) -> Path:
    torch.manual_seed(0)
    small = {"image_size": 64, "num_queries": 6, **config}
    ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny", **small)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "config", "options", "error", "message"),
    [
        ("avss", {}, {}, ValueError, "tells only 'background' from"),
        ("avss", {"id2label": {i: f"colour {i}" for i in range(9)}}, {}, ValueError, "9 classes .* are not those"),
        ("avss", {"id2label": {0: "background", 1: "bell", 2: "drum"}}, {}, ValueError, "clip synthetic_avss"),
        ("ms3", {}, {"split": "train"}, ValueError, "train"),
        ("ms3", {}, {"subset": "s4"}, ValueError, "s4"),
        ("nosuch", {}, {}, FileNotFoundError, "nosuch"),
    ],
)
def test_what_does_not_fit(folders: Path, tmp_path: Path, kind, config, options, error, message: str):
    model = tiny(tmp_path / "model", **config)
    with pytest.raises(error, match=message):
        run(folders, tmp_path / "out", kind, model, **options)


def test_model_without_processor_and_without_maskige(folders: Path, tmp_path: Path):
    for name, config in (("plain", {}), ("without", {"use_maskige": False})):
        results = run(folders, tmp_path / f"out-{name}", model=tiny(tmp_path / name, **config), limit=1)
        assert 0 <= results["scores"]["M_J"] <= 1 and results["settings"]["image_size"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"num_workers": -1}, "num_workers"),
        ({"sheet": -1}, "sheet"),
        ({"protocol": "coco"}, "protocol"),
        ({"scores": "both"}, "scores"),
    ],
)
def test_impossible_options(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**options)


def test_folder_of_others_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "settings.json").write_text("{")
    for name, message in (("mine", "no evaluation"), ("file", "is a file"), ("damaged", "is damaged")):
        with pytest.raises(FileExistsError, match=message):
            check_settings(tmp_path / name, {})
    write_settings(tmp_path / "new", {"model": "a", "weights": "x"})
    assert check_settings(tmp_path / "new", {"model": "moved", "weights": "x"})
    with pytest.raises(FileExistsError, match="weights was 'x', is 'y'"):
        check_settings(tmp_path / "new", {"model": "a", "weights": "y"})


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([], []),
        ([b'{"video_id": "a"}\n'], ["a"]),
        ([b'{"video_id": "a"}\n{"video_id": "b"}'], ["a"]),  # complete, but its end of line is not there
        ([b'{"video_id": "a"}\n{"vid'], ["a"]),
        ([b"\n", b'"text"\n[]\n{}\n\xff\n{"video_id": "b"}\n'], ["b"]),
        ([b'{"video_id": "b"}\n', b'{"video_id": "a"}\n{"video_id": "b"}\n{"video_id": "other"}\n'], ["a", "b"]),
        ([b'{"video_id": "\xe5\xa3\xb0"}\n'], ["声"]),
    ],
)
def test_only_complete_lines_count(tmp_path: Path, parts: list[bytes], names: list[str]):
    for rank, part in enumerate(parts):
        part_file(tmp_path, rank).write_bytes(part)
    order = ["a", "b", "声"]
    assert list(collect_lines(tmp_path, order)) == names
    assert {path.name for path in tmp_path.iterdir()} == {"per_video.jsonl"}
    assert list(read_lines(tmp_path)) == names


def test_lost_lines_are_noticed(folders: Path, whole, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evaluation_run, "_evaluate_rest", lambda *arguments: None)
    with pytest.raises(ValueError, match="4 videos have no line"):
        run(folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("semantic", "pixels", "words"),
    [
        (True, [0, 2, 1, 1, 1, 0], "owl, cat"),
        (True, [0, 0], "nothing"),
        (False, [1, 0], "something"),
        (False, [0], "nothing"),
    ],
)
def test_the_sheet_says_what_was_predicted(semantic: bool, pixels: list[int], words: str):
    evaluation = SimpleNamespace(semantic=semantic, labels=["background", "owl", "cat"])
    assert evaluation_report.predicted_names(evaluation, torch.tensor(pixels).numpy()) == words


def test_frames_of_a_long_video_are_those_where_most_is_to_be_seen():
    areas = [0, 5, 0, 9, 1, 1, 1, 1, 7, 0]
    assert evaluation_report._chosen_frames(torch.tensor(areas).numpy()).tolist() == [1, 3, 4, 5, 8]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileExistsError("other settings"), FileExistsError, "^other settings$"),
        (OSError(28, "No space left on device", "a.json"), OSError, "No space left on device: 'a.json'"),
        (MediaError("no sound"), ValueError, "^no sound$"),  # a kind that is not Python's own
        (RuntimeError("Connection closed by peer"), ChildProcessError, "closed by peer; run the same command again"),
    ],
)
def test_how_errors_of_other_processes_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error, kind, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(processes, "evaluate_dataset", fail)
    monkeypatch.setattr(processes, "run_tasks", lambda work, tasks, count: map(work, tasks))
    monkeypatch.setattr(processes.os, "environ", {"OMP_NUM_THREADS": "1"})
    with pytest.raises(kind, match=message) as caught:
        processes.evaluate_in_processes(2, "model", "data", tmp_path)
    assert type(caught.value).__module__ == "builtins"


def test_processes_need_a_number():
    with pytest.raises(ValueError, match="at least one process"):
        processes.evaluate_in_processes(0, "model", "data", "output")

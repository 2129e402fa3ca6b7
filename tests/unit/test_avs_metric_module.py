"""The `evaluate` module: loaded as users load it, the same numbers as the functional metrics, several processes."""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from combo_hf import metrics
from combo_hf.metrics import VideoScores


FOLDER = Path(metrics.__file__).parent / "avs_segmentation"
LABELS = 6


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory):
    """`evaluate.load` of the module, with its caches in a temporary folder."""
    evaluate = pytest.importorskip("evaluate")
    caches = tmp_path_factory.mktemp("evaluate")
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(caches / "modules"))
        patch.setattr(sys, "path", list(sys.path))

        def load(*args, **kwargs):
            # a folder for each: file locks are held as long as an object lives
            return evaluate.load(str(FOLDER), *args, cache_dir=str(caches / str(next(numbers))), **kwargs)

        yield load


def videos(kind: str, count: int = 5) -> tuple[list, list, list[str]]:
    rng = np.random.default_rng(0)
    predictions, references = [], []
    for index in range(count):
        shape = (1 + index % 3, 12, 10)
        target = rng.integers(0, LABELS, shape)
        target[0, 0, 0] = 255 if kind == "avss" else 0
        predictions.append(rng.integers(0, LABELS, shape) if kind == "avss" else rng.random(shape, dtype=np.float32))
        references.append(target if kind == "avss" else target > 3)
    return predictions, references, [f"video {index}" for index in range(count)]


def expected(kind: str, protocol: str = "avsbench") -> dict:
    scores = VideoScores(LABELS, protocol) if kind == "avss" else VideoScores()
    for prediction, reference, name in zip(*videos(kind), strict=True):
        scores.update(name, prediction, reference)
    return scores.compute()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("s4", {}),
        ("ms3", {}),
        ("avss", {"num_labels": LABELS}),
        ("avss", {"num_labels": LABELS, "protocol": "dataset"}),
    ],
)
def test_every_way_of_adding_gives_the_functional_numbers(load, kind: str, options: dict):
    predictions, references, names = videos(kind)
    wanted = expected(kind, options.get("protocol", "avsbench"))
    at_once = load(kind)
    assert at_once.compute(predictions=predictions, references=references, **options) == wanted
    assert at_once.compute(predictions=predictions[::-1], references=references[::-1], **options) == wanted  # again
    one_by_one = load(subset=kind)
    for prediction, reference, name in zip(predictions, references, names, strict=True):
        one_by_one.add(prediction=torch.from_numpy(prediction), reference=reference.tolist(), video_id=name)
    one_by_one.add(prediction=predictions[2], reference=references[2], video_id=names[2])  # a repeat
    assert one_by_one.compute(**options) == wanted
    batches = load()
    batches.add_batch(predictions=predictions[3:], references=references[3:], video_ids=names[3:], subset=kind)
    batches.add_batch(predictions=[], references=[])
    batches.add_batch(predictions=predictions[:3], references=references[:3], video_ids=names[:3])
    assert batches.compute(subset=kind, **options) == wanted


def test_kind_follows_from_what_is_added(load):
    predictions, references, names = videos("avss")
    scores = [np.eye(LABELS)[prediction].transpose(0, 3, 1, 2) for prediction in predictions]  # (T, K, H, W)
    metric = load()
    assert metric.compute(predictions=scores, references=references, num_labels=LABELS) == expected("avss")
    assert load().compute(predictions=predictions, references=references)["per_class_iou"][LABELS:] == [None] * 65
    predictions, references, names = videos("s4")
    result = load().compute(predictions=predictions, references=references, video_ids=names, per_video=True)
    assert result["per_video"][names[1]] == {
        "M_J": metrics.jaccard(predictions[1], references[1]),
        "M_F": metrics.f_measure(predictions[1], references[1]),
    }


def test_module_keeps_no_pictures_and_says_what_it_is(load):
    metric = load("ms3")
    predictions, references, _ = videos("ms3")
    metric.add_batch(predictions=predictions, references=references)
    assert not {"predictions", "references"} & set(metric.features) and "M_J" in metric.description
    for text in ("predictions", "references", "protocol", "miou_nobg_upstream"):
        assert text in metric.inputs_description
    assert metric.compute() == expected("ms3")


OBJECT, SEMANTIC = videos("s4", 1)[:2], videos("avss", 1)[:2]


@pytest.mark.parametrize(
    ("arguments", "call", "message"),
    [
        (("coco",), lambda m: None, "subset: wanted one of"),
        ((), lambda m: m.compute(), "no videos"),
        (("s4",), lambda m: m.compute(subset="avss"), "load the module again"),
        ((), lambda m: m.compute(subset="avs"), "wanted one of"),
        ((), lambda m: m.add_batch(predictions=[]), "predictions and references"),
        ((), lambda m: m.add(prediction=OBJECT[0][0]), "a prediction and a reference"),
        ((), lambda m: m.add_batch(predictions=OBJECT[0] * 2, references=OBJECT[1]), r"differ in number: \[2, 1, 2\]"),
        (("s4",), lambda m: m.add_batch(predictions=SEMANTIC[0], references=OBJECT[1]), "video 0/0: .*wanted floats"),
        (("s4",), lambda m: m.add(prediction=OBJECT[0][0] * 2, reference=OBJECT[1][0], video_id="a"), "a: .*softmax"),
        (("avss",), lambda m: m.add(prediction=OBJECT[0][0], reference=SEMANTIC[1][0]), "integer class ids"),
        (("s4",), lambda m: m.compute(predictions=OBJECT[0], references=OBJECT[1], protocol="coco"), "protocol"),
        ((), lambda m: (m.add_batch(predictions=OBJECT[0], references=OBJECT[1]),
                        m.add_batch(predictions=SEMANTIC[0], references=SEMANTIC[1])), "score them apart"),
        ((), lambda m: m.compute(predictions=SEMANTIC[0], references=SEMANTIC[1], num_labels=3), "does not exist"),
    ],
)  # fmt: skip
def test_impossible_calls(load, arguments: tuple, call, message: str):
    with pytest.raises(ValueError, match=message):
        call(load(*arguments))


def test_a_refused_call_leaves_what_was_added(load):
    predictions, references, names = videos("s4")
    metric = load("s4")
    metric.add_batch(predictions=predictions[:4], references=references[:4], video_ids=names[:4])
    with pytest.raises(ValueError, match="video x"):
        metric.add(prediction=predictions[0] + 1, reference=references[0], video_id="x")
    with pytest.raises(ValueError, match="protocol"):
        metric.compute(protocol="coco")
    metric.add(prediction=predictions[4], reference=references[4], video_id=names[4])
    assert metric.compute() == expected("s4")


WORKER = """
import json, sys
sys.modules["combo_hf"] = None  # the module must do without this package
import evaluate
import numpy as np
folder, cache, rank, data = sys.argv[1], sys.argv[2], int(sys.argv[3]), np.load(sys.argv[4], allow_pickle=False)
metric = evaluate.load(folder, "ms3", num_process=2, process_id=rank, experiment_id="run-1", cache_dir=cache)
for index in list(range(rank, 5, 2)) + [0]:  # video 0 twice, as a sampler pads
    metric.add(prediction=data[f"p{index}"], reference=data[f"r{index}"], video_id=f"video {index}")
print(json.dumps(metric.compute()))
"""


@pytest.mark.slow
def test_two_processes_of_evaluate_without_this_package_installed(tmp_path: Path):
    folder = tmp_path / "avs_segmentation"
    shutil.copytree(FOLDER, folder)
    predictions, references, _ = videos("ms3")
    arrays = {f"p{i}": array for i, array in enumerate(predictions)} | {f"r{i}": a for i, a in enumerate(references)}
    np.savez(tmp_path / "data.npz", **arrays)
    environment = dict(os.environ) | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_EVALUATE_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    workers = []
    for rank in range(2):
        arguments = [str(folder), str(tmp_path / "cache"), str(rank), str(tmp_path / "data.npz")]
        command = [sys.executable, "-c", WORKER, *arguments]
        workers.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
    outputs = [worker.communicate(timeout=300)[0].splitlines()[-1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert json.loads(outputs[0]) == expected("ms3") and json.loads(outputs[1]) is None


def test_readme_is_a_card_with_the_call():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\ntitle:") and 'evaluate.load("combo_hf/metrics/avs_segmentation"' in text


def test_the_folder_is_a_space():
    """What the Hub asks of a Space: a header with sdk and app_file, that file, requirements; and its one function."""
    header = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert header["sdk"] == "gradio" and (FOLDER / header["app_file"]).is_file() and header["license"] == "apache-2.0"
    needed = (FOLDER / "requirements.txt").read_text().split()
    assert {name.split(">")[0] for name in needed} == {"evaluate", "datasets", "numpy"}
    own = {*importlib.metadata.requires("combo-hf")}
    assert all(any(name.split(">")[0] in entry for entry in own) for name in needed)


def test_the_page_of_the_space(load, monkeypatch):
    gradio = pytest.importorskip("gradio")
    spec = importlib.util.spec_from_file_location("avs_app", FOLDER / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    monkeypatch.setattr(app, "load", lambda folder, subset: load(subset))
    left = np.zeros((8, 8), np.uint8)
    left[:, :4] = 255
    assert app.score(left, left)["M_J"] == pytest.approx(1, abs=1e-6)
    assert app.score(255 - left, left)["M_J"] == pytest.approx(0, abs=1e-6)
    for wrong in ((None, left), (left[:4], left)):
        with pytest.raises(gradio.Error):
            app.score(*wrong)

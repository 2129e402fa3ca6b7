"""Scores of whole data sets: against the definitions written out slowly, and to the bit in any order and cut."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from combo_hf.metrics import PROTOCOLS, SemanticScores, VideoScores, f_measure, jaccard
from combo_hf.metrics.avs_segmentation import video_records


LABELS = 4
THRESHOLDS = torch.linspace(0, 1 - 1e-10, 255).numpy()
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
LEVELS = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0, *THRESHOLDS[[1, 100, 143, 254]].tolist()]), st.floats(0, 1, width=32)
)


@st.composite
def object_videos(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    return draw(hnp.arrays(np.float32, shape, elements=LEVELS)), draw(hnp.arrays(bool, shape))


@st.composite
def semantic_videos(draw) -> list[tuple[np.ndarray, np.ndarray]]:
    videos = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(SHAPES)
        prediction = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, LABELS - 1)))
        target = draw(hnp.arrays(np.int64, shape, elements=st.sampled_from([*range(LABELS), 255])))
        videos.append((prediction, target))
    return videos


def f_of(precision: float, recall: float) -> float:
    return 1.3 * precision * recall / (0.3 * precision + recall) if precision + recall > 0 else 0.0


def slow_jaccard(scores: np.ndarray, target: np.ndarray) -> float:
    values = []
    for p, g in zip(scores > 0.5, target, strict=True):
        values.append((p & g).sum() / (p | g).sum() if g.any() else (~p).sum() / p.size)
    return sum(values) / len(values)


def slow_f_measure(scores: np.ndarray, target: np.ndarray) -> float:
    curves = []
    for p, g in zip(scores, target, strict=True):
        if g.any():
            passed = [p >= threshold for threshold in THRESHOLDS]
            curves.append([f_of((q & g).sum() / max(1, q.sum()), (q & g).sum() / g.sum()) for q in passed])
    return float(np.mean(curves, axis=0).max()) if curves else 0.0


def slow_semantic(videos: list[tuple[np.ndarray, np.ndarray]], protocol: str) -> tuple[list, list]:
    """IoU and F per class; `None` for a class that never occurs."""
    frames = [pair for prediction, target in videos for pair in zip(prediction, target, strict=True)]
    if protocol == "dataset":
        valid = [target != 255 for _, target in frames]
        frames = [
            tuple(
                np.concatenate([frame[side][keep] for frame, keep in zip(frames, valid, strict=True)])
                for side in (0, 1)
            )
        ]
    ious, f_scores = [], []
    for label in range(LABELS):
        values = []
        for prediction, target in frames:
            p, g = prediction == label, target == label
            both, either = (p & g).sum(), (p | g).sum()
            if either:
                values.append((both / either, f_of(both / max(1, p.sum()), both / max(1, g.sum()))))
        ious.append(float(np.mean([value[0] for value in values])) if values else None)
        f_scores.append(float(np.mean([value[1] for value in values])) if values else None)
    return ious, f_scores


def test_thresholds_are_those_of_torch_to_the_bit():
    assert np.array_equal(video_records.thresholds(), THRESHOLDS) and video_records.thresholds().dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(object_videos())
def test_object_scores_follow_the_definitions(video):
    scores, target = video
    assert jaccard(scores, target) == pytest.approx(slow_jaccard(scores, target), abs=1e-6)
    assert f_measure(scores, target) == pytest.approx(slow_f_measure(scores, target), abs=1e-9)
    numpy_only = video_records.object_record("a", scores, target)
    assert VideoScores().update("a", torch.from_numpy(scores), target) == numpy_only
    assert (numpy_only["M_J"], numpy_only["M_F"]) == (jaccard(scores, target), f_measure(scores, target))


@settings(max_examples=60, deadline=None)
@given(semantic_videos(), st.sampled_from(PROTOCOLS))
def test_semantic_scores_follow_the_definitions(videos, protocol: str):
    scores = VideoScores(LABELS, protocol)
    for index, (prediction, target) in enumerate(videos):
        record = scores.update(f"v{index}", prediction, torch.from_numpy(target))
        assert record == video_records.semantic_record(f"v{index}", prediction, target, LABELS)
    result, (ious, f_scores) = scores.compute(), slow_semantic(videos, protocol)
    assert result["per_class_iou"] == [value if value is None else pytest.approx(value, abs=1e-9) for value in ious]
    expected = [value if value is None else pytest.approx(value, abs=1e-9) for value in f_scores]
    assert result["per_class_fscore"] == expected
    filled = [value or 0.0 for value in ious]
    present = [value for value in ious if value is not None]
    assert result["miou"] == pytest.approx(np.mean(filled), abs=1e-9)
    assert result["miou_present"] == pytest.approx(np.mean(present) if present else 0.0, abs=1e-9)
    assert result["miou_nobg"] == pytest.approx(np.mean(filled[1:]), abs=1e-9)
    assert result["miou_nobg_upstream"] == pytest.approx(np.mean(filled[:-1]), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(semantic_videos(), st.sampled_from(PROTOCOLS), st.randoms(use_true_random=False))
def test_frames_in_any_order_and_cut_give_the_same_bits(videos, protocol: str, shuffler: random.Random):
    whole = SemanticScores(LABELS, protocol)
    frames = []
    for prediction, target in videos:
        whole.update(prediction, target)
        frames += [(prediction[t : t + 1], target[t : t + 1]) for t in range(len(target))]
    shuffler.shuffle(frames)
    parts = [SemanticScores(LABELS, protocol) for _ in range(3)]
    for frame in frames:
        shuffler.choice(parts).update(*frame)
    merged = SemanticScores(LABELS, protocol)
    for part in shuffler.sample(parts, 3):
        carried = json.loads(json.dumps(part.state_dict()))
        merged.merge(SemanticScores(LABELS, protocol).load_state_dict(carried))
    assert merged.compute() == whole.compute() and torch.equal(merged.sums, whole.sums)


def many(kind: str, count: int = 12) -> list[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    videos = []
    for index in range(count):
        shape = (1 + index % 3, 7, 9)
        target = rng.integers(0, LABELS, shape)
        if kind == "object":
            videos.append((f"v{index}", rng.random(shape, dtype=np.float32), target > 1))
        else:
            videos.append((f"v{index}", rng.integers(0, LABELS, shape), target))
    return videos


def empty(kind: str) -> VideoScores:
    return VideoScores() if kind == "object" else VideoScores(LABELS)


@pytest.mark.parametrize("kind", ["object", "semantic"])
def test_parts_that_overlap_merge_to_the_bits_of_one_process_in_any_order(kind: str):
    videos, whole, shuffler = many(kind), empty(kind), random.Random(0)
    for video in videos:
        whole.update(*video)
    for _ in range(20):
        parts = [empty(kind) for _ in range(3)]
        repeats = shuffler.sample(videos, 4)  # what a sampler does to fill up
        for video in shuffler.sample(videos, len(videos)) + repeats:
            shuffler.choice(parts).update(*video)
        merged = empty(kind).load_state_dict(json.loads(json.dumps(parts[0].state_dict())))
        for part in parts[1:]:
            merged.merge(part)
        assert merged.compute() == whole.compute() and len(merged) == len(videos)
        assert merged.records == whole.records


def test_a_repeat_that_differs_in_the_last_bits_counts_once_whichever_comes_first():
    scores = np.full((1, 2, 2), 0.9, np.float32)
    target = np.array([[[1, 1], [0, 0]]])
    close = scores.copy()
    close[0, 1, 1] = 0.1
    results = []
    for order in ((scores, close), (close, scores)):
        both = VideoScores()
        for prediction in order:
            both.update("a", prediction, target)
        results.append(both.compute())
    assert results[0] == results[1] and results[0]["num_videos"] == 1


STRANGE = {"video_id": "a", "num_frames": 1, "areas": [[0, 9, 1, 1, 1, 1]]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: VideoScores(1), "2 to 255"),
        (lambda s: VideoScores(3, "coco"), "avsbench"),
        (lambda s: VideoScores().compute(), "no videos"),
        (lambda s: s.update("v0", *many("object")[1][1:]), "both called 'v0'"),
        (lambda s: s.update("x", *many("semantic")[0][1:]), "floats"),
        (lambda s: s.merge(VideoScores(3)), "cannot merge"),
        (lambda s: s.load_state_dict({"num_labels": None, "protocol": "dataset", "records": []}), "cannot merge"),
        (lambda s: VideoScores(2).update("x", *many("semantic")[0][1:]), "do not exist"),
        (lambda s: SemanticScores(3).load_state_dict(SemanticScores(4).state_dict()), "4 labels"),
        (lambda s: video_records.object_scores([]), "at least one video"),
        (lambda s: video_records.semantic_scores(s.records, 3), "label map for every"),
        (lambda s: video_records.semantic_scores([STRANGE], 3), "class id 9"),
    ],
)
def test_what_cannot_be_scored(call, message: str):
    scores = VideoScores()
    for video in many("object"):
        scores.update(*video)
    before = scores.compute()
    with pytest.raises(ValueError, match=message):
        call(scores)
    assert scores.compute() == before


WORKER = """
import json, os, sys
import torch
sys.path.insert(0, sys.argv[1])
from test_video_scores import empty, many
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
for kind in ("object", "semantic"):
    scores, videos = empty(kind), many(kind)
    for video in videos[rank::2] + videos[:1]:
        scores.update(*video)
    print(json.dumps(scores.gather().compute()))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_gloo_processes_give_the_bits_of_one(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).resolve().parents[2]
    workers = []
    for rank in range(2):
        settings = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": root}
        environment = dict(os.environ) | {name: str(value) for name, value in settings.items()}
        command = [sys.executable, "-c", WORKER, str(Path(__file__).parent)]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [worker.communicate(timeout=300)[0].splitlines()[-2:] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    for line, kind in enumerate(("object", "semantic")):
        whole = empty(kind)
        for video in many(kind):
            whole.update(*video)
        assert [json.loads(output[line]) for output in outputs] == [whole.compute()] * 2

"""Our metrics against numbers recorded from the official evaluators.

tests/fixtures/metrics.npz is a part of the goldens in shared: two S4 videos (one of them without any sounding frame)
after the softmax, and one AVSS video; so this runs anywhere.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import Goldens
from tolerances import allowed

from combo_hf.metrics import SemanticScores, f_measure, jaccard


OURS = Path(__file__).resolve().parents[1] / "fixtures" / "metrics.npz"
ATOL = allowed("metric")
SUMS = ("iou_sum", "fscore_sum", "cls_count")


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def per_frame(metric, scores, target) -> list[float]:
    return [metric(scores[t : t + 1], target[t : t + 1]) for t in range(len(scores))]


@pytest.mark.parametrize("video", ["v1", "v2"])
def test_m_j_and_m_f_of_the_bundled_part(video: str):
    arrays = load(OURS)
    scores, target = arrays[f"s4/{video}/scores"], np.unpackbits(arrays[f"s4/{video}/gt"], axis=-1)
    values, frames = arrays[f"s4/{video}/values"], arrays[f"s4/{video}/per_frame"]
    assert [jaccard(scores, target), f_measure(scores, target)] == pytest.approx(values.tolist(), abs=ATOL)
    assert per_frame(jaccard, scores, target) == pytest.approx(frames[0].tolist(), abs=ATOL)
    assert per_frame(f_measure, scores, target) == pytest.approx(frames[1].tolist(), abs=ATOL)


def test_class_sums_of_the_bundled_part():
    arrays = load(OURS)
    scores = SemanticScores(71).update(arrays["ss/v1/pred_argmax"], arrays["ss/v1/gt"])
    for ours, name in zip(scores.sums, SUMS, strict=True):
        np.testing.assert_allclose(ours.numpy(), arrays[f"ss/v1/{name}"], rtol=0, atol=ATOL)


def test_all_object_goldens(goldens: Goldens):
    arrays, values = goldens.arrays("combo/metrics.npz"), goldens.values("combo/metrics.json")
    measured = []
    for video in ("v0", "v1", "v2", "v3", "v4"):
        scores = torch.from_numpy(arrays[f"s4/{video}/sem_seg"]).softmax(1)[:, 1]
        target, wanted = arrays[f"s4/{video}/gt"], values[f"s4/{video}"]
        measured.append((jaccard(scores, target), f_measure(scores, target)))
        assert measured[-1] == pytest.approx((wanted["mask_iou"], wanted["f_measure"]), abs=ATOL)
        assert per_frame(jaccard, scores, target) == pytest.approx(wanted["per_frame_iou"], abs=ATOL)
        assert per_frame(f_measure, scores, target) == pytest.approx(wanted["per_frame_f"], abs=ATOL)
    printed = values["s4/evaluate"]
    assert np.mean(measured, axis=0).round(4).tolist() == [printed["mIoU"], printed["f_score"]]


def test_all_semantic_goldens(goldens: Goldens):
    arrays, values = goldens.arrays("combo/metrics.npz"), goldens.values("combo/metrics.json")
    scores = SemanticScores(71)
    for video in ("v0", "v1", "v2"):
        one = SemanticScores(71).update(arrays[f"ss/{video}/pred_argmax"], arrays[f"ss/{video}/gt"])
        for ours, name in zip(one.sums, SUMS, strict=True):
            np.testing.assert_allclose(ours.numpy(), arrays[f"ss/{video}/{name}"], rtol=0, atol=ATOL)
        scores.merge(one)
    result, wanted = scores.compute(), values["ss/unrounded"]
    ours = [result[name] for name in ("miou", "fscore", "miou_nobg_upstream", "fscore_nobg_upstream")]
    official = [wanted[name] for name in ("mIoU", "f_score", "mIoU_noBg_as_coded", "f_noBg_as_coded")]
    assert ours == pytest.approx(official, abs=ATOL)


def test_values_do_not_depend_on_batches(goldens: Goldens):
    """A batch of two gives the release another M_F (the maximum of the mean curve); ours is a value of one video."""
    arrays, values = goldens.arrays("combo/metrics.npz"), goldens.values("combo/metrics.json")
    scores = [torch.from_numpy(arrays[f"s4/{video}/sem_seg"]).softmax(1)[:, 1] for video in ("v0", "v1")]
    targets = [torch.from_numpy(arrays[f"s4/{video}/gt"]) for video in ("v0", "v1")]
    together = f_measure(torch.cat(scores), torch.cat(targets))
    assert together == pytest.approx(values["s4/batch_of_v0_v1"]["f_measure"], abs=ATOL)
    alone = np.mean([f_measure(*video) for video in zip(scores, targets, strict=True)])
    assert alone == pytest.approx(np.mean([values[f"s4/{video}"]["f_measure"] for video in ("v0", "v1")]), abs=ATOL)
    assert abs(alone - together) > 100 * ATOL
    frames = [(arrays[f"ss/{video}/pred_argmax"], arrays[f"ss/{video}/gt"]) for video in ("v0", "v1", "v2")]
    cuts = {"videos": SemanticScores(71), "frames": SemanticScores(71), "backwards": SemanticScores(71)}
    for prediction, target in frames:
        cuts["videos"].update(prediction, target)
        for index in range(len(target)):
            cuts["frames"].update(prediction[index : index + 1], target[index : index + 1])
    for prediction, target in reversed(frames):
        cuts["backwards"].update(prediction[::-1].copy(), target[::-1].copy())
    for cut in cuts.values():
        torch.testing.assert_close(cut.sums, cuts["videos"].sums, rtol=1e-12, atol=0)
        assert cut.compute()["miou"] == pytest.approx(cuts["videos"].compute()["miou"], abs=1e-12)

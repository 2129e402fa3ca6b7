"""The training loop on a tiny model: files it leaves, exact resume, what stops it, and evaluation."""

from pathlib import Path

import pytest
import torch
from fixtures_training import SMALL, clips, recipe, records, small_model

from combo_hf.configuration_combo import ComboConfig
from combo_hf.evaluation.scores import class_maps_of, iter_class_maps, sounding_scores
from combo_hf.files.environment import useful_workers
from combo_hf.image_processing_combo import ComboImageProcessor
from combo_hf.metrics import jaccard
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.training import ModelRecipe, TrainingRecipe, build_model, evaluate_model, train
from combo_hf.training.optimizer import poly_factor
from combo_hf.training.reporting import Reporter
from combo_hf.training.run_folder import RunFolder
from combo_hf.training.state import newest_state


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ComboForAudioVisualSegmentation.from_pretrained(folder).state_dict()


def test_run_leaves_checkpoints_and_a_log_and_resumes_exactly(tmp_path: Path):
    data, validation = clips(6), clips(3)
    whole = train(build_model(ModelRecipe(overrides=SMALL)), data, recipe(), tmp_path / "whole", validation)
    assert (whole.step, whole.stopped_by) == (4, "max_steps")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {"recipe.yaml", "metrics.jsonl", "best", "last", "state"}
    assert TrainingRecipe.from_yaml(tmp_path / "whole" / "recipe.yaml") == recipe()
    log = records(tmp_path / "whole")
    assert [record["step"] for record in log] == [1, 2, 2, 3, 4, 4] and log[0]["learning_rate"] == 1e-3
    scores = [record["validation"]["M_J"] for record in log if "validation" in record]
    assert whole.best == max(scores) and whole.validation["M_J"] == scores[-1]
    total = log[0]["loss_class"] + log[0]["loss_mask"] + log[0]["loss_dice"] + log[0]["loss_consistency"]
    assert log[0]["loss"] == pytest.approx(total, rel=1e-5)

    # The same run, broken off after 3 steps (in the midst of an epoch) with one evaluation done: 2 steps are kept.
    broken = build_model(ModelRecipe(overrides=SMALL))
    forward, calls = broken.forward, []

    def breaking_forward(*args, **kwargs):
        calls.append(kwargs.get("mask_labels") is not None)
        if sum(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    broken.forward = breaking_forward
    with pytest.raises(KeyboardInterrupt):
        train(broken, data, recipe(), tmp_path / "parts", validation)
    assert [record["step"] for record in records(tmp_path / "parts")] == [1, 2, 2, 3]
    other_weights = build_model(ModelRecipe(overrides=SMALL), seed=9)
    resumed = train(other_weights, data, recipe(), tmp_path / "parts", validation, resume=True)
    assert records(tmp_path / "parts") == log and resumed == whole
    for name in ("best", "last"):
        ours, theirs = weights(tmp_path / "parts" / name), weights(tmp_path / "whole" / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_training_lowers_the_loss_on_two_clips(tmp_path: Path):
    quiet = recipe(max_steps=24, eval_every=100, flip=0.0, jitter=0.0, max_grad_norm=1.0, backbone_scale=1.0)
    result = train(build_model(ModelRecipe(overrides=SMALL)), clips(2), quiet, tmp_path / "run")
    log = records(tmp_path / "run")
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert result.best is None and not (tmp_path / "run" / "best").exists()


def test_time_limit_ends_the_run_in_good_order(tmp_path: Path):
    result = train(build_model(ModelRecipe(overrides=SMALL)), clips(2), recipe(time_limit_s=1e-6), tmp_path / "run")
    assert (result.step, result.stopped_by) == (1, "time_limit") and (tmp_path / "run" / "last").is_dir()


def test_loss_that_is_not_finite_names_the_clips(tmp_path: Path):
    model = build_model(ModelRecipe(overrides=SMALL))
    with torch.no_grad():
        next(model.model.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"loss of step 0 is nan .*clips: clip[01], clip[01]"):
        train(model, clips(2), recipe(), tmp_path / "run")


@pytest.mark.parametrize("resume", [False, True])
def test_run_that_failed_before_its_first_checkpoint_begins_anew_with_a_changed_recipe(tmp_path: Path, resume: bool):
    broken = small_model()
    with torch.no_grad():
        next(broken.model.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        train(broken, clips(2), recipe(seed=1), tmp_path / "run")
    changed = recipe(seed=2, max_steps=1)
    assert train(small_model(), clips(2), changed, tmp_path / "run", resume=resume).step == 1
    assert TrainingRecipe.from_yaml(tmp_path / "run" / "recipe.yaml") == changed
    train(small_model(), clips(2), changed, tmp_path / "other")
    assert records(tmp_path / "run") == records(tmp_path / "other")
    with pytest.raises(FileExistsError, match="holds a run"):  # now there is something to lose
        train(small_model(), clips(2), recipe(seed=3), tmp_path / "run")
    with pytest.raises(ValueError, match="another recipe: seed: 2, 3"):
        train(small_model(), clips(2), recipe(seed=3, max_steps=1), tmp_path / "run", resume=True)


@pytest.mark.parametrize(("wanted", "used"), [(0, 0), (2, 2), (9, 2)])
def test_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch, capsys, wanted: int, used: int):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert useful_workers(wanted) == used
    torch.utils.data.DataLoader([1], num_workers=useful_workers(wanted))  # torch would warn of more
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([] if used == wanted else ["num_workers: 9 wanted, 2 used, as many as there are cores here"] * 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda out: train(None, None, recipe(), out, resume=True), FileNotFoundError, "nothing to resume"),
        (lambda out: train(None, None, recipe(), out / "old"), FileExistsError, "holds a run"),
        (lambda out: build_model(ModelRecipe(overrides={"colour": 1})), ValueError, "no field 'colour'"),
        (
            lambda out: train(small_model(), clips(2), recipe(best_metric="miou"), out, clips(2)),
            ValueError,
            "two classes",
        ),
    ],
)
def test_impossible_runs(tmp_path: Path, call, error: type, message: str):
    (tmp_path / "old" / "state" / "step-00000001").mkdir(parents=True)
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_bfloat16_runs_on_the_cpu(tmp_path: Path):
    short = recipe(max_steps=2, mixed_precision="bf16")
    result = train(build_model(ModelRecipe(overrides=SMALL)), clips(2), short, tmp_path / "run")
    kinds = {value.dtype for value in weights(tmp_path / "run" / "last").values() if value.is_floating_point()}
    assert result.step == 2 and kinds == {torch.float32}


@pytest.mark.parametrize("labels", [2, 4])
def test_evaluation_follows_the_processor_and_not_the_batch(labels: int):
    torch.manual_seed(0)
    config = ComboConfig.from_preset("tiny", **SMALL, id2label={index: str(index) for index in range(labels)})
    model, data = ComboForAudioVisualSegmentation(config).train(), clips(3, labels)
    one, three = evaluate_model(model, data, batch_size=1), evaluate_model(model, data, batch_size=3)
    assert set(one) == set(three) and model.training
    for name in ("M_J", "M_F", *(["miou", "fscore"] if labels > 2 else [])):
        assert one[name] == pytest.approx(three[name], abs=2e-3), name
    overlaps = []
    for class_maps, target in iter_class_maps(model, data, 2):
        scores = sounding_scores(class_maps)
        assert torch.equal(scores > 0.5, class_maps.argmax(1) > 0)
        overlaps.append(jaccard(scores, target > 0))
    assert sum(overlaps) / 3 == pytest.approx(one["M_J"], abs=2e-3)


def test_class_maps_are_those_of_the_image_processor():
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 8, 8, generator=generator)
    maps = ComboImageProcessor(size=32).post_process_semantic_segmentation(
        {"class_queries_logits": classes, "masks_queries_logits": masks}, [2], return_scores=True
    )
    torch.testing.assert_close(class_maps_of(classes, masks), maps.scores[0])


def test_two_classes_score_as_in_the_release():
    maps = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(sounding_scores(maps), 1 - maps.softmax(1)[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": clips(1), "batch_size": 0}, "batch_size"),
        ({"dataset": clips(1), "binary": False}, "two classes"),
        ({"dataset": clips(1, masks=False)}, "annotated"),
    ],
)
def test_impossible_evaluations(arguments: dict, message: str):
    model = ComboForAudioVisualSegmentation(ComboConfig.from_preset("tiny", **SMALL))
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, **arguments)


def test_trackers_are_told(tmp_path: Path):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plan = recipe(trackers=["tensorboard"], max_steps=2)
    train(build_model(ModelRecipe(overrides=SMALL)), clips(2), plan, tmp_path / "run", clips(2))
    events = event_files.EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    log = records(tmp_path / "run")
    told = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert told["training/loss"] == pytest.approx([record["loss"] for record in log if "loss" in record])
    assert told["validation/M_J"] == pytest.approx([log[-1]["validation"]["M_J"]])
    assert {"training/loss_class", "training/loss_consistency", "training/learning_rate"} <= told.keys()


def test_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(ImportError, match="pip install tensorboard"):
        train(build_model(ModelRecipe(overrides=SMALL)), clips(2), recipe(trackers=["tensorboard"]), tmp_path / "run")


def test_only_the_same_run_is_resumed(tmp_path: Path):
    data, model = clips(4), build_model(ModelRecipe(overrides=SMALL))
    result = train(model, data, recipe(max_steps=2), tmp_path / "run", data)
    again = train(model, data, recipe(max_steps=2, progress=True), tmp_path / "run", data, resume=True)
    assert again == result and again.validation  # nothing was left to do
    with pytest.raises(ValueError, match="another recipe: weight_decay: 0.05, 0.1"):
        train(model, data, recipe(max_steps=2, weight_decay=0.1), tmp_path / "run", data, resume=True)
    with pytest.raises(ValueError, match="has done 2 steps, max_steps is 1"):
        train(model, data, recipe(max_steps=1), tmp_path / "run", data, resume=True)
    with pytest.raises(ValueError, match="begun with 2 clips a step, now there are 1 .*change one of the factors"):
        train(model, data, recipe(max_steps=2, clips_per_batch=1), tmp_path / "run", data, resume=True)
    with pytest.raises(ValueError, match="begun with 4 training clips, now there are 3"):
        train(model, clips(3), recipe(max_steps=2), tmp_path / "run", data, resume=True)


def test_a_run_that_has_ended_goes_on_with_more_steps(tmp_path: Path):
    """By the schedule of the new number from where it stands, and with the order of the rows of one run."""
    data = clips(5)
    train(small_model(), data, recipe(max_steps=3), tmp_path / "run", data)
    train(small_model(seed=1), data, recipe(max_steps=6), tmp_path / "run", data, resume=True)
    log = [record for record in records(tmp_path / "run") if "loss" in record]
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5, 6]
    rates = [record["learning_rate"] for record in log]
    wanted = [poly_factor(step, 3 if step < 3 else 6) for step in range(6)]
    assert rates == pytest.approx([1e-3 * factor for factor in wanted])
    assert TrainingRecipe.from_yaml(tmp_path / "run" / "recipe.yaml").max_steps == 6


@pytest.mark.parametrize("moment", ["log", "save_checkpoints", "save_state"])
def test_a_kill_in_the_last_evaluation_doubles_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    """The state of that step is there already; at the moment named the process is gone."""
    data, plan = clips(4), recipe(max_steps=3, eval_every=2, save_every=1)
    whole = train(small_model(), data, plan, tmp_path / "whole", data)
    place = Reporter if moment == "log" else RunFolder
    real = getattr(place, moment)

    def kill(self, *arguments):
        if moment == "log":
            real(self, *arguments)
        seen = [record["step"] for record in records(tmp_path / "run") if "validation" in record]
        if seen[-1:] == [3]:
            raise KeyboardInterrupt
        if moment != "log":
            real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, moment, kill)
        train(small_model(), data, plan, tmp_path / "run", data)
    assert newest_state(tmp_path / "run" / "state").name == "step-00000003"
    assert train(small_model(seed=1), data, plan, tmp_path / "run", data, resume=True) == whole
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_run_that_ended_before_its_first_state_starts_again(tmp_path: Path):
    (tmp_path / "run").mkdir()
    recipe(max_steps=1).save(tmp_path / "run" / "recipe.yaml")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"ste')
    result = train(
        build_model(ModelRecipe(overrides=SMALL)), clips(2), recipe(max_steps=1), tmp_path / "run", resume=True
    )
    assert result.step == 1 and [record["step"] for record in records(tmp_path / "run")] == [1]
    assert records(tmp_path / "run")[0]["loss"] != 3.0


def test_progress_is_quiet_off_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture):
    train(build_model(ModelRecipe(overrides=SMALL)), clips(2), recipe(max_steps=1, progress=True), tmp_path / "run")
    assert "step" not in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_on_a_gpu(tmp_path: Path, precision: str):
    plan = recipe(mixed_precision=precision, accumulation_steps=2, gradient_checkpointing=True, ema_decay=0.9)
    result = train(small_model(), clips(4), plan, tmp_path / "run", clips(2))
    assert result.step == 4 and all(record["loss"] > 0 for record in records(tmp_path / "run") if "loss" in record)
    again = train(small_model(), clips(4), plan, tmp_path / "run", clips(2), resume=True)
    assert again == result

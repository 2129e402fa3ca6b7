"""One optimizer step: the loss does not depend on how clips are dealt out, what memory costs, what stops it."""

import copy
from functools import partial

import pytest
import torch
from fixtures_training import PLAIN, clips, fix_points, losses, recipe, records, small_model

from combo_hf.configuration_combo import ComboConfig
from combo_hf.data.collate import ComboCollator
from combo_hf.loss_combo import LOSS_KINDS, ComboLoss, frame_distances, neighbours
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.training import average_weights, enable_gradient_checkpointing, train
from combo_hf.training.engine import memory_advice
from combo_hf.training.step import shared_divisors, sum_by_kind


class Processes:
    """Answers as if the other ones had these counts together."""

    device = torch.device("cpu")

    def __init__(self, number: int = 1, others: tuple[float, ...] = ()) -> None:
        self.num_processes, self.others = number, torch.tensor(others, dtype=torch.float64)

    def reduce(self, values: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return values + self.others


def test_counts_are_those_of_the_loss():
    batch = ComboCollator()([clips(3, frames=(2, 3, 6))[index] for index in range(3)])
    loss = ComboLoss(ComboConfig.from_preset("tiny", consistency_window=3, num_queries=20))
    weight, masks, again, pairs, frames = loss.counts(batch["class_labels"], batch["num_frames"].tolist()).values()
    assert frames == 11
    assert masks == again == sum(len(labels) for labels in batch["class_labels"]) == 2 * 2 + 3 * 2 + 2 + 5
    assert weight == pytest.approx(masks + 0.1 * (11 * 20 - masks))
    maps = torch.randn(11, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    distances = [
        1 - torch.cosine_similarity(maps[k].flatten(), maps[k + 1].flatten(), dim=0) for k in (0, 2, 3, 5, 6, 8, 9)
    ]
    mean = frame_distances(maps, neighbours([2, 3, 6], window=3), adaptive=False).mean()
    assert pairs == 7 and float(mean) == pytest.approx(float(sum(distances)) / 7, rel=1e-5)


# class weights, masks (twice), pairs and annotated frames of each batch of this process
@pytest.mark.parametrize(
    ("counts", "processes", "wanted"),
    [
        ([(2, 4, 4, 3, 5)], Processes(), (2, 4, 4, 3, 5)),
        ([(2, 0, 0, 0, 1)], Processes(), (2, 1, 1, 1, 1)),  # no mask, no pair: the terms are zero already
        ([(2, 4, 4, 3, 5), (4, 2, 2, 3, 2)], Processes(), (3, 3, 3, 3, 3.5)),
        ([(2, 4, 4, 3, 5)], Processes(2, (4, 2, 2, 6, 1)), (3, 3, 3, 4.5, 3)),
        ([(2, 1, 1, 0, 0), (2, 0, 0, 0, 0)], Processes(2, (4, 0, 0, 0, 0)), (2, 0.25, 0.25, 1, 1)),
    ],
)
def test_batches_divide_by_the_mean_count_of_all(counts, processes, wanted):
    given = iter(counts)

    class Criterion:
        def counts(self, class_labels, num_frames):
            return dict(zip(LOSS_KINDS, next(given), strict=True))

    batches = [{"class_labels": [], "num_frames": torch.tensor([1])}] * len(counts)
    assert shared_divisors(Criterion(), batches, processes) == dict(zip(LOSS_KINDS, wanted, strict=True))


def test_accumulated_batches_have_the_loss_and_gradient_of_one_big_batch(tmp_path, monkeypatch):
    # AdamW divides small gradients by their size, rounding included; with this eps it hardly does
    monkeypatch.setattr("torch.optim.AdamW", partial(torch.optim.AdamW, eps=1.0))
    data = clips(6, frames=(2, 5))
    for name, size, batches in (("big", 6, 1), ("small", 2, 3), ("single", 1, 6)):
        plan = recipe(
            PLAIN, clips_per_batch=size, accumulation_steps=batches, max_steps=3, eval_every=9, learning_rate=1e-1
        )
        train(fix_points(small_model(PLAIN)), data, plan, tmp_path / name)
    big = records(tmp_path / "big")
    for name in ("small", "single"):
        for ours, wanted in zip(records(tmp_path / name), big, strict=True):
            assert ours == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    plain = recipe(PLAIN, clips_per_batch=1, max_steps=1, learning_rate=1e-4)
    train(fix_points(small_model(PLAIN)), data, plain, tmp_path / "other")
    assert losses(tmp_path / "other")[0] != pytest.approx(big[0]["loss"], rel=1e-3)  # it is not a constant


def test_one_batch_is_the_loss_of_the_model():
    model = small_model(PLAIN).train()
    batch = ComboCollator()([clips(2)[index] for index in range(2)])
    divisors = shared_divisors(model.criterion, [batch], Processes())
    del batch["video_ids"]
    outputs = [fix_points(model)(**batch, loss_divisors=shared) for shared in (None, divisors)]
    assert outputs[1].loss.item() == pytest.approx(outputs[0].loss.item(), rel=1e-6)
    assert sum_by_kind(outputs[0].loss_dict).sum().item() == pytest.approx(outputs[0].loss.item(), rel=1e-6)


PVT = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "mlp_ratios": [2, 2, 2, 2],
    "drop_path_rate": 0.3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        ({"fusion_dropout": 0.1, "freeze_batch_norm": True}, 8 + 2 + 3),  # frozen norms: two encoders of four blocks
        ({"fusion_dropout": 0.1, "freeze_batch_norm": False}, 2 + 3),  # trained ones: backbones are left alone
        ({"fusion_dropout": 0.1, "backbone_config": PVT}, 10 + 2 + 3),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(overrides, layers):
    model = small_model({**PLAIN, **overrides}).train()
    copied = copy.deepcopy(model)
    assert enable_gradient_checkpointing(copied) == layers
    batch = ComboCollator()([clips(2)[index] for index in range(2)])
    del batch["video_ids"]
    found = []
    for network in (model, copied):
        torch.manual_seed(5)  # dropout, drop path and points
        output = network(**batch)
        output.loss.backward()
        gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
        found.append((float(output.loss.detach()), gradients, dict(network.named_buffers())))
    (loss, gradients, buffers), (again, recomputed, buffers_again) = found
    assert loss == again and gradients.keys() == recomputed.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert all(torch.equal(buffers_again[name], value) for name, value in buffers.items())


def bytes_kept(model) -> int:
    """For the backward pass."""
    batch = ComboCollator()([clips(2)[index] for index in range(2)])
    del batch["video_ids"]
    kept = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.nbytes)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(**batch)
    return sum(kept)


def test_gradient_checkpointing_keeps_less():
    model = small_model(PLAIN).train()
    before = bytes_kept(model)
    enable_gradient_checkpointing(model)
    assert bytes_kept(model) < 0.8 * before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: x"),
    ],
)
def test_out_of_memory_names_the_knobs(tmp_path, error):
    model = small_model()

    def full(*args, **kwargs):
        raise error

    model.forward = full
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(model, clips(8), recipe(clips_per_batch=8), tmp_path / "run")
    for knob in ("clips_per_batch=4 with accumulation_steps=2", "mixed_precision=bf16", "gradient_checkpointing=true"):
        assert knob in str(caught.value)


def test_other_errors_of_a_step_pass():
    with pytest.raises(RuntimeError, match="^shapes"), memory_advice(recipe()):
        raise RuntimeError("shapes do not fit")


def test_half_precision_wants_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train(small_model(), clips(2), recipe(mixed_precision="fp16"), tmp_path, cpu=True)


def test_mean_of_the_weights():
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    with torch.no_grad():
        layer[0].weight.fill_(0.0)
    average = average_weights(layer, decay=0.9)
    wanted = 0.0
    for value, share in ((1.0, 2 / 11), (3.0, 3 / 12)):
        with torch.no_grad():
            layer[0].weight.fill_(value)
            layer[1].running_mean.fill_(value)
            layer[1].num_batches_tracked.fill_(int(value))
        wanted = share * wanted + (1 - share) * value
        average.update_parameters(layer)
        for tensor in (average.module[0].weight, average.module[1].running_mean):
            assert tensor.item() == pytest.approx(wanted)
        assert average.module[1].num_batches_tracked.item() == value
    assert layer[0].weight.item() == 3.0
    other = average_weights(layer, decay=0.9)
    other.load_state_dict(average.state_dict())
    for follower in (average, other):
        follower.update_parameters(layer)
    assert torch.equal(other.module[0].weight, average.module[0].weight)
    with pytest.raises(ValueError, match="decay"):
        average_weights(layer, decay=1.0)


def test_mean_weights_are_evaluated_and_saved(tmp_path):
    data, plan = clips(4), recipe(ema_decay=0.5, max_steps=3, eval_every=3)
    model = small_model()
    train(model, data, plan, tmp_path / "run", data)
    saved = ComboForAudioVisualSegmentation.from_pretrained(tmp_path / "run" / "last")
    name = "model.decoder.class_head.weight"
    ours, trained = saved.get_parameter(name), model.get_parameter(name)
    assert not torch.equal(ours, trained) and float((ours - trained).detach().abs().max()) < 0.01

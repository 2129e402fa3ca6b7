"""How often a GPU would be waited for, counted on a CPU: whatever was computed from weights and inputs counts as lying
on the GPU, until `.cpu()` brings it away."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_training import SMALL, clips, recipe, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from combo_hf import (
    ComboFeatureExtractor,
    ComboImageProcessor,
    ComboProcessor,
    label_maps_combo,
    loss_combo,
    modeling_combo_encoders,
    modeling_combo_pixel_decoder,
)
from combo_hf.data.collate import ComboCollator
from combo_hf.modeling_combo_kernels import deformable_sampling
from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline
from combo_hf.pipeline_combo_inputs import pack_windows
from combo_hf.training.engine import build_accelerator
from combo_hf.training.optimizer import build_optimizer, build_scheduler
from combo_hf.training.step import Learner, optimizer_step


READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select,
         torch.ops.aten.bincount, torch.ops.aten._unique2, torch.ops.aten.equal}  # fmt: skip
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class Waits(TorchDispatchMode):
    """Notes in `seen` what a GPU would be waited for."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen, self.away, self.quiet = [], {}, True
        for name in ("cpu", "tolist", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._bringing(name, getattr(torch.Tensor, name)))
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
            monkeypatch.setattr(owner, name, self._uploading(name, getattr(owner, name)))

    def __enter__(self):
        self.quiet = False
        return super().__enter__()

    def __exit__(self, *args):
        self.quiet = True
        super().__exit__(*args)

    def put(self, *values):
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.away[storage._cdata] = storage  # held, so that its number stays its own
        return values[0]

    def lies_there(self, value):
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self.away

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func.overloadpacket
        there = not self.quiet and any(map(self.lies_there, tree_leaves((args, kwargs))))
        masks = packet in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if there and (packet in READS or masks):
            self.seen.append(packet.__name__)
        out = func(*args, **kwargs)
        if there:
            self.put(out)
        return out

    def _bringing(self, name, plain):
        def bring(tensor, *args, **kwargs):
            if self.quiet or not self.lies_there(tensor):
                return plain(tensor, *args, **kwargs)
            self.seen.append(name)
            self.quiet = True
            try:
                return plain(tensor.detach().clone(), *args, **kwargs)
            finally:
                self.quiet = False

        return bring

    def _uploading(self, name, plain):
        def upload(*args, **kwargs):
            out = plain(*args, **kwargs)
            if (
                not self.quiet
                and not torch.is_tensor(args[-1])
                and (name == "new_tensor" or kwargs.get("device") is not None)
            ):
                self.seen.append(name)
                self.put(out)
            return out

        return upload


@pytest.fixture
def waits(monkeypatch):
    """With the ways of a GPU in place of those of a CPU."""
    monkeypatch.setattr(modeling_combo_pixel_decoder, "gathered_sampling", deformable_sampling)
    monkeypatch.setattr(modeling_combo_encoders, "onednn_applies", lambda values: False)
    monkeypatch.setattr(loss_combo, "blocked_sums", loss_combo.point_sums)
    monkeypatch.setattr(label_maps_combo, "highest_class", label_maps_combo._by_maps)
    monkeypatch.setattr(label_maps_combo, "contenders", lambda scores: torch.arange(len(scores)))
    return Waits(monkeypatch)


def test_the_counter_counts(waits):
    there = waits.put(torch.tensor([1.0, 0.0, 2.0]))
    with waits:
        assert float((there + 1).sum()) == 6 and there.cpu().tolist() == [1, 0, 2] and (2 * there).tolist()[0] == 2
        assert bool(there.any()) and len(there.nonzero()) == 2 and len(there[there > 0]) == 2
        torch.tensor([1, 2], device=there.device), there.new_tensor([1.0])
        np.asarray(torch.ones(2).tolist()), torch.tensor([1]).sum().item()
    reads = ["_local_scalar_dense", "cpu", "tolist", "_local_scalar_dense", "nonzero", "index"]
    assert waits.seen == [*reads, "tensor", "new_tensor"]


@pytest.mark.parametrize("labelled", ["all", "first"])
def test_a_training_step(waits, labelled, tmp_path):
    model = small_model({**SMALL, "pixel_weight": 1.0}).train()
    accelerator = build_accelerator(recipe(), tmp_path, cpu=True)
    optimizer = build_optimizer([{"params": [p for p in model.parameters() if p.requires_grad], "lr": 1e-3}])
    model, optimizer = accelerator.prepare(model, optimizer)
    learner = Learner(accelerator, model, optimizer, build_scheduler(optimizer, 10, 0.9, 0))
    examples = clips(2)
    batch = ComboCollator()([examples[0], examples[1]])
    if labelled == "first":
        starts = [0, int(batch["num_frames"][0])]
        kept = torch.zeros(len(batch["label_frames"]), dtype=torch.bool)
        kept[starts] = True
        batch |= {name: [batch[name][start] for start in starts] for name in ("mask_labels", "class_labels")}
        batch["label_frames"] = kept
    facts = optimizer_step(learner, [batch], 1.0, 0)  # what is kept from the first call on is there now
    waits.put(list(model.parameters()), list(model.buffers()), list(batch.values()))
    with waits:
        facts = optimizer_step(learner, [batch], 1.0, 1)
    assert facts["loss_mask"] > 0 and facts["loss_pixel"] > 0
    assert len(waits.seen) <= 3, " ".join(
        waits.seen
    )  # what steers the step, the costs of all matchings, what is reported


@pytest.mark.parametrize("windows", [1, 2])
def test_a_batch_of_windows(waits, windows):
    model = small_model().eval()
    processor = ComboProcessor(ComboImageProcessor(size=64), ComboFeatureExtractor(), num_frames=3)
    pipe = AudioVisualSegmentationPipeline(model=model, processor=processor)
    pictures = [np.full((40, 60, 3), 40 * k, np.uint8) for k in range(3)]
    (item,) = pipe.preprocess({"frames": pictures, "audio": None, "maskiges": pictures})
    batch = pack_windows([item] * windows)
    expected = pipe._forward(batch)
    waits.put(list(model.parameters()), list(model.buffers()), batch["inputs"])
    with torch.no_grad(), waits:
        found = pipe._forward(batch)
    assert len(waits.seen) <= 1, " ".join(waits.seen)
    for one, other in zip(found["windows"], expected["windows"], strict=True):
        for mine, theirs in zip(one["frames"], other["frames"], strict=True):
            assert np.array_equal(mine["label_map"], theirs["label_map"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the program would measure it")
def test_the_program_for_a_gpu_says_that_there_is_none(capsys):
    path = Path(__file__).resolve().parents[1] / "programs" / "gpu.py"
    program = importlib.util.module_from_spec(importlib.util.spec_from_file_location("gpu", path))
    program.__spec__.loader.exec_module(program)
    assert program.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out

"""Backbones in another precision than the rest, and matching under autocast."""

from __future__ import annotations

import torch

from combo_hf.benchmarking.cases import Settings, make_inputs, make_model


def test_model_keeps_the_dtype_of_its_inputs(tmp_path):
    model = make_model("r50", Settings(quick=True)).set_backbone_dtype(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model.dtype == torch.float32  # what the pipeline gives its inputs, and what a saved configuration says
    model.save_pretrained(tmp_path, carry_code=False)
    assert type(model).from_pretrained(tmp_path).model.pixel_decoder.level_embed.dtype == torch.float32


def test_costs_of_matching_stay_in_float32_under_autocast(monkeypatch):
    model = make_model("r50", Settings(quick=True))
    labels = make_inputs(model.config, [1]).labels
    torch.manual_seed(0)
    masks = [20 * torch.randn(1, model.config.num_queries, 16, 16)]
    classes = [torch.randn(1, model.config.num_queries, model.config.num_labels + 1)]
    seen = []
    compute = model.criterion._costs
    monkeypatch.setattr(model.criterion, "_costs", lambda *args: seen.append(compute(*args)) or seen[-1])
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model.criterion.match(classes, masks, labels["mask_labels"], labels["class_labels"])
    assert torch.equal(*seen)

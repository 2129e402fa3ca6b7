"""int8 weights: torchao while loading, and torch's own dynamic quantisation; near the float results."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PLAIN, clips, small_model

from combo_hf import ComboCollator, ComboForAudioVisualSegmentation


def masks(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**ComboCollator()([clips(1)[0]])).masks_queries_logits


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return 0 < float((got - wanted).abs().max()) < 0.2 * float(wanted.abs().max())


def test_dynamic_int8_of_torch() -> None:
    model = small_model(PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is torch.nn.Linear for module in quantised.modules())
    assert close(masks(quantised), masks(model))


def test_int8_weights_of_torchao(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    from transformers import TorchAoConfig

    model = small_model(PLAIN)
    model.save_pretrained(tmp_path)
    kind = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    assert close(
        masks(ComboForAudioVisualSegmentation.from_pretrained(tmp_path, quantization_config=kind)), masks(model)
    )

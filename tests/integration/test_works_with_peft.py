"""LoRA by peft: every adapter takes part, and merging changes nothing."""

from __future__ import annotations

import pytest
import torch
from fixtures_training import PLAIN, clips, small_model

from combo_hf import ComboCollator


peft = pytest.importorskip("peft", reason="pip install peft")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_adapters_of_all_linear_layers_are_trained_and_merged() -> None:
    model = peft.get_peft_model(small_model(PLAIN).train(), peft.LoraConfig(target_modules="all-linear", r=2))
    batch = ComboCollator()([clips(1)[0]])
    model.enable_input_require_grads()  # by the layer that takes the pixels
    model(**batch).loss.backward()
    adapters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    linear = [name for name, module in small_model(PLAIN).named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(adapters) == 2 * len(linear)
    assert [name for name, parameter in adapters.items() if parameter.grad is None] == []
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(0, 0.1)
        adapted = model.eval()(**batch).masks_queries_logits
        merged = model.merge_and_unload()(**batch).masks_queries_logits
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3 * float(adapted.abs().max()))

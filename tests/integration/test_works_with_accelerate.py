"""Weights that are elsewhere until a module is called: offloading by accelerate."""

from __future__ import annotations

import accelerate
import torch
from fixtures_training import PLAIN, clips, small_model

from combo_hf import ComboCollator


def test_offloaded_weights_give_the_same_masks() -> None:
    model, batch = small_model(PLAIN).eval(), ComboCollator()([clips(1)[0]])
    with torch.no_grad():
        wanted = model(**batch).masks_queries_logits
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert all(parameter.is_meta for parameter in model.parameters())
        torch.testing.assert_close(model(**batch).masks_queries_logits, wanted, rtol=1e-4, atol=1e-4)


def test_parts_stay_on_one_device() -> None:
    """What may not be split are the parts of the network; everything with weights lies in one of them."""
    model = small_model(PLAIN)
    parts = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    assert len(parts) == len(set(model._no_split_modules)) == 6
    assert all(any(name.startswith(f"{part}.") for part in parts) for name, _ in model.named_parameters())

"""How far two float32 networks differ where no threshold falls apart.

The decoder looks inside masks that it predicted itself, cut at zero. A mask logit within rounding of zero lies inside
for one program and outside for another; every query of that frame hears of it. So masks are compared twice: as they
are, and with every threshold taken from the first network. The second run also tells how far from zero the logits
were on which the two disagreed: rounding explains some 1e-6 of the largest logit, an error would be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as nnf

from combo_hf import modeling_combo_decoder


Prediction = tuple[torch.Tensor, torch.Tensor]


def ties_remark(plain: Callable[[], list[Prediction]], run: Callable[[], Prediction]) -> str:
    """Difference of the masks with the thresholds of `plain`, and the ties that were settled so.

    Args:
        plain: class and mask logits of the learned queries and every layer, in order.
        run: class logits and mask logits of the last layer, by [`ComboDecoder`].

    Returns:
        Empty where no threshold differs.
    """
    wanted = plain()
    layers = iter(wanted)
    count, farthest = 0, 0.0
    original = modeling_combo_decoder.visible_tokens

    def visible_tokens(logits: torch.Tensor) -> torch.Tensor:
        nonlocal count, farthest
        masks = nnf.interpolate(next(layers)[1], size=logits.shape[-2:], mode="bilinear", align_corners=False)
        apart = (masks >= 0) != (logits >= 0)
        if apart.any():
            count += int(apart.sum())
            farthest = max(farthest, float(torch.maximum(masks.abs(), logits.abs())[apart].max() / masks.abs().max()))
        return original(masks)

    with mock.patch.object(modeling_combo_decoder, "visible_tokens", visible_tokens):
        masks = run()[1]
    if not count:
        return ""
    difference = (masks - wanted[-1][1]).abs().max() / wanted[-1][1].abs().max()
    return f"{difference:.0e} with {count} threshold(s) {farthest:.0e} from zero settled alike"

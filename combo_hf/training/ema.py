"""A running mean of the weights, which is evaluated and saved in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Exponential mean of all trainable parameters and of the buffers of batch norms.

    Args:
        model (`nn.Module`): whose present weights are the start.
        decay (`float`): share of the past, in (0, 1). In step t counted from 1 it is at most (1 + t) / (10 + t), so
            that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay: wanted more than 0 and less than 1, got {decay}.")
        self.decay, self.steps = decay, 0
        self.tensors = {name: value.detach().float().clone() for name, value in _averaged(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After a step of the optimizer."""
        self.steps += 1
        share = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in _averaged(model).items():
            self.tensors[name].lerp_(value.detach().float(), 1 - share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the mean weights; afterwards exactly its own again."""
        own = {name: value.detach().clone() for name, value in _averaged(model).items()}
        self._put(model, self.tensors)
        try:
            yield
        finally:
            self._put(model, own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors only, so that safetensors holds it."""
        return {"steps": torch.tensor(self.steps), **{f"mean.{name}": value for name, value in self.tensors.items()}}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Raises `ValueError` where the tensors are not those of this model."""
        found = {name.removeprefix("mean."): value for name, value in state.items() if name != "steps"}
        wrong = found.keys() ^ self.tensors.keys()
        if wrong or "steps" not in state:
            raise ValueError(f"the saved mean weights are not this model's: {sorted(wrong)[:3] or 'no steps'}.")
        self.steps = int(state["steps"])
        for name, value in found.items():
            self.tensors[name].copy_(value)

    @staticmethod
    @torch.no_grad()
    def _put(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        for name, value in _averaged(model).items():
            value.copy_(tensors[name])


def _averaged(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {name: value for name, value in model.named_parameters() if value.requires_grad}
    tensors.update({name: value for name, value in model.named_buffers() if value.is_floating_point()})
    return tensors

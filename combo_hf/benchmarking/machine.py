"""What the machine can do, and what a piece of torch code asks of it.

The limit of a piece of work is the larger of (float operations / rate of a large matrix product) and (bytes / rate of
a large copy), both measured here on the same threads. Bytes are those that every operation reads and writes, as if
nothing stayed in a cache: code that reaches more than 100 % of the copy rate lives in the caches.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from combo_hf.benchmarking.timing import synchronize, timed
from combo_hf.modeling_combo_kernels import onednn_applies, onednn_product


MATRIX = 1536
COPIED_BYTES = 1 << 28  # beyond the caches of what is in use today
GPU_MATRIX, GPU_COPIED_BYTES = 8192, 1 << 30
NO_TRAFFIC = ("detach", "empty", "empty_strided", "new_empty", "empty_like")


@dataclass
class Machine:
    """Measured rates.

    Attributes:
        float32, bfloat16: float operations a second of a matrix product of 1536 x 1536 (8192 x 8192 on a GPU).
        copy: bytes a second read and written by a copy of 256 MiB (1 GiB on a GPU).
        threads: threads of torch. load: processes that wanted a core in the last minute. cores, processor, torch.
        device: where the network runs and the rates were measured.
    """

    float32: float
    bfloat16: float
    copy: float
    threads: int
    load: float
    cores: int
    processor: str
    torch: str
    device: str = "cpu"

    def share(self, seconds: float, flops: float, moved: float, dtype: str) -> tuple[float, float]:
        """Parts of the product rate and of the copy rate that work of `seconds` reached."""
        return flops / getattr(self, dtype) / seconds, moved / self.copy / seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_machine(
    device: str = "cpu", rounds: int = 5, size: int | None = None, copied: int | None = None
) -> Machine:
    """Measure the rates with the present number of threads; the best of the rounds, as a limit should be."""
    gpu = torch.device(device).type == "cuda"
    size = size or (GPU_MATRIX if gpu else MATRIX)
    copied = copied or (GPU_COPIED_BYTES if gpu else COPIED_BYTES)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        ways: list[Callable[[], Any]] = [partial(torch.mm, a, b, out=out)]
        if onednn_applies(a):  # the faster library of the two, or what is slow would look good
            ways.append(partial(onednn_product, a, b, None))
        rates[dtype] = 2 * size**3 / min(_best(way, rounds, device) for way in ways)
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), rounds, device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return Machine(
        rates[torch.float32], rates[torch.bfloat16], copy, 1 if gpu else torch.get_num_threads(), load,
        os.cpu_count() or 1, torch.cuda.get_device_name(device) if gpu else _processor(), torch.__version__, device,
    )  # fmt: skip


def _best(run: Callable[[], Any], rounds: int, device: str) -> float:
    """Seconds; on a processor that others use too, those of CPU time per thread."""
    run()
    synchronize(device)
    seconds = []
    for _ in range(rounds):
        wall, cpu = timed(run, device)
        seconds.append(min(wall, cpu / torch.get_num_threads()) if torch.device(device).type == "cpu" else wall)
    return min(seconds)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


class WorkCounter(TorchDispatchMode):
    """Sums what the torch operations inside the context ask of the machine.

    Attributes:
        flops: float operations by torch's own formulas: matrix products, convolutions, attention; 2 per
            multiplication and addition. Not in inference mode, where some operations are seen whole, without formula.
        moved: bytes that the operations read and write; views and allocations are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.moved = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        out = func(*args, **kwargs)
        if packet in FORMULAS:
            self.flops += FORMULAS[packet](*args, **kwargs, out_val=out)
        if not func.is_view and packet.__name__ not in NO_TRAFFIC:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Attention of the CPU, for which torch has no formula: two products for each head."""
    batch, heads, tokens, width = query.shape
    return 2 * batch * heads * tokens * key.shape[2] * (width + value.shape[3])


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    """Five products in place of two: the scores are computed again."""
    return _attention_flops(query, key, value) * 5 // 2


def _convolution_backward_flops(
    gradient: Any, pictures: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, wanted: Any, out_val: Any = None
) -> int:  # fmt: skip
    """Each of the two gradients costs what the forward pass did; torch's formula takes all groups for one."""
    pixels = pictures if transposed else gradient
    return 2 * pixels.numel() * weight[0].numel() * (int(wanted[0]) + int(wanted[1]))


def _onednn_flops(values: Any, weight: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Of oneDNN's linear layers and convolutions: one number of the output takes a row of weights."""
    return 2 * int(out_val.numel()) * math.prod(weight.shape[1:])


ONEDNN = ("_convolution_pointwise", "_linear_pointwise")  # private operators: not in every build of torch
FORMULAS = {
    **{getattr(torch.ops.mkldnn, name): _onednn_flops for name in ONEDNN if hasattr(torch.ops.mkldnn, name)},
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    **flop_registry,
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
}


def count_work(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Run once and count: float operations, bytes, and what `run` returned."""
    with WorkCounter() as counter:
        out = run()
    return float(counter.flops), float(counter.moved), out

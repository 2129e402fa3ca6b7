"""What the network computes in ways of its own: products, constants, and reads of multi-scale deformable attention.

The reads (Deformable DETR, eq. 3) are plain PyTorch, without a compiled operator. [`deformable_sampling`] is the plain
way, level by level by `grid_sample`, so that the reads of all levels are never stacked. On a CPU all reads of a token
are one weighted sum of table rows (`embedding_bag`): [`framed_sampling`] without gradients, [`GatheredSampling`] with
a backward pass of our own (that of torch sorts).

Longer than other files: the reads would be one of their own, but the landing holds no more (tests/unit/test_rooms.py).

Axes: F packed frames, S tokens of all scales (7x7, 14x14, 28x28 for 224 pixels), R rows of the table, d width, M
heads, L levels, P points.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import nn


PLAIN_MKL = ("AuthenticAMD", "HygonGenuine")  # processors on which MKL takes its generic path
DENSE_BLOCK = 1 << 18  # numbers of such a product at a time: what a core's cache holds


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is just what its class says, so that its weights may be read in place of calling it.

    Not so for adapters, quantised or parametrised layers, weights that are elsewhere until the module is called, and
    modules with hooks.
    """
    if torch.compiler.is_compiling():
        return type(module) is kind
    if type(module) is not kind or "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    tensors = [*module.parameters(), *module.buffers()]
    return all(type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors)


def fingerprint(weight: torch.Tensor) -> tuple[Any, ...]:
    """Changes with the numbers of a weight on a CPU. torch's version does not where somebody writes into `.data`: so
    the first filter and the first channel of a convolution are added up, too, which such writes seldom spare."""
    version = None if weight.is_inference() else weight._version
    parts = (weight[0], weight[:, 0]) if version is not None and weight.ndim > 1 else (weight,)
    return weight.data_ptr(), version, *(float(part.sum()) for part in parts)


def is_eager(values: torch.Tensor) -> bool:
    """Whether numbers are computed with now, and no graph is made of what happens to them."""
    return type(values) is torch.Tensor and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def constant(values: tuple[Any, ...], like: torch.Tensor) -> torch.Tensor:
    """Nested tuples of numbers as a tensor of the dtype and device of `like`: a GPU gets it once."""
    if not is_eager(like):
        return like.new_tensor(values)
    return _kept_constant(values, like.dtype, like.device)


@lru_cache(maxsize=64)
def _kept_constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # or it could not be used in training
        return torch.tensor(values, dtype=dtype, device=device)


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on a device; a GPU takes them from pinned memory, so that it is not waited for."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def on_cpu(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Small tensors of whole numbers on the CPU, in one transfer: a GPU is waited for once."""
    away = [tensor for tensor in values if tensor.device.type != "cpu"] or values
    flat = torch.cat([tensor.flatten().to(away[0].device, torch.long) for tensor in away]).cpu()
    parts = iter(flat.split([tensor.numel() for tensor in away]))
    here = {id(tensor): next(parts).view(tensor.shape).to(tensor.dtype) for tensor in away}
    return [here.get(id(tensor), tensor) for tensor in values]


def onednn_applies(values: torch.Tensor) -> bool:
    """Whether oneDNN's operators, which are private ones of torch, may be called with these values: plain float32 on a
    processor."""
    return (
        is_eager(values)
        and values.device.type == "cpu"
        and values.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


def linear(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`layer(states)`, by oneDNN where that is the faster library. layer: `nn.Linear`, or an `nn.Sequential` with it.

    torch's own float32 products (MKL) take a generic path on processors that are not Intel's, at half the rate.
    """
    if not (onednn_applies(states) and onednn_is_faster()):
        return layer(states)
    if is_plain(layer, nn.Sequential):
        for part in layer.children():
            states = linear(part, states)
        return states
    if not is_plain(layer, nn.Linear) or layer.weight.dtype != states.dtype:
        return layer(states)
    return product(states, cast(nn.Linear, layer).weight, cast(nn.Linear, layer).bias)


def product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `torch.nn.functional.linear`, by the faster library: states (..., width in), weight (width out, width in)."""
    if not (onednn_applies(states) and onednn_is_faster()):
        return nnf.linear(states, weight, bias)
    if torch.is_grad_enabled():
        rows = cast(torch.Tensor, OneDnnProduct.apply(states.flatten(0, -2), weight, bias))  # (N, width out)
        return rows.unflatten(0, states.shape[:-1])
    return onednn_product(states, weight, bias)


def convolve(layer: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """`layer(maps)`, by [`pixel_product`] where that is faster. layer: any, or an `nn.Sequential` of such."""
    if is_plain(layer, nn.Sequential):
        for part in layer.children():
            maps = convolve(part, maps)
        return maps
    if not (is_plain(layer, nn.Conv2d) and is_pixelwise(cast(nn.Conv2d, layer), maps)):
        return layer(maps)
    return pixel_product(maps, cast(nn.Conv2d, layer).weight, cast(nn.Conv2d, layer).bias)


def is_pixelwise(layer: nn.Conv2d, maps: torch.Tensor) -> bool:
    """Whether a convolution is one product of all pixels, and torch would not compute it as fast: on one thread it
    multiplies picture by picture, and not with oneDNN."""
    single = layer.kernel_size == layer.stride == (1, 1) and layer.padding in ((0, 0), "valid") and layer.groups == 1
    return single and is_eager(maps) and maps.device.type == "cpu" and torch.get_num_threads() == 1


def pixel_product(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Convolution of maps (F, C_in, h, w) with kernels (C, C_in, 1, 1): (F, C, h, w) in channels_last order."""
    pixels = product(maps.permute(0, 2, 3, 1), weight.flatten(1), bias)  # (F, h, w, C)
    return pixels.permute(0, 3, 1, 2)


def rectify(states: torch.Tensor) -> torch.Tensor:
    """ReLU of a tensor that nobody else holds, in place. Not so of a view that gradients go through, as products of
    more than two dimensions are: autograd would copy its whole gradient three times."""
    aside = torch.is_grad_enabled() and (not is_eager(states) or states._is_view())
    return states.relu() if aside else states.relu_()


def onednn_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `torch.nn.functional.linear`: states (..., width in), weight (width out, width in)."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than torch's own product, by the maker of the processor.

    A measurement would fall out otherwise in a busy minute, and a training that is resumed then would have other bits.
    """
    return torch.backends.mkl.is_available() and any(maker in _processor() for maker in PLAIN_MKL)


def _processor() -> str:
    """What the system tells of its processor, with its maker."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as facts:
            return facts.read(4096)
    except OSError:
        return platform.processor()  # "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD" on Windows


class OneDnnProduct(torch.autograd.Function):
    """[`onednn_product`] of rows (N, width in) with gradients; a second derivative is not to be had."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        return onednn_product(states, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            onednn_product(gradient, weight.t(), None) if wanted[0] else None,
            onednn_product(gradient.t(), states.t(), None) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def deformable_sampling(
    value: torch.Tensor,
    shapes: list[tuple[int, int]],
    reference: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Bilinear reads of all points, weighted and summed level by level (zeros outside, `align_corners=False`).

    Args: value (F, S, d); reference (S, 2); offsets (F, S, M, L, P, 2) in pixels of the level; weights (F, S, M, L,
    P).
    Returns: (F, S, d).
    """
    frames, tokens, dim = value.shape
    heads, points = offsets.shape[2], offsets.shape[4]
    centre = (2 * reference - 1)[None, :, None, None]  # (1, S, 1, 1, 2) in grid_sample's [-1, 1]
    total, start = value.new_zeros(()), 0
    for level, (height, width) in enumerate(shapes):
        maps = value[:, start : start + height * width].unflatten(2, (heads, -1))  # (F, h*w, M, d/M)
        maps = maps.permute(0, 2, 3, 1).reshape(frames * heads, dim // heads, height, width)
        start += height * width
        x, y = offsets[:, :, :, level].unbind(-1)  # Python numbers as factors: a tensor of them would wait for a GPU
        grid = (torch.stack([x * (2 / width), y * (2 / height)], -1) + centre).transpose(1, 2).flatten(0, 1)
        read = nnf.grid_sample(
            maps, grid.to(maps), mode="bilinear", padding_mode="zeros", align_corners=False
        )  # of grid (F*M, S, P, 2)
        share = weights[:, :, :, level].transpose(1, 2).reshape(frames * heads, 1, tokens, points)
        total = total + (read * share).sum(-1)  # (F*M, d/M, S)
    return total.view(frames, dim, tokens).transpose(1, 2)


def gathered_sampling(
    value: torch.Tensor,
    shapes: list[tuple[int, int]],
    reference: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """As [`deformable_sampling`]: the four neighbours of every point are rows of a table, which are summed by weight.

    In training, too; a second derivative is not to be had.
    """
    if torch.is_grad_enabled():
        return GatheredSampling.apply(value, offsets, weights, reference, shapes)
    return framed_sampling(value, shapes, reference, offsets, weights)


def framed_sampling(
    value: torch.Tensor,
    shapes: list[tuple[int, int]],
    reference: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """As [`gathered_sampling`], without gradients and with half the elementwise work.

    Each map stands in the table with zeros around it, so that a point outside needs no case of its own: it is moved
    to the zeros next to the map. What depends on the level is spread to (S, M, L, P): elementwise work on short rows
    is slow.
    """
    frames, tokens, _ = value.shape
    _, _, heads, levels, points, _ = offsets.shape
    spread = (tokens, heads, levels, points)
    table, starts = framed_table(value, shapes)  # (F, R, d)
    size = offsets.new_tensor([[width, height] for height, width in shapes])  # (L, 2) as (x, y)

    def axis(which: int) -> tuple[torch.Tensor, torch.Tensor]:
        """First neighbour, -1 to the length, and share of the second along x (0) or y (1): (F, S, M, L, P)."""
        length = size[:, which][:, None]  # (L, 1)
        centre = (reference[:, which][:, None, None, None] * length - 0.5).expand(spread).contiguous()
        place = (offsets[..., which] + centre).clamp_(min=-1)
        place = torch.minimum(place, length.expand(spread).contiguous(), out=place)
        first = place.floor().nan_to_num_()  # what is not finite shows in the share; an index must be one
        return first, place.sub_(first)

    (x, right), (y, below) = axis(0), axis(1)
    line = (size[:, :1] + 1).expand(spread).contiguous()
    row = starts[:, None].int() * heads + torch.arange(heads, dtype=torch.int32)[:, None, None]  # (M, L, 1)
    cell = y.mul_(line).add_(x).int().mul_(heads).add_(row.expand(spread).contiguous())
    cell += (torch.arange(frames, dtype=torch.int32) * (table.shape[1] * heads))[:, None, None, None, None]
    index = cell.new_empty(frames, tokens, heads, 4, levels, points)
    index[:, :, :, 0] = cell
    torch.add(cell, heads, out=index[:, :, :, 1])
    cell += line.int() * heads
    index[:, :, :, 2] = cell
    torch.add(cell, heads, out=index[:, :, :, 3])
    factor = weights.new_empty(index.shape)
    lower = weights * below
    for at, part in ((0, weights - lower), (2, lower)):
        second = torch.mul(part, right, out=factor[:, :, :, at + 1])
        torch.sub(part, second, out=factor[:, :, :, at])
    index, factor = (parts.view(frames * tokens * heads, -1) for parts in (index, factor))
    summed = nnf.embedding_bag(index, table.view(-1, table.shape[2] // heads), per_sample_weights=factor, mode="sum")
    return summed.view(value.shape)


def framed_table(value: torch.Tensor, shapes: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every map with zeros around it: a row above, a row below, and a column at the left, which is also the right
    one's of the row before.

    Args: value (F, S, d); shapes (h, w) per level.
    Returns: (F, R, d) with R the sum of (h + 2) * (w + 1), and w + 3 more rows, which are read with weight 0; where
    each level's cell (0, 0) stands: (L,).
    """
    frames, _, dim = value.shape
    rows = [(height + 2) * (width + 1) for height, width in shapes]
    table = value.new_zeros(frames, sum(rows) + shapes[-1][1] + 3, dim)
    starts, begin = [], 0
    maps = value.split([height * width for height, width in shapes], dim=1)
    for tokens, (height, width), count in zip(maps, shapes, rows, strict=True):
        framed = table[:, begin : begin + count].unflatten(1, (height + 2, width + 1))
        framed[:, 1:-1, 1:] = tokens.unflatten(1, (height, width))
        starts.append(begin + width + 2)
        begin += count
    return table, torch.tensor(starts)


def neighbours(
    shapes: list[tuple[int, int]], reference: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens of the four neighbours of every point, and what they count for.

    Everything that depends on the level is spread to (S, M, L, P) first: elementwise work on short rows is slow.

    Args: shapes, reference, offsets as of [`deformable_sampling`].
    Returns: tokens (F, S, M, 4, L * P) int32, upper left, upper right, lower left, lower right; and for the left and
    right column, then for the upper and lower row: shares (4 times (F, S, M, L, P), 0 outside), inside (4 times).
    """
    spread = offsets.shape[1:-1]
    size = offsets.new_tensor([[width, height] for height, width in shapes])  # (L, 2) as (x, y)
    cells, shares, insides = [], [], []
    for which in (0, 1):
        length = size[:, which][:, None]  # (L, 1)
        centre = (reference[:, which][:, None, None, None] * length - 0.5).expand(spread).contiguous()
        last = (length - 1).expand(spread).contiguous()
        place = offsets[..., which] + centre
        first = place.floor().nan_to_num_()  # what is not finite shows in the shares; an index must be one
        share = place.sub_(first)
        for cell, part in ((first, 1 - share), (first + 1, share)):
            cells.append(cell.clamp(min=0).minimum(last))
            insides.append(cells[-1] == cell)
            shares.append(part.mul_(insides[-1]))
    left, right, upper, lower = cells
    width = size[:, :1].expand(spread).contiguous()
    start = torch.tensor([0, *(h * w for h, w in shapes[:-1])]).cumsum(0).to(offsets)[:, None].expand(spread)
    corners = []
    for line in (upper, lower):
        line = line.mul_(width).add_(start)
        corners += [(line + column).int().flatten(3) for column in (left, right)]
    return torch.stack(corners, dim=3), [*shares, *insides]


class GatheredSampling(torch.autograd.Function):
    """Forward: `embedding_bag`. Backward: for each frame and head the reads are a sparse matrix (tokens x tokens).

    Written out, that matrix is small enough for products to beat scattered sums, and no read is kept or made again:
    twice as fast as reads by `grid_sample` at 224 pixels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        offsets: torch.Tensor,
        weights: torch.Tensor,
        reference: torch.Tensor,
        shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        frames, tokens, dim = value.shape
        heads = offsets.shape[2]
        found, kept = neighbours(shapes, reference, offsets)
        row = torch.arange(frames)[:, None, None] * (tokens * heads) + torch.arange(heads)  # (F, 1, M)
        index = found.mul(heads).add_(row.int()[..., None, None]).view(frames * tokens * heads, -1)
        factor = read_factors(kept, weights).view(index.shape)
        table = value.reshape(frames * tokens * heads, dim // heads)  # row (f * S + s) * M + m
        ctx.save_for_backward(value, weights, found, *kept)
        return nnf.embedding_bag(index, table, per_sample_weights=factor, mode="sum").view(frames, tokens, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, weights, found, *kept = ctx.saved_tensors
        left, right, upper, lower, *insides = kept
        to_value, seen = backward_products(gradient, value, found, read_factors(kept, weights))
        seen = seen.unflatten(-1, weights.shape[-2:])  # (F, S, M, 4, L, P)
        corners = [part.contiguous() for part in seen.unbind(3)]
        in_row = [left * corners[0] + right * corners[1], left * corners[2] + right * corners[3]]
        in_column = [upper * corners[0] + lower * corners[2], upper * corners[1] + lower * corners[3]]
        along_x = in_column[1].mul_(insides[1]).sub_(in_column[0].mul_(insides[0])).mul_(weights)
        to_weights = upper * in_row[0] + lower * in_row[1]
        along_y = in_row[1].mul_(insides[3]).sub_(in_row[0].mul_(insides[2])).mul_(weights)
        return to_value, torch.stack([along_x, along_y], dim=-1), to_weights, None, None


def read_factors(kept: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Shares of [`neighbours`] and weights (F, S, M, L, P) -> what each read counts for (F, S, M, 4, L * P)."""
    left, right, upper, lower = kept[:4]
    lines = [upper * weights, lower * weights]
    return torch.stack([(line * column).flatten(3) for line in lines for column in (left, right)], dim=3)


def backward_products(
    gradient: torch.Tensor, value: torch.Tensor, found: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the values, and the product of every read value with the gradient of its sum.

    Args: gradient, value (F, S, d); found, factors (F, S, M, 4, L * P): which tokens are read, and what for.
    Returns: (F, S, d) and (F, S, M, 4, L * P).
    """
    frames, tokens, heads = found.shape[:3]
    split = (frames, tokens, heads, -1)
    gradient = gradient.reshape(split).transpose(1, 2).contiguous()  # (F, M, S, d / M)
    value = value.reshape(split).permute(0, 2, 3, 1).contiguous()  # (F, M, d / M, S)
    to_value, seen = torch.empty_like(value), torch.empty_like(factors)
    block = max(1, min(tokens, DENSE_BLOCK // tokens))
    reads = value.new_empty(block, tokens)
    for frame in range(frames):
        places = found[frame].flatten(2).transpose(0, 1).long().contiguous()  # (M, S, 4 * L * P)
        shares = factors[frame].flatten(2).transpose(0, 1).contiguous()
        products = torch.empty_like(shares)
        for head in range(heads):
            for start in range(0, tokens, block):
                part = slice(start, start + block)
                place, wanted = places[head, part], gradient[frame, head, part]
                matrix = reads[: len(place)].zero_().scatter_add_(1, place, shares[head, part])
                to_value[frame, head].addmm_(wanted.T, matrix, beta=1 if start else 0)
                products[head, part] = torch.mm(wanted, value[frame, head], out=matrix).gather(1, place)
        seen[frame] = products.transpose(0, 1).view_as(seen[frame])
    return to_value.permute(0, 3, 1, 2).reshape(frames, tokens, -1), seen

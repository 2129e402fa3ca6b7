"""Class scores of a frame, and the winning class of every pixel without enlarging what cannot win.

The release enlarges the score maps of all classes bilinearly and takes the highest. Departure, with the same result:
every enlarged pixel is a mean of the four corners of a cell of the small maps, so a class that leads at all four
corners wins the whole cell. Other classes are looked at only in the cells in between, and there only those that no
mean of the leading classes beats at every corner. Where this saves nothing (noise), whole maps are enlarged, but of
classes only that do not lie below another class everywhere. A little longer than other files:
one rule and its shortcuts.

Axes: K classes, Q queries, h w pixels of the small maps, H W pixels of the label map, N cells between classes, P
pixels in these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as nnf


Size = tuple[int, int]  # height, width

MASK_STRIDE = 4  # pixels of the network's input for one of its masks
CLASSES_AT_ONCE = 8  # class maps enlarged together: 66 MB at 1080p instead of 590 MB for 71 classes
CELLS_AT_ONCE = 4096  # their corners of 71 classes take 5 MB
PIXELS_AT_ONCE = 1 << 16
ROUNDING = 1e-5  # what float32 may do to a mean, relative to its terms
MOST_WORK = 0.025  # part of all classes in all cells: if more have to be looked at, whole maps are no slower
SMALL_SIDE = 64  # up to here a product with the matrix of the means is faster than interpolate


class FrameMaps(NamedTuple):
    """What a frame shows, class by class.

    Attributes:
        labels (`torch.LongTensor` of shape `(H, W)`): the winning class of every pixel.
        best (`torch.FloatTensor` of shape `(H, W)`): its score.
        scores (`torch.FloatTensor` of shape `(K, h, w)`): of all classes; see [`class_scores`].
    """

    labels: torch.Tensor
    best: torch.Tensor
    scores: torch.Tensor


class FrameLabels(NamedTuple):
    """What the pipeline needs of a frame.

    Attributes:
        labels (`torch.Tensor` of shape `(H, W)`): uint8 or int32.
        areas, sums (`torch.DoubleTensor` of shape `(K,)`): pixels of each class, and the sum of their shares.
        maps: further ones by name; they stay on the device.
    """

    labels: torch.Tensor
    areas: torch.Tensor
    sums: torch.Tensor
    maps: dict[str, torch.Tensor]


def fetch_frames(flag: torch.Tensor, frames: Sequence[FrameLabels]) -> tuple[bool, list[FrameLabels]]:
    """A () bool, and frames, on the CPU; in one transfer, so that a GPU is waited for once."""
    numbers = [values for frame in frames for values in (frame.areas, frame.sums)]
    tensors = [*numbers, *(frame.labels for frame in frames), flag]  # the widest first, for their alignment
    raw = torch.cat([values.contiguous().flatten().view(torch.uint8) for values in tensors]).cpu()
    parts = [
        part.clone().view(values.dtype).view(values.shape)
        for part, values in zip(raw.split([values.nbytes for values in tensors]), tensors, strict=True)
    ]
    counted, labels, last = parts[: len(numbers)], parts[len(numbers) : -1], parts[-1]
    whole = zip(frames, labels, counted[::2], counted[1::2], strict=True)
    return bool(last), [FrameLabels(label_map, areas, sums, frame.maps) for frame, label_map, areas, sums in whole]


def segment(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, size: Size, enlarge_scores: bool = False
) -> FrameMaps:
    """Network output of one frame -> label map, by the inference rule of the release.

    Args:
        class_logits (`torch.Tensor` of shape `(Q, K + 1)`)
        mask_logits (`torch.Tensor` of shape `(Q, h, w)`)
        size: height and width (H, W) of the label map.
        enlarge_scores: give `scores` at that size, too; a 1080p frame of 71 classes takes 0.6 GB. Off: at the size of
            the network's input.
    """
    scores = class_scores(class_logits, mask_logits)
    if enlarge_scores:
        scores = enlarge(scores, size)
        best, labels = scores.max(0)
    else:
        labels, best = highest_class(scores, size)
    return FrameMaps(labels, best, scores)


def class_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: Size | None = None) -> torch.Tensor:
    """Score of every class at every pixel: the sum over queries of class probability times mask probability.

    Args:
        class_logits (`torch.Tensor` of shape `(Q, K + 1)`): the last is "no object", left out after the softmax.
        mask_logits (`torch.Tensor` of shape `(Q, h, w)`): enlarged bilinearly before their sigmoid.
        size (`tuple[int, int]`, *optional*): height and width (H, W) of the scores; `None`: of the network's input.

    Returns:
        `torch.FloatTensor` (K, H, W).
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # (Q, K)
    masks = enlarge(mask_logits.float(), size or input_size(mask_logits))
    # in place where they are new: 20 MB that would else be asked of the system and given back
    masks = masks.sigmoid() if masks.shape == mask_logits.shape else masks.sigmoid_()
    return torch.einsum("qk,qhw->khw", probabilities, masks)


def input_size(mask_logits: torch.Tensor) -> Size:
    """Height and width of the network's input for masks (..., h, w)."""
    height, width = mask_logits.shape[-2:]
    return MASK_STRIDE * height, MASK_STRIDE * width


def weigh_background(class_logits: torch.Tensor, weight: float) -> torch.Tensor:
    """Class logits with which the background has `weight` times its score ([`class_scores`]), the others their own.

    Queries agree on the background more often than on an object, and their scores add up. The share that is taken from
    the background's probability goes to "no object", which scores nothing.

    Args:
        class_logits (`torch.Tensor` of shape `(..., K + 1)`): index 0 is the background, the last is "no object".
        weight (`float`): above 0, at most 1.
    """
    if weight == 1:
        return class_logits
    background, others, nothing = class_logits.log_softmax(-1).tensor_split((1, class_logits.shape[-1] - 1), dim=-1)
    rest = torch.logaddexp(nothing, background + math.log1p(-weight))
    return torch.cat([background + math.log(weight), others, rest], dim=-1)


def gate_classes(class_logits: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """Class logits in which a class counts as far as it is heard; what is silent belongs to the background.

    P'(class) = P(class) * P(heard), and what that takes from all classes is added to P(background).

    Args:
        class_logits (`torch.Tensor` of shape `(F, Q, K + 1)`): index 0 is the background, the last is "no object".
        heard (`torch.Tensor` of shape `(F, K - 1)`): logits of hearing each class but the background.

    Returns:
        `torch.Tensor` `(F, Q, K + 1)`: logarithms of probabilities that sum to 1.
    """
    background, classes, nothing = class_logits.log_softmax(-1).tensor_split((1, class_logits.shape[-1] - 1), dim=-1)
    heard = heard.unsqueeze(1)  # (F, 1, K - 1)
    silent = torch.cat([background, classes + nnf.logsigmoid(-heard)], dim=-1).logsumexp(-1, keepdim=True)
    return torch.cat([silent, classes + nnf.logsigmoid(heard), nothing], dim=-1)


def highest_class(scores: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """The winning class of every pixel of score maps that are enlarged bilinearly. Of equal classes the first wins.

    Args:
        scores (`torch.FloatTensor` of shape `(K, h, w)`): of all classes, at the size of the network's input.
        size: height and width (H, W) of the label map.

    Returns:
        labels (H, W) long, and the score of the winner (H, W).
    """
    height, width = scores.shape[1:]
    if (height, width) == tuple(size):
        return leading_class(scores, 0)
    # a GPU enlarges whole maps faster than it looks for cells; smaller maps have more cells than pixels
    if scores.device.type == "cpu" and size[0] * size[1] > height * width and bool(scores.sum().isfinite()):
        found = _by_cells(scores, size)
        if found is not None:
            return found
    return _by_maps(scores, size)


def leading_class(scores: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the highest scores along `dim`, the first of equal ones, and these scores: in a third of the time that
    `argmax` takes alone."""
    best, labels = scores.max(dim)
    return labels, best


def check_outputs(
    classes: torch.Tensor,
    masks: torch.Tensor,
    counts: list[int],
    target_sizes: Sequence[Size | None] | None,
    finite: bool | None = None,
) -> list[Size]:
    """The size of every clip's label maps, after checking that everything fits.

    Args:
        classes: `class_queries_logits` (F, Q, K + 1).
        masks: `masks_queries_logits` (F, Q, h, w).
        counts: frames of each clip, F in sum.
        target_sizes: a size for each clip; `None`: that of the network's input.
        finite: whether the logits are known to be finite numbers; `None`: look, for which a GPU is waited for.

    Raises:
        ValueError: shapes or numbers that do not fit each other, or logits that are not finite.
    """
    if (
        not torch.is_tensor(classes)
        or not torch.is_tensor(masks)
        or classes.ndim != 3
        or masks.ndim != 4
        or classes.shape[:2] != masks.shape[:2]
    ):
        raise ValueError(
            "outputs: wanted class_queries_logits (F, Q, K + 1) and masks_queries_logits (F, Q, h, w), got "
            f"{getattr(classes, 'shape', classes)} and {getattr(masks, 'shape', masks)}."
        )
    if not (are_finite(classes, masks) if finite is None else finite):
        raise ValueError("outputs: the logits hold NaN or infinite numbers; the weights or the inputs are damaged.")
    if sum(counts) != masks.shape[0] or min(counts, default=0) < 1:
        raise ValueError(f"num_frames: wanted counts that add up to {masks.shape[0]} frames, got {counts}.")
    default = input_size(masks)
    if target_sizes is None:
        return [default] * len(counts)
    if len(target_sizes) != len(counts):
        raise ValueError(
            f"target_sizes: wanted one (height, width) for each of {len(counts)} clips, got {target_sizes}."
        )
    try:
        sizes = [default if size is None else tuple(int(side) for side in size) for size in target_sizes]
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        sizes = [()]
    if any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise ValueError(f"target_sizes: wanted (height, width) in pixels, got {target_sizes}.")
    return [(height, width) for height, width in sizes]


def are_finite(*logits: torch.Tensor) -> torch.Tensor:
    """Whether no number is NaN or infinite: () bool, on the device."""
    return torch.stack([values.isfinite().all() for values in logits]).all()


def contenders(scores: torch.Tensor) -> torch.Tensor:
    """Ascending indices of the classes of (K, h, w) that can win somewhere once the maps are enlarged bilinearly.

    Every pixel of the enlarged map is a mean of the four corners of a cell. A class whose highest corner lies below
    the lowest corner of another class, in every cell, wins nowhere, and need not be enlarged.
    """
    low = high = scores
    if scores.shape[1] > 1:
        low, high = torch.minimum(low[:, 1:], low[:, :-1]), torch.maximum(high[:, 1:], high[:, :-1])
    if scores.shape[2] > 1:
        low, high = torch.minimum(low[..., 1:], low[..., :-1]), torch.maximum(high[..., 1:], high[..., :-1])
    floor = low.amax(0)
    floor = floor - ROUNDING * floor.abs()
    return (~(high < floor).flatten(1).all(1)).nonzero()[:, 0]  # NaN stays a contender


def enlarge(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Bilinear (C, h, w) -> (C, H, W)."""
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if maps.device.type == "cpu" and max(height, width) <= SMALL_SIDE and len(maps) > 1:
        across, down = _means(width, size[1], maps.dtype), _means(height, size[0], maps.dtype)
        return down @ (maps @ across.T)
    return torch.nn.functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _by_maps(scores: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """[`highest_class`] by enlarging all maps of classes that may win somewhere, a few at a time."""
    # to find out which they are a GPU would have to be waited for
    cpu = scores.device.type == "cpu"
    chosen_ones = contenders(scores) if cpu else torch.arange(len(scores), device=scores.device)
    first, *others = chosen_ones.split(CLASSES_AT_ONCE)
    best, indices = enlarge(scores[first], size).max(0)
    labels = first[indices]
    for chosen in others:
        values, indices = enlarge(scores[chosen], size).max(0)
        higher = values > best  # strictly: of equal classes the first one wins, as in argmax
        best, labels = torch.where(higher, values, best), torch.where(higher, chosen[indices], labels)
    return labels, best


def _by_cells(scores: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor] | None:
    """[`highest_class`] where most cells have one leader; None where that is not so."""
    leader, top, between = _leaders(scores)
    rows, down = _cells(scores.shape[1], size[0])
    columns, across = _cells(scores.shape[2], size[1])
    cell_rows, cell_columns = between.nonzero(as_tuple=True)
    cells = cell_rows, cell_columns
    if 2 * len(cell_rows) > MOST_WORK * scores.numel():  # at least two classes in each
        return None
    labels = _spread(leader, rows, columns).long()
    best = enlarge(top[None], size)[0]
    pixels = _spread(between, rows, columns).flatten().nonzero()[:, 0]
    if not len(pixels):
        return labels, best
    candidates = _candidates(scores, leader, cells)
    if candidates is None:
        return None
    counts, classes, corners = candidates
    number = torch.zeros(between.shape, dtype=torch.long)
    number[cells] = torch.arange(len(cells[0]))
    y, x = pixels // size[1], pixels % size[1]
    number = number[rows[y], columns[x]]  # (P,) cell of each pixel
    for part in torch.arange(len(pixels)).split(PIXELS_AT_ONCE):
        at = pixels[part]
        found = _duel(number[part], down[y[part]], across[x[part]], counts, classes, corners)
        labels.view(-1)[at], best.view(-1)[at] = found
    return labels, best


def _spread(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """values[rows][:, columns] of (h, w); whole rows both times, which are copied ten times faster than columns."""
    return values.T.contiguous().index_select(0, columns).T.contiguous().index_select(0, rows)


def _leaders(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading class and its score at every corner (h, w), and the cells (h, w) that no class leads as a whole.

    Cell (i, j) lies between rows i and i + 1, columns j and j + 1; the last row and column are their own neighbours.
    """
    kind = torch.uint8 if len(scores) <= 255 else torch.int32
    top = scores.amax(0)
    near = (scores >= top - ROUNDING * top.abs()).to(kind)
    leader = (near * torch.arange(len(scores), dtype=kind)[:, None, None]).amax(0)
    alone = near.sum(0, dtype=kind) == 1
    whole = alone & _beside(alone, 0) & (leader == _beside(leader, 0))
    return leader, top, ~(whole & _beside(whole, 1) & (leader == _beside(leader, 1)))


def _candidates(
    scores: torch.Tensor, leader: torch.Tensor, cells: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Classes that may win in each of N cells, ascending: how many (N,), which, and their four corners (all, 4).

    None as soon as there will be too many.

    The winner is no lower than any mean of classes. So a class is out if, at all corners, it lies below one of the
    classes that lead at a corner, or below the mean of these.
    """
    (height, width), flat = leader.shape, scores.flatten(1)
    counts, classes, corners = [], [], []
    seen = found = 0
    for y, x in zip(*(side.split(CELLS_AT_ONCE) for side in cells), strict=True):
        below, right = (y + 1).clamp_(max=height - 1), (x + 1).clamp_(max=width - 1)
        places = [y * width + x, y * width + right, below * width + x, below * width + right]
        values = torch.stack([flat.index_select(1, place) for place in places])  # (4, K, n)
        strong = torch.stack([leader.flatten()[place].long() for place in places])  # (4, n)
        rivals = values.gather(1, strong.expand(4, -1, -1))  # (4 corners, 4 leaders, n)
        rivals = torch.cat([rivals, rivals.mean(1, keepdim=True)], 1)
        margin = ROUNDING * rivals.abs()
        out = torch.zeros(values.shape[1:], dtype=torch.bool)
        for rival in (rivals - margin).unbind(1):  # (4, n)
            out |= (values < rival[:, None]).all(0)
        cell, kept = (~out.T).nonzero(as_tuple=True)
        counts.append((~out).sum(0))
        seen += len(y)
        found += len(kept)
        if found * len(cells[0]) > MOST_WORK * scores.numel() * seen:
            return None
        classes.append(kept)
        corners.append(values[:, kept, cell].T)
    return torch.cat(counts), torch.cat(classes), torch.cat(corners)


def _duel(
    cell: torch.Tensor,
    down: torch.Tensor,
    across: torch.Tensor,
    counts: torch.Tensor,
    classes: torch.Tensor,
    corners: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Winning class and its score of P pixels, each in a cell and at a place (down, across) in 0..1 inside it."""
    first, left = (counts.cumsum(0) - counts)[cell], counts[cell]

    def value(candidate: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        one, two, three, four = corners.index_select(0, candidate).unbind(1)
        return torch.lerp(torch.lerp(one, two, across), torch.lerp(three, four, across), down)

    best, winner = value(first, down, across), first.clone()
    for turn in range(1, int(left.max())):
        still = (left > turn).nonzero()[:, 0]
        candidate = first[still] + turn
        rival = value(candidate, down[still], across[still])
        higher = rival > best[still]  # strictly, as above
        won = still[higher]
        winner[won], best[won] = candidate[higher], rival[higher]
    return classes[winner], best


def _beside(values: torch.Tensor, axis: int) -> torch.Tensor:
    """The next value along an axis of (h, w); the last is its own neighbour."""
    rest = values.shape[axis] - 1
    return torch.cat([values.narrow(axis, 1, rest), values.narrow(axis, rest, 1)], axis)


def _cells(small: int, large: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per enlarged pixel its cell, and where in the cell it lies, 0..1; rounded as interpolate does on CPUs."""
    scale = torch.tensor(small / large, dtype=torch.float32).double()
    place = ((torch.arange(large) + 0.5) * scale - 0.5).clamp_(min=0).float()
    cell = place.long().clamp_(max=small - 1)
    return cell, (place - cell).clamp_(0, 1)


def _means(small: int, large: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights (large, small) of the bilinear means along one side."""
    cell, place = _cells(small, large)
    weights = torch.zeros(large, small, dtype=dtype)
    weights.scatter_add_(1, cell[:, None], (1 - place)[:, None].to(dtype))
    weights.scatter_add_(1, (cell + 1).clamp_(max=small - 1)[:, None], place[:, None].to(dtype))
    return weights

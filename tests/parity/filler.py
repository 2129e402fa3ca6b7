"""Synthetic weights under the official names, from names, shapes and a seed alone; no official code is needed.

Every entry has a generator of its own (crc32 of its name, mixed with the seed), so each can be made without the
others. The scales keep all stages of the network alive: nothing saturates, nothing collapses.
"""

from __future__ import annotations

import functools
import re
import zlib

import numpy as np


CLASS_BIAS = "sem_seg_head.predictor.class_embed.bias"

# (pattern of the name, factor, divided by sqrt(fan_in)?): the first that matches wins.
SCALES = [
    (r".*running_mean", 0.05, False),
    (r".*(gamma_v_list\..*|gamma_a)", 0.5, False),
    (r".*\.query_(feat|embed)\.weight", 1.5, False),
    (r".*\.(level_embed|level_embed\.weight|audio_pos\.weight)", 0.5, False),
    (r".*b_attn\.attn_list\.0\.v_proj\.weight", 3.0, True),
    (r".*b_attn\.attn_list\.0\.values_a_proj\.weight", 2.0, True),
    (r".*attn\.in_proj_weight", 1.5, True),
    (r".*\.predictor\..*out_proj\.weight", 0.15, True),
    (r".*\.predictor\..*linear2\.weight", 0.3, True),
    (r".*audio_transformation\.embeddings\.4\.weight", 1.5, True),
    (r".*class_embed\.weight", 3.0, True),
    (r".*sampling_offsets\.weight", 0.5, True),
    (r".*sampling_offsets\.bias", 1.0, False),
    (r".*mask_embed\.layers\.2\.weight", 0.5, True),
]


# Half of all values, and the same in every configuration: kept, because making them takes longest.
COMMON = ("audio_backbone.", "sem_seg_head.audio_transformation.")


def fill_entry(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """One entry.

    Args:
        name, shape, dtype: a row of a manifest; counters (integers) are zero.
        seed: any whole number of at least 0.
    """
    if dtype.startswith("int"):
        return np.zeros(shape, dtype)
    if name == "criterion.empty_weight":
        return np.array([1.0] * (shape[0] - 1) + [0.1], np.float32)
    random = np.random.RandomState((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)
    if name.endswith("running_var"):
        return (1.0 + 0.1 * random.random_sample(shape)).astype(np.float32)
    values = random.standard_normal(shape)
    fan_in = np.sqrt(int(np.prod(shape[1:])))
    for pattern, factor, divided in SCALES:
        if re.fullmatch(pattern, name):
            return (factor * values / fan_in if divided else factor * values).astype(np.float32)
    if len(shape) > 1:
        return (values / fan_in).astype(np.float32)
    if name.endswith("weight"):  # of a norm
        return (1.0 + 0.1 * values).astype(np.float32)
    if name.endswith("bias"):
        return (0.02 * values).astype(np.float32)
    raise KeyError(f"no scale for {name} {shape}")


def fill_state_dict(manifest: dict, seed: int) -> dict[str, np.ndarray]:
    """All entries of a manifest; its `class_bias_shift` of this seed, where there is one, lets both classes win."""
    filled = {
        name: (_common_entry if name.startswith(COMMON) else fill_entry)(name, tuple(shape), dtype, seed)
        for name, shape, dtype in manifest["entries"]
    }
    shift = manifest.get("class_bias_shift", {}).get(str(seed))
    if shift is not None:
        filled[CLASS_BIAS] = (filled[CLASS_BIAS] + np.asarray(shift, np.float32)).astype(np.float32)
    return filled


_common_entry = functools.lru_cache(maxsize=32)(fill_entry)

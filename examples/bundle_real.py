"""Put a run of the recipe real-animals into the package, with half the bytes.

    python examples/bundle_real.py --run runs/animals --sound-encoder runs/animal-encoders --facts facts.json \\
        --background-weight 0.2 --gate-scale 2 --gate-shift 0.6

The run has learnt to show every animal that is seen; `--sound-encoder`, written by train_sound_encoder.py, brings the
ear and the class gate, which lets through what is heard. Of several, the gate decides by the mean: they become one
encoder of the sum of their widths. Writes combo_hf/assets/real: weights in half precision
(loaded in single precision), configuration, processor, recipe.yaml, real.json (the facts: cost, scores) and
origin.json (the terms, for the card). The model card and the licence beside them are written by hand.
"""

import argparse
import copy
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.training.run import build_processor


RECIPE = combo_hf.RECIPES / "real-animals.yaml"
TERMS = (
    "Research that is not commercial. They were trained on photographs and recordings of research and hobby "
    "collections, most of which state no terms or research only; LICENSE.txt beside the weights names them."
)


def joined(ears: list[ComboForAudioVisualSegmentation]) -> ComboForAudioVisualSegmentation:
    """A network whose audio encoder holds those of the ears (of one size) side by side; its gate is their mean."""
    size, count = ears[0].config.audio_config, len(ears)
    config = copy.deepcopy(ears[0].config)
    config.audio_config = {
        "channels": [[width * count for width in block] for block in size["channels"]],
        "hidden_sizes": [width * count for width in size["hidden_sizes"]],
        "embedding_size": size["embedding_size"] * count,
    }
    model = ComboForAudioVisualSegmentation(config)
    states = [ear.model.audio_encoder.state_dict() for ear in ears]
    state = {}
    for name in states[0]:
        parts = [part[name] for part in states]
        if name == "features.0.weight" or name.endswith("bias"):  # all hear the one log-mel
            state[name] = torch.cat(parts)
        elif name == "embeddings.0.weight":  # (out, place, channel): of the maps, channels come last
            state[name] = beside([part.view(len(part), 24, -1) for part in parts], 2).flatten(1)
        else:
            state[name] = beside(parts, 1)
    model.model.audio_encoder.load_state_dict(state)
    model.class_gate.weight.copy_(torch.cat([ear.class_gate.weight for ear in ears], 1) / count)
    model.class_gate.bias.copy_(torch.stack([ear.class_gate.bias for ear in ears]).mean(0))
    return model


def beside(weights: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Weights (out, ..., in at `dim`, ...) of layers side by side, none of which sees what another one sees."""
    whole = torch.zeros_like(torch.cat(weights, dim)).repeat(len(weights), *[1] * (weights[0].ndim - 1))
    for index, part in enumerate(weights):
        whole.narrow(0, index * len(part), len(part)).narrow(dim, index * part.shape[dim], part.shape[dim]).copy_(part)
    return whole


def with_ear(
    model: ComboForAudioVisualSegmentation, ear: ComboForAudioVisualSegmentation
) -> ComboForAudioVisualSegmentation:
    """The network with another audio encoder and class gate.

    It is deaf: all that it knows of a sound is the learned position. Where the new embedding is n times as wide, that
    comes n times, so that its norm stays the same, and only the first of them is read.
    """
    config = copy.deepcopy(model.config)
    config.audio_config, config.class_gate = ear.config.audio_config, True
    result = ComboForAudioVisualSegmentation(config)
    state = model.state_dict() | ear.model.audio_encoder.state_dict(prefix="model.audio_encoder.")
    state |= ear.class_gate.state_dict(prefix="class_gate.")
    for name, tensor in result.state_dict().items():
        given = state[name]
        if name.endswith("audio_position.weight"):
            given = given.repeat(1, tensor.shape[1] // given.shape[1])
        tensor.zero_()
        tensor[tuple(slice(size) for size in given.shape)] = given
    return result


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--sound-encoder", type=Path, nargs="+", required=True, help="checkpoints with class gate")
    parser.add_argument("--gate-scale", type=float, default=1.0, help="how much more decided the gate is than trained")
    parser.add_argument("--gate-shift", type=float, default=0.0, help="how much more open it is; both: chosen on val")
    parser.add_argument("--facts", type=Path, required=True, help="JSON: machine, cost, scores")
    parser.add_argument("--background-weight", type=float, required=True)
    parser.add_argument("--output", type=Path, default=combo_hf.DEFAULT_MODEL)
    arguments = parser.parse_args()
    facts = json.loads(arguments.facts.read_text(encoding="utf-8"))
    load = ComboForAudioVisualSegmentation.from_pretrained
    model, ears = load(arguments.run / arguments.checkpoint), [load(path) for path in arguments.sound_encoder]
    gates = all(ear.class_gate is not None and ear.config.id2label == model.config.id2label for ear in ears)
    if not gates or model.config.audio_dropout != 1:
        raise ValueError(
            "wanted a class gate over the classes of the run, and a run that heard nothing (audio_dropout 1)."
        )
    with torch.no_grad():
        model = with_ear(model, joined(ears))
        for parameter in model.class_gate.parameters():
            parameter.mul_(arguments.gate_scale)
        model.class_gate.bias.add_(arguments.gate_shift)
    model.config.background_weight = arguments.background_weight
    model.config.num_frames = 5
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output, carry_code=False)
    build_processor(model.config).save_pretrained(output, carry_code=False)
    weights = output / "model.safetensors"
    tensors = {name: t.half() if t.dtype == torch.float32 else t for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copy(RECIPE, output / "recipe.yaml")  # that of the run, but for its folders
    (output / "real.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    origin = {
        "license": "other",
        "license_text": TERMS,
        "made": [f"{key}: {value}" for key, value in facts.items() if not isinstance(value, dict)],
        "tags": ["animals"],
    }
    (output / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))

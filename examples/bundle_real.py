"""Put a run of the recipe real-animals into the package, with half the bytes.

    python examples/bundle_real.py --run runs/animals --sound-encoder runs/animal-encoders --facts facts.json \\
        --background-weight 0.2 --gate-scale 2 --gate-shift 0.6

The run has learnt to show every animal that is seen; `--sound-encoder`, written by train_sound_encoder.py, brings the
ear and the class gate, which lets through what is heard. Writes combo_hf/assets/real: weights in half precision
(loaded in single precision), configuration, processor, recipe.yaml, real.json (the facts: cost, scores) and
origin.json (the terms, for the card). The model card and the licence beside them are written by hand.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.training.run import build_processor


RECIPE = combo_hf.RECIPES / "real-animals.yaml"
TERMS = (
    "Research that is not commercial. They were trained on photographs and recordings of research and hobby "
    "collections, most of which state no terms or research only; LICENSE.txt beside the weights names them."
)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--sound-encoder", type=Path, required=True, help="a checkpoint with class gate")
    parser.add_argument("--gate-scale", type=float, default=1.0, help="how much more decided the gate is than trained")
    parser.add_argument("--gate-shift", type=float, default=0.0, help="how much more open it is; both: chosen on val")
    parser.add_argument("--facts", type=Path, required=True, help="JSON: machine, cost, scores")
    parser.add_argument("--background-weight", type=float, required=True)
    parser.add_argument("--output", type=Path, default=combo_hf.DEFAULT_MODEL)
    arguments = parser.parse_args()
    facts = json.loads(arguments.facts.read_text(encoding="utf-8"))
    load = combo_hf.ComboForAudioVisualSegmentation.from_pretrained
    model, ear = load(arguments.run / arguments.checkpoint), load(arguments.sound_encoder)
    if ear.class_gate is None or ear.config.id2label != model.config.id2label or model.config.audio_dropout != 1:
        raise ValueError(
            "wanted a class gate over the classes of the run, and a run that heard nothing (audio_dropout 1)."
        )
    model.model.audio_encoder, model.class_gate = ear.model.audio_encoder, ear.class_gate
    model.config.class_gate = True
    with torch.no_grad():
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

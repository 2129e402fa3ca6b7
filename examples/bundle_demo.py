"""Measure a finished run of the recipe synthetic-demo on unseen clips, beside one without sound; bundle it.

python examples/bundle_demo.py --run runs/demo --silent runs/demo-silent --machine "2 CPU cores, one thread a run"

Writes combo_hf/assets/demo (checkpoint, processor, recipe.yaml, demo.json with the scores) and
combo_hf/assets/demo_clip.mp4.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.data.synthetic.dataset import synthesize_clip
from combo_hf.results.video import write_video
from combo_hf.training import TrainingRecipe, evaluate_model, prepare_synthetic


DEMO_CLIP = {"kind": "ms3", "seed": 0, "index": 13, "split": "test", "size": 256, "num_frames": 10}
SCORES = ("M_J", "M_F", "miou")


def score(folder: Path, clips: Any, **changes: bool) -> dict[str, float]:
    """Scores of the best checkpoint of a run, in percent; changes: silence_audio, blank_maskige."""
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(folder / "best")
    values = evaluate_model(model, clips.variant(**changes))
    return {name: round(100 * values[name], 2) for name in SCORES if name in values}


def test_clips(kind: str, labels: str, seed: int, count: int, size: int, cache: Path | None) -> Any:
    """Unseen clips of a kind; from the cache where they were made before."""
    path = None if cache is None else cache / f"{kind}-{labels}-test-{seed}-{count}-{size}.npz"
    return prepare_synthetic(kind, seed, count, "test", size, labels, 1, path)


def cost(folder: Path) -> dict[str, float]:
    """Steps of a run, and the seconds they took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "seconds_per_step" in record]
    seconds = sum(
        record["seconds_per_step"] * (record["step"] - before)
        for record, before in zip(steps, [0, *(record["step"] for record in steps)], strict=False)
    )
    return {"steps": steps[-1]["step"], "minutes": round(seconds / 60, 1)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """What demo.json says of the run."""
    recipe, run, size = TrainingRecipe.from_yaml(arguments.run / "recipe.yaml"), arguments.run, 96
    data = recipe.data
    facts = {
        "what": "preset tiny, trained on synthetic clips alone; knows nothing else",
        "recipe": "combo_hf/training/recipes/synthetic-demo.yaml",
        "seed": recipe.seed,
        "training clips": data.train_clips * len(data.kinds),
        "machine": arguments.machine,
        "cost with sound": cost(run),
        "cost without sound": cost(arguments.silent),
    }
    first, *others = sorted(data.kinds, key=lambda kind: kind != "ms3")
    for kind in (first, *others):
        start = f"kind {kind}, " if kind != first else ""
        clips = test_clips(kind, data.labels, arguments.test_seed, arguments.clips, size, arguments.cache)
        scores = {
            "with sound": score(run, clips),
            "same weights, silence at test": score(run, clips, silence_audio=True),
            "same weights, black Maskiges": score(run, clips, blank_maskige=True),
            "trained and tested without sound": score(arguments.silent, clips, silence_audio=True),
        }
        gain = scores["with sound"]["M_J"] - scores["trained and tested without sound"]["M_J"]
        facts[f"{start}scored on"] = f"{arguments.clips} unseen {kind} clips at {size} x {size}, percent"
        facts |= {f"{start}{name}": values for name, values in scores.items()}
        facts[f"{start}gain by sound, points of M_J"] = round(gain, 2)
    return facts


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="finished run of the recipe")
    parser.add_argument("--silent", type=Path, required=True, help="the same with data.silence_audio=true")
    parser.add_argument("--clips", type=int, default=100, help="unseen test clips of each kind to score on")
    parser.add_argument("--test-seed", type=int, default=0, help="of the test clips; default 0")
    parser.add_argument("--cache", type=Path, help="folder of prepared clips")
    parser.add_argument("--machine", required=True, help="what the runs were made on, in words")
    arguments = parser.parse_args()

    facts = measure(arguments)
    print(json.dumps(facts, indent=1))

    partial = combo_hf.ASSETS / ".partial-demo"
    shutil.rmtree(partial, ignore_errors=True)
    combo_hf.load_pipeline(arguments.run / "best").save_pretrained(partial, carry_code=False)  # it is in the package
    recipe = (arguments.run / "recipe.yaml").read_text(encoding="utf-8")
    recipe = re.sub(r"^  cache: .*$", "  cache: null", recipe, flags=re.MULTILINE)  # a path of this machine
    (partial / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (partial / "demo.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(combo_hf.BUNDLED_MODEL, ignore_errors=True)
    os.replace(partial, combo_hf.BUNDLED_MODEL)

    torch.set_num_threads(1)
    clip = synthesize_clip(**DEMO_CLIP)
    write_video(combo_hf.ASSETS / "demo_clip.mp4", clip.render_video(25), 25, clip.waveform, clip.sampling_rate)
    for second, names in enumerate(clip.sounding):
        print(f"demo clip, second {second}: {', '.join(names) or 'nothing'} sounds")
    print("silent, but in the picture:", ", ".join(clip.silent))


if __name__ == "__main__":
    sys.exit(run_script(main))

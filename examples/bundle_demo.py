"""Measure two finished runs of the demo recipe (with and without sound) on unseen clips and bundle the first.

python examples/bundle_demo.py --run runs/demo --silent runs/demo-silent --machine "2 CPU cores, one thread a run"

Writes combo_hf/assets/demo (checkpoint, processor, recipe.yaml, demo.json with the scores) and
combo_hf/assets/demo_clip.mp4.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.data.synthetic import synthesize_clip
from combo_hf.media_combo import write_video
from combo_hf.training import TrainingRecipe, evaluate_model, prepare_synthetic


DEMO_CLIP = {"kind": "ms3", "seed": 0, "index": 13, "split": "test", "size": 256, "num_frames": 10}
SCORES = ("M_J", "M_F", "miou")


def score(folder: Path, clips: object, silence: bool) -> dict[str, float]:
    """Scores of the best checkpoint of a run, in percent."""
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(folder / "best")
    values = evaluate_model(model, clips.variant(silence_audio=silence))
    return {name: round(100 * values[name], 2) for name in SCORES if name in values}


def test_clips(kind: str, data: Any, count: int, size: int, cache: Path | None) -> Any:
    """Unseen clips of a kind; from the cache where they were made before."""
    path = None if cache is None else cache / f"{kind}-{data.labels}-test-{data.seed}-{count}-{size}.npz"
    return prepare_synthetic(kind, data.seed, count, "test", size, data.labels, 1, path)


def cost(folder: Path) -> dict[str, float]:
    """Steps of a run, and the seconds they took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "seconds_per_step" in record]
    seconds = sum(
        record["seconds_per_step"] * (record["step"] - before)
        for record, before in zip(steps, [0, *(record["step"] for record in steps)], strict=False)
    )
    return {"steps": steps[-1]["step"], "minutes": round(seconds / 60, 1)}


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="finished run of the recipe")
    parser.add_argument("--silent", type=Path, required=True, help="the same with data.silence_audio=true")
    parser.add_argument("--clips", type=int, default=100, help="unseen test clips to score on")
    parser.add_argument("--cache", type=Path, help="folder of prepared clips")
    parser.add_argument("--machine", required=True, help="what the runs were made on, in words")
    arguments = parser.parse_args()

    recipe = TrainingRecipe.from_yaml(arguments.run / "recipe.yaml")
    data, size = recipe.data, 96
    first, *others = sorted(data.kinds, key=lambda kind: kind != "ms3")
    clips = test_clips(first, data, arguments.clips, size, arguments.cache)
    facts = {
        "what": "preset tiny, trained from scratch on synthetic clips; knows nothing else",
        "recipe": "examples/recipes/synthetic-demo.yaml",
        "seed": recipe.seed,
        "training clips": data.train_clips,
        "machine": arguments.machine,
        "cost with sound": cost(arguments.run),
        "cost without sound": cost(arguments.silent),
        "scored on": f"{arguments.clips} unseen {first} clips at {size} x {size}, percent",
        "with sound": score(arguments.run, clips, silence=False),
        "same weights, silence at test": score(arguments.run, clips, silence=True),
        "trained and tested without sound": score(arguments.silent, clips, silence=True),
    }
    facts["gain by sound, points of M_J"] = round(
        facts["with sound"]["M_J"] - facts["trained and tested without sound"]["M_J"], 2
    )
    for kind in others:
        clips = test_clips(kind, data, arguments.clips, size, arguments.cache)
        facts[f"kind {kind}, with sound"] = score(arguments.run, clips, silence=False)
        facts[f"kind {kind}, silence at test"] = score(arguments.run, clips, silence=True)
    print(json.dumps(facts, indent=1))

    partial = combo_hf.ASSETS / ".partial-demo"
    shutil.rmtree(partial, ignore_errors=True)
    combo_hf.load_pipeline(arguments.run / "best").save_pretrained(partial, carry_code=False)  # it is in the package
    shutil.copy(arguments.run / "recipe.yaml", partial / "recipe.yaml")
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

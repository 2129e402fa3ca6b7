"""Train a small network with and without its parts on synthetic clips; writes a table with mean and spread over seeds.

python examples/ablations.py --output runs/ablations --kinds ms3 --seeds 3 --steps 300 --train-clips 160
The same command continues where an earlier one ended; finished runs are not repeated. The table is of small networks,
few clips and short runs: it says what matters here, and nothing about the full size or about AVSBench.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from combo_hf.cli import Parser, run_script
from combo_hf.training import TrainingRecipe, build_data, build_model, label_names, train
from combo_hf.training.loop import TrainingResult
from combo_hf.training.state import write_json


# What a run differs in from the first one. Maskiges are replaced by black ones, so that the network keeps its size.
VARIANTS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "without audio": {"data": {"silence_audio": True}},
    "without Maskige": {"data": {"blank_maskige": True}},
    "without L_ada": {"model": {"overrides": {"consistency_weight": 0.0}}},
    "without bilateral fusion": {"model": {"overrides": {"fusion": False}}},
    "official query layout": {"model": {"overrides": {"audio_query_layout": "official"}}},
    "25 queries": {"model": {"overrides": {"num_queries": 25}}},
    "50 queries": {"model": {"overrides": {"num_queries": 50}}},
    "100 queries": {"model": {"overrides": {"num_queries": 100}}},
}
SCORES = {"s4": "M_J", "ms3": "M_J", "avss": "miou"}


def recipe_of(kind: str, variant: str, seed: int, arguments: argparse.Namespace) -> TrainingRecipe:
    """The recipe of one run."""
    changes = VARIANTS[variant]
    data = {"kind": kind, "labels": "semantic" if kind == "avss" else "binary", "num_processes": arguments.processes}
    data |= {"train_clips": arguments.train_clips, "val_clips": arguments.val_clips}
    data |= {"cache": str(arguments.output / "cache"), **changes.get("data", {})}
    overrides = {"image_size": arguments.image_size, **changes.get("model", {}).get("overrides", {})}
    return TrainingRecipe.from_dict(
        {
            "model": {"preset": "tiny", "overrides": overrides},
            "data": data,
            "seed": seed,
            "max_steps": arguments.steps,
            "clips_per_batch": arguments.clips_per_batch,
            "learning_rate": 1e-3,
            "backbone_scale": 1.0,
            "max_grad_norm": 0.1,
            "warmup_steps": min(50, arguments.steps // 10),
            "eval_every": arguments.steps,
            "save_every": max(1, arguments.steps // 4),
            "log_every": 20,
            "best_metric": SCORES[kind],
        }
    )


def run(recipe: TrainingRecipe, folder: Path) -> dict[str, float]:
    """The scores of the last step on the validation clips; from result.json where the run was done before.

    Raises:
        ValueError: the folder holds a run with other numbers of steps or clips, or the like.
    """
    done = folder / "result.json"
    if done.is_file():
        differences = TrainingRecipe.from_yaml(folder / "recipe.yaml").differences(recipe)
        if differences:
            raise ValueError(f"{folder} holds another run ({'; '.join(differences)}); choose another --output.")
        return json.loads(done.read_text(encoding="utf-8"))
    model = build_model(recipe.model, recipe.seed, **label_names(recipe))
    train_set, val_set = build_data(recipe, model.config)
    started = time.process_time()
    resume = (folder / "recipe.yaml").is_file()
    result: TrainingResult = train(model, train_set, recipe, folder, val_set, resume=resume)
    scores = {name: value for name, value in result.validation.items() if isinstance(value, float)}
    write_json(done, {**scores, "cpu_seconds": round(time.process_time() - started, 1)})
    return run(recipe, folder)


def table(results: dict[tuple[str, str], list[float]], kinds: list[str]) -> str:
    """Markdown: mean, sample standard deviation and number of seeds, and the difference to all parts, in percent."""
    lines = ["| kind, score | variant | mean | spread | seeds | difference |", "|---|---|---|---|---|---|"]
    for kind, variant in itertools.product(kinds, VARIANTS):
        values = [100 * value for value in results.get((kind, variant), [])]
        if not values:
            continue
        whole = [100 * value for value in results.get((kind, "all parts"), [])]
        mean = statistics.fmean(values)
        spread = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
        difference = f"{mean - statistics.fmean(whole):+.1f}" if whole and variant != "all parts" else ""
        cells = [f"{kind}, {SCORES[kind]}", variant, f"{mean:.1f}", spread, str(len(values)), difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scale(arguments: argparse.Namespace) -> str:
    """What the numbers are of, in words."""
    side, clips, others = arguments.image_size, arguments.train_clips, arguments.val_clips
    batch = arguments.clips_per_batch
    return (
        f"Synthetic clips, tiny at {side} x {side}, {clips} training clips, {arguments.steps} steps of {batch} clips "
        f"from random weights. Scores in percent on {others} other clips after the last step; spread: sample standard "
        "deviation over seeds. Small networks, little data, short runs: differences of a few points are within the "
        "noise, and nothing follows for AVSBench."
    )


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs and of the table")
    parser.add_argument("--kinds", nargs="+", choices=list(SCORES), default=list(SCORES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--train-clips", type=int, default=400)
    parser.add_argument("--val-clips", type=int, default=50)
    parser.add_argument("--clips-per-batch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--processes", type=int, default=2, help="that make the clips")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many")
    arguments = parser.parse_args()

    results: dict[tuple[str, str], list[float]] = {}
    begin = time.monotonic()
    for seed, kind, variant in itertools.product(range(arguments.seeds), arguments.kinds, arguments.variants):
        name = variant.replace(" ", "-")
        folder = arguments.output / kind / name / f"seed-{seed}"
        late = time.monotonic() - begin > 60 * arguments.minutes
        if late and not (folder / "result.json").is_file():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        scores = run(recipe_of(kind, variant, seed, arguments), folder)
        results.setdefault((kind, variant), []).append(scores[SCORES[kind]])
        print(f"{kind}, {variant}, seed {seed}: {100 * scores[SCORES[kind]]:.1f}", flush=True)
    text = f"{scale(arguments)}\n\n{table(results, arguments.kinds)}\n"
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {arguments.output / 'table.md'}")


if __name__ == "__main__":
    sys.exit(run_script(main))

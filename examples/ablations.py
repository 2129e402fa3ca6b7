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
    changes, start = VARIANTS[variant], arguments.start
    data = {"kind": kind, "labels": arguments.labels, "num_processes": arguments.processes}
    data |= {"train_clips": arguments.train_clips, "val_clips": arguments.val_clips}
    data |= {"cache": str(arguments.output / "cache"), **changes.get("data", {})}
    overrides = {"image_size": arguments.image_size, "freeze_audio_encoder": start is not None}
    overrides |= changes.get("model", {}).get("overrides", {})
    return TrainingRecipe.from_dict(
        {
            "model": {"preset": "tiny", "encoders": start, "overrides": overrides},
            "data": data,
            "seed": seed,
            "max_steps": arguments.steps,
            "clips_per_batch": arguments.clips_per_batch,
            "learning_rate": 1e-3,
            "backbone_scale": 1.0 if start is None else 0.1,
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


def table(results: dict[tuple[str, str], dict[int, float]], kinds: list[str]) -> str:
    """Markdown, in percent: mean and spread over seeds, and those of the differences to all parts with the same seed.

    Args:
        results: kind and variant -> seed -> score.
        kinds: in the order of the rows.
    """
    head = "| kind, score | variant | mean | spread | seeds | difference, same seed | its spread |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for kind, variant in itertools.product(kinds, VARIANTS):
        values = results.get((kind, variant), {})
        if not values:
            continue
        whole = {} if variant == "all parts" else results.get((kind, "all parts"), {})
        differences = [value - whole[seed] for seed, value in values.items() if seed in whole]
        mean, spread = in_percent(list(values.values()))
        cells = [f"{kind}, {SCORES[kind]}", variant, mean, spread, str(len(values)), *in_percent(differences, "+")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_percent(values: list[float], sign: str = "") -> tuple[str, str]:
    """Mean and sample standard deviation as texts; a dash where there is none."""
    mean = f"{100 * statistics.fmean(values):{sign}.1f}" if values else "-"
    return mean, f"{100 * statistics.stdev(values):.1f}" if len(values) > 1 else "-"


def scale(arguments: argparse.Namespace) -> str:
    """What the numbers are of, in words."""
    side, clips, others = arguments.image_size, arguments.train_clips, arguments.val_clips
    batch = arguments.clips_per_batch
    start = "random weights"
    if arguments.start is not None:
        start = (
            f"random weights except for the encoders, which are those of {arguments.start} and have seen such clips "
            "before, with sound; the audio encoder is frozen"
        )
    return (
        f"Synthetic clips, tiny at {side} x {side}, {clips} training clips, {arguments.steps} steps of {batch} clips "
        f"from {start}. Scores in percent on {others} other clips after the last step; spread: sample standard "
        "deviation over seeds. Small networks, little data, short runs: differences of a few points are within the "
        "noise, and nothing follows for AVSBench."
    )


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs and of the table")
    parser.add_argument("--kinds", nargs="+", choices=list(SCORES), default=list(SCORES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--start", help="checkpoint whose encoders all runs start from; default: random weights")
    parser.add_argument("--labels", choices=("binary", "semantic"), default="semantic", help="default semantic")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--train-clips", type=int, default=400)
    parser.add_argument("--val-clips", type=int, default=50)
    parser.add_argument("--clips-per-batch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--processes", type=int, default=2, help="that make the clips")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many")
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    results: dict[tuple[str, str], dict[int, float]] = {}
    begin = time.monotonic()
    for seed, kind, variant in itertools.product(range(arguments.seeds), arguments.kinds, arguments.variants):
        name = variant.replace(" ", "-")
        folder = arguments.output / kind / name / f"seed-{seed}"
        late = time.monotonic() - begin > 60 * arguments.minutes
        if late and not (folder / "result.json").is_file():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        scores = run(recipe_of(kind, variant, seed, arguments), folder)
        results.setdefault((kind, variant), {})[seed] = scores[SCORES[kind]]
        print(f"{kind}, {variant}, seed {seed}: {100 * scores[SCORES[kind]]:.1f}", flush=True)
    text = f"{scale(arguments)}\n\n{table(results, arguments.kinds)}\n"
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {arguments.output / 'table.md'}")


if __name__ == "__main__":
    sys.exit(run_script(main))

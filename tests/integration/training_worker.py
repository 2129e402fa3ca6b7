"""Training in processes of their own, for tests: `kill` breaks a run off again and again, `processes` is one of two.

python training_worker.py kill FOLDER SEED
python -m torch.distributed.run --nproc_per_node 2 training_worker.py processes FOLDER
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fixtures_training import PLAIN, SMALL, clips, fix_points, recipe, small_model  # noqa: E402

from combo_hf.training import train  # noqa: E402


KILLS = 5
PLAN = {
    "max_steps": 15,
    "save_every": 2,
    "eval_every": 5,
    "accumulation_steps": 2,
    "ema_decay": 0.9,
    "warmup_steps": 3,
}

TWO = {"max_steps": 3, "eval_every": 2, "learning_rate": 1e-4, "ema_decay": 0.9}


def run_once(folder: Path) -> None:
    """With everything that is random: order, augmentation, dropout, points."""
    plan = recipe(SMALL, flip=0.5, jitter=0.3, **PLAN)
    started = (folder / "recipe.yaml").is_file()
    train(small_model(SMALL), clips(7), plan, folder, clips(2), resume=started)


def in_child(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run_once(folder)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait_until(child: int, reached: Any) -> bool:
    """False if the child has ended before."""
    deadline = time.monotonic() + 300
    while not reached():
        if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def made_after(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime > moment
    except FileNotFoundError:
        return False


def count(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return len(log.read_bytes().splitlines()) if log.is_file() else 0


def kill_again_and_again(folder: Path, seed: int) -> None:
    """Print one JSON line a kill: how many lines the log had, and what lay in the folder."""
    chance = random.Random(seed)
    os.waitpid(in_child(folder / "whole"), 0)
    parts = folder / "parts"
    for number in range(KILLS):
        started, partial = time.time(), parts / ".partial-state"
        child = in_child(parts)
        if number % 2:
            # a state is just being written, and not the one that the last kill left
            alive = wait_until(child, lambda partial=partial, started=started: made_after(partial, started))
        else:
            goal = count(parts) + chance.randint(0, 4)
            alive = wait_until(child, lambda goal=goal: count(parts) > goal)
            time.sleep(chance.uniform(0, 0.2))
        if not alive:
            raise SystemExit("the run ended before it was killed")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        states = parts / "state"
        found = sorted(path.name for path in states.iterdir()) if states.is_dir() else []
        print(json.dumps({"lines": count(parts), "partial": partial.exists(), "states": found}), flush=True)
    if os.waitstatus_to_exitcode(os.waitpid(in_child(parts), 0)[1]):
        raise SystemExit("the last run failed")


def one_of_two(folder: Path) -> None:
    """A process brings two batches of one clip to every step."""
    plan = recipe(PLAIN, clips_per_batch=1, accumulation_steps=2, **TWO)
    train(fix_points(small_model(PLAIN)), clips(8, frames=(2, 5)), plan, folder, clips(2), cpu=True)


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill_again_and_again(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        one_of_two(Path(sys.argv[2]))

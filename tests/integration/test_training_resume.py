"""A run that is killed with SIGKILL again and again ends as one that is not; several processes learn as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_training import PLAIN, clips, fix_points, losses, recipe, records, small_model
from safetensors.torch import load_file
from training_worker import TWO

from combo_hf.training import train


WORKER = Path(__file__).with_name("training_worker.py")
ROOT = Path(__file__).resolve().parents[2]


def run(command: list, seconds: int = 500) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def same_files(ours: Path, theirs: Path) -> bool:
    one, other = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_five_kills_change_no_bit(tmp_path: Path):
    kills = [json.loads(line) for line in run([WORKER, "kill", tmp_path, 1]).splitlines()]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert len(kills) == 5 and any(kill["partial"] for kill in kills)  # at least one hit a state in the making
    assert all(name.startswith("step-") for kill in kills for name in kill["states"])
    assert losses(parts) == losses(whole) and len(losses(whole)) == 15
    assert records(parts) == records(whole)
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert all(same_files(parts / name, whole / name) for name in ("best", "last"))


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path: Path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run([*launcher, WORKER, "processes", tmp_path / "two"])
    data = clips(8, frames=(2, 5))
    plan = recipe(PLAIN, clips_per_batch=4, **TWO)
    train(fix_points(small_model(PLAIN)), data, plan, tmp_path / "one", clips(2), cpu=True)
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert [record["step"] for record in one] == [record["step"] for record in two] == [1, 2, 2, 3, 3]
    for ours, wanted in zip(two, one, strict=True):
        if "loss" in wanted:
            assert ours == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        else:
            assert ours["validation"] == pytest.approx(wanted["validation"], abs=1e-3)
    states = list((tmp_path / "two" / "state").iterdir())
    assert [path.name for path in states] == ["step-00000003"]
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {path.name for path in states[0].iterdir()}
    with pytest.raises(ValueError, match="begun with 4 clips a step, now there are 2"):
        plan = recipe(PLAIN, clips_per_batch=1, accumulation_steps=2, **TWO)
        train(small_model(PLAIN), data, plan, tmp_path / "two", clips(2), resume=True, cpu=True)
    # Two processes stopped in the middle of an epoch; one process alone goes on with the rows that are left.
    longer = {**TWO, "max_steps": 5}
    plans = {"one": recipe(PLAIN, clips_per_batch=4, **longer)}
    plans["two"] = recipe(PLAIN, clips_per_batch=2, accumulation_steps=2, **longer)
    for name, plan in plans.items():
        train(fix_points(small_model(PLAIN)), data, plan, tmp_path / name, clips(2), resume=True, cpu=True)
    for ours, wanted in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        if "loss" in wanted:
            assert ours == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert len(losses(tmp_path / "two")) == 5

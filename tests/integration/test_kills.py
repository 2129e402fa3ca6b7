"""`predict` and `maskige` killed with SIGKILL and started again; programs/kills.py does it to all commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_and_started_again(tmp_path: Path) -> None:
    commands = ["predict", "maskige (films)", "maskige (data set)"]
    options = ["--kills", "2", "--seed", "3", "--keep", str(tmp_path / "work"), "--only", *commands]
    done = subprocess.run([sys.executable, str(PROGRAM), *options], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("predict", "maskige"))]
    assert [(row[-6], row[-2], row[-1]) for row in rows] == [("2", "yes", "0")] * 3
    masks = sorted((tmp_path / "work" / "predict" / "run-0" / "demo_clip_masks").iterdir())
    report = json.loads((tmp_path / "work" / "predict" / "run-0" / "demo_clip.json").read_text())
    assert len(masks) == len(report["frames"]) == 20  # of the run that was killed, not of the one before it

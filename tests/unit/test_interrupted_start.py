"""Ctrl-C before the command line has even been imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from combo_hf import starting


REPOSITORY = Path(__file__).resolve().parents[2]
# In place of the first large import: says that it runs, and turns an exception into another, as large modules do.
SLOW = """try:
    print('importing', flush=True)
    __import__('time').sleep(60)
except BaseException:
    raise OSError
"""
SCRIPT = "import sys\nfrom combo_hf.cli import main\nsys.exit(main())\n"  # what pip writes


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["-m", "combo_hf", "info"], 130, "combo-hf: interrupted\n"),
        (["{folder}/combo-hf", "info"], 130, "combo-hf: interrupted\n"),
        (["{folder}/other.py", "info"], 1, "ImportError: combo_hf needs a torch and a torchaudio"),  # not ours to end
    ],
)
def test_ctrl_c_while_importing(tmp_path: Path, command: list[str], code: int, message: str) -> None:
    (tmp_path / "torchaudio.py").write_text(SLOW)
    for name in ("combo-hf", "other.py"):
        (tmp_path / name).write_text(SCRIPT)
    # A shell's background job, as CI may be, hands down an ignored SIGINT; the child must start with the usual one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *(part.format(folder=tmp_path) for part in command)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert err == message if code == 130 else message in err


def test_a_spawned_worker_is_not_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports with the arguments of its parent, but is to clean up after itself."""
    monkeypatch.setattr(sys, "argv", ["combo-hf"])
    assert starting._is_command()
    monkeypatch.setattr(multiprocessing.current_process(), "name", "SpawnProcess-1")
    assert not starting._is_command()

"""Kills commands with SIGKILL at random moments, starts them again, and compares with a run that nobody disturbed.

    python tests/programs/kills.py [--kills 10] [--seed 1] [--only predict train] [--anew] [--keep FOLDER]

A command is started, killed after a random fraction of what it takes undisturbed, and started again as the manual
says: the same line, for `train` with --resume once the folder holds a run. When a run ends before its moment has come,
everything written is compared by SHA-256 with the undisturbed run's, and the next kills hit a new folder. Every run is
a process of its own, forked from one that has the libraries imported, so that the moments fall into the work and not
into seconds of imports (--anew: a new interpreter each time).

After every kill: each file with a final name must be readable to its end, and what the folder held before must be
there, as it was or as it becomes. At the end: nothing temporary, neither in the folder nor in that of the system.
The only thing left out of the comparison are the seconds in `metrics.jsonl`, which differ from run to run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package of this clone

TIMED = "seconds_per_step"
RECIPE = """
model: {preset: tiny, overrides: {image_size: 64, num_queries: 6, train_num_points: 64}}
data: {source: synthetic, kind: ms3, labels: binary, train_clips: 5, val_clips: 2, cache: CACHE}
max_steps: 10
clips_per_batch: 2
save_every: 1
eval_every: 4
log_every: 1
learning_rate: 1.0e-3
ema_decay: 0.9
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command to be killed.

    Attributes:
        command: (folder of the inputs, output folder) -> arguments of combo-hf.
        needs: names of inputs.
        before: (folder of the inputs, output folder) -> arguments of what fills that folder beforehand.
        late: file of the output and a text in it, from which on something short is done that must be hit, too: every
            second kill waits for it.
    """

    command: Callable[[Path, Path], list[Any]]
    needs: tuple[str, ...] = ()
    before: Callable[[Path, Path], list[Any]] | None = None
    late: tuple[str, bytes] | None = None

    def is_late(self, output: Path) -> bool:
        """Whether that text is there."""
        assert self.late is not None
        path = output / self.late[0]
        return path.is_file() and self.late[1] in path.read_bytes()


def predict(inputs: Path, output: Path) -> list[Any]:
    film = ROOT / "combo_hf" / "assets" / "demo_clip.mp4"
    return [
        "predict",
        film,
        "--model",
        ROOT / "combo_hf" / "assets" / "demo",
        "--output",
        output,
        "--fps",
        2,
        "--masks",
        "--json",
        "--sheet",
        "--device",
        "cpu",
    ]


def earlier_prediction(inputs: Path, output: Path) -> list[Any]:
    return [*predict(inputs, output), "--fps", 1]


def maskiges_of_films(inputs: Path, output: Path) -> list[Any]:
    return ["maskige", inputs / "rows" / "videos", "--output", output, "--cache", output / "cache"]


def maskiges_of_rows(inputs: Path, output: Path) -> list[Any]:
    return ["maskige", inputs / "rows", "--output", output]


def build(inputs: Path, output: Path, subset: str = "ms3") -> list[Any]:
    return ["data", "build", "--root", inputs / subset, "--subset", subset, "--output", output, "--rows-per-shard", 2]


def train(inputs: Path, output: Path) -> list[Any]:
    resume = ["--resume"] if (output / "recipe.yaml").is_file() else []
    recipe = inputs / "recipe.yaml"
    recipe.write_text(RECIPE.replace("CACHE", str(inputs / "cache")))
    return ["train", "--recipe", recipe, "--output", output, "--device", "cpu", *resume]


def evaluate(inputs: Path, output: Path) -> list[Any]:
    model = ROOT / "combo_hf" / "assets" / "demo"
    return ["evaluate", model, inputs / "rows", "--output", output, "--device", "cpu", "--sheet", 1]


CASES = {
    "predict": Case(predict, (), earlier_prediction),
    "maskige (films)": Case(maskiges_of_films, ("rows",)),
    "maskige (data set)": Case(maskiges_of_rows, ("rows",)),
    "data build": Case(build, ("ms3", "s4"), lambda inputs, output: build(inputs, output, "s4")),
    "train": Case(train, late=("metrics.jsonl", b'{"step": 10, "epoch"')),  # its evaluation, whose state is there
    "evaluate": Case(evaluate, ("rows",)),
    "data synthesize": Case(lambda inputs, output: ["data", "synthesize", *INPUTS["rows"], "--output", output]),
}
INPUTS = {
    "rows": ("--rows", "--maskiges", "superpixels", "--kind", "ms3", "--clips", 4),
    "ms3": ("--layout", "official", "--kind", "ms3", "--clips", 6),
    "s4": ("--layout", "official", "--kind", "s4", "--clips", 1),
}


class Runner:
    """Starts commands; one at a time."""

    def __init__(self, work: Path, anew: bool) -> None:
        self.log, self.temporary = work / "log.txt", work / "tmp"
        for name in ("tmp", "datasets"):
            (work / name).mkdir()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(work / "tmp")}
        environment |= {"HF_DATASETS_CACHE": str(work / "datasets"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--forker", str(self.log), *(["--anew"] if anew else [])]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._answer()

    def run(
        self, arguments: list[Any], moment: float | None = None, late: Callable[[], bool] = lambda: True
    ) -> tuple[bool, float]:
        """Whether the command ended by itself (True) or was killed at this moment, and the seconds it ran.

        Args:
            moment: seconds, counted from when `late` is true.

        Raises:
            RuntimeError: it failed.
        """
        self.process.stdin.write(json.dumps([str(argument) for argument in arguments]).encode() + b"\n")
        child, started = self._answer(), time.monotonic()
        while moment is not None and not late() and not select.select([self.process.stdout], [], [], 0.002)[0]:
            pass
        if moment is not None and not select.select([self.process.stdout], [], [], moment)[0]:
            os.kill(child, signal.SIGKILL)
        code = self._answer()
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {code}: {self.log.read_text()[-2000:]}")
        return code == 0, time.monotonic() - started

    def _answer(self) -> int:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that starts the others has ended: {self.log.read_text()[-2000:]}")
        return int(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def fork_on_demand(log: str, anew: bool) -> None:
    """One line of JSON in: arguments. Out: process id; when it has ended, exit code or minus the signal."""
    from combo_hf import cli

    if not anew:
        import accelerate  # noqa: F401
        import datasets  # noqa: F401

        import combo_hf.data.avsbench
        import combo_hf.evaluation.run
        import combo_hf.proposals.pregenerate
        import combo_hf.results.folder

        combo_hf.load_pipeline(device="cpu")
    print(0, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if anew:
                os.execv(sys.executable, [sys.executable, "-m", "combo_hf", *json.loads(line)])
            sys.exit(cli.main(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too; without the seconds of a training."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{key: line[key] for key in line if key != TIMED} for line in lines]).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def read_to_the_end(path: Path) -> None:
    """Raise what a damaged file raises; of lines that are added one by one, the last may be cut."""
    import numpy as np
    import pyarrow.parquet
    from PIL import Image
    from safetensors.numpy import load_file

    from combo_hf.media_combo import iter_clips

    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".mp4":
        list(iter_clips(path))
    elif path.suffix == ".parquet":
        pyarrow.parquet.read_table(path)
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            list(arrays.values())
    elif path.suffix == ".safetensors":
        load_file(path)


def damages(output: Path, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What a kill has spoilt: half files under final names, and things of before that are neither old nor new."""
    found = []
    for path in sorted(output.rglob("*")) if output.is_dir() else ():
        if path.is_file() and not hidden(path, output):
            try:
                read_to_the_end(path)
            except Exception as error:  # whatever a reader raises
                found.append(f"{path.relative_to(output)}: {type(error).__name__}: {error}")
    now = digests(output) if before else {}
    for place in {_place(name) for name in before}:
        parts = [{k: v for k, v in files.items() if _place(k) == place} for files in (now, before, after)]
        if parts[0] not in parts[1:]:
            found.append(f"{place}: neither as before nor as after")
    return found


def _place(name: str) -> str:
    """What changes as a whole: a file beside others, a folder of files."""
    return name.rpartition("/")[0] or name


def examine(case: Case, runner: Runner, work: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill a command until it has been killed often enough; a row of the table, and what was found wrong."""
    start, inputs, before = work / "before", work / "inputs", {}
    for name in case.needs:
        runner.run(["data", "synthesize", *INPUTS[name], "--output", inputs / name])
    if case.before is not None:
        runner.run(case.before(inputs, start))
        before = digests(start)

    def fresh(number: Any) -> Path:
        output = work / f"run-{number}"
        shutil.rmtree(inputs / "cache", ignore_errors=True)  # of a training: its clips
        if start.is_dir():
            shutil.copytree(start, output)
        return output

    whole = fresh("whole")
    _, seconds = runner.run(case.command(inputs, whole))
    after, row = digests(whole), {"kills": 0, "starts": 0, "folders": 0, "seconds": seconds}
    faults: list[str] = []
    while row["kills"] < kills:
        output, ended = fresh(row["folders"]), False
        row["folders"] += 1
        while not ended:
            moment = chance.random() * seconds if row["kills"] < kills else None
            late = {}
            if case.late is not None and moment is not None and row["kills"] % 2:
                moment, late = moment / 10, {"late": lambda output=output: case.is_late(output)}
            ended, _ = runner.run(case.command(inputs, output), moment, **late)
            row["starts"] += 1
            if not ended:
                row["kills"] += 1
                faults += damages(output, before, after)
        faults += [f"{path}: differs" for path, _ in set(digests(output).items()) ^ set(after.items())]
    left = [path for path in work.rglob(".*") if path.name.startswith((".partial", ".combo", ".old"))]
    left += [path for path in runner.temporary.iterdir() if not path.name.startswith("torchinductor_")]  # torch's own
    return row | {"left": len(left), "faults": faults + [f"left: {path}" for path in left]}


def run(arguments: argparse.Namespace, work: Path) -> int:
    """Everything; returns the number of faults."""
    print(f"seed {arguments.seed}\n")
    print(f"{'command':20}{'kills':>6}{'starts':>8}{'folders':>9}{'undisturbed s':>15}{'equal':>7}{'left over':>11}")
    faults, runner = 0, Runner(work, arguments.anew)
    for name in arguments.only or CASES:
        place = work / name.replace(" ", "-")
        (place / "inputs").mkdir(parents=True)
        row = examine(CASES[name], runner, place, arguments.kills, random.Random(arguments.seed))
        equal = "no" if row["faults"] else "yes"
        counts = f"{row['kills']:6}{row['starts']:8}{row['folders']:9}{row['seconds']:15.1f}"
        print(f"{name:20}{counts}{equal:>7}{row['left']:11}")
        print("".join(f"  {fault}\n" for fault in row["faults"][:20]), end="", flush=True)
        faults += len(row["faults"])
    runner.close()
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="of every command, default 10")
    parser.add_argument("--seed", type=int, default=1, help="of the moments, default 1")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="COMMAND", help=", ".join(CASES))
    parser.add_argument("--anew", action="store_true", help="a new interpreter for every run, as on the command line")
    parser.add_argument("--keep", type=Path, help="new folder for everything written; default: a temporary one")
    parser.add_argument("--forker", metavar="LOG", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.forker:
        return fork_on_demand(arguments.forker, arguments.anew)
    if not hasattr(os, "fork"):
        parser.error("needs fork and SIGKILL")
    work = (arguments.keep or Path(tempfile.mkdtemp(prefix="combo-kills-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        faults = run(arguments, work)
    finally:
        if arguments.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{faults} fault(s); {usage.ru_utime + usage.ru_stime:.0f} s of CPU")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

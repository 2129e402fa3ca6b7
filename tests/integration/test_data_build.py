"""Building parquet from AVSBench folders, with real processes that are killed; the command line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import yaml

from combo_hf.cli import main
from combo_hf.data.avsbench import (
    SPLITS,
    SUBSETS,
    build_dataset,
    find_home,
    push_dataset,
    read_entries,
    read_rows,
    subset_rule,
)
from combo_hf.data.row_format import row_features
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.files.pool import run_tasks


KILLS = 10
PROGRAM = """
import sys
from combo_hf.data.avsbench import build_dataset

if __name__ == "__main__":
    build_dataset(sys.argv[1], "ms3", sys.argv[2], rows_per_shard=3, num_processes=2, progress=False)
"""
FORKER = """
import os
import sys

import datasets, pyarrow.parquet, soundfile
from combo_hf.data.avsbench import build_dataset

for line in sys.stdin:
    child = os.fork()
    if not child:
        build_dataset(sys.argv[1], "ms3", line.strip(), rows_per_shard=3, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of MS3; not to be changed."""
    root = tmp_path_factory.mktemp("tree")
    write_official(root, "ms3", {"train": 2, "val": 1, "test": 1}, seed=5, size=64)
    return root


@pytest.fixture(scope="module")
def large_tree(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """126 clips: the same files under other names, in an order of the csv file that is not that of the names."""
    root, home, rule = tmp_path_factory.mktemp("large"), find_home(tree, "ms3"), subset_rule("ms3")
    clip = read_entries(home, "ms3", ("train",))[0]
    copies = [
        replace(clip, name=f"{split}_{number:04d}_0", split=split)
        for split, count in (("train", 120), ("val", 4), ("test", 2))
        for number in range(count)
    ]
    for copy in copies:
        for template in (rule.frame, rule.mask, rule.wav):
            for k in range(5 if "{k}" in template else 1):
                target = copy.path(root, rule, template, k)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(clip.path(home, rule, template, k), target)
    random.Random(0).shuffle(copies)
    (root / rule.meta).write_text("\n".join(["name,split", *(f"{copy.name},{copy.split}" for copy in copies)]) + "\n")
    return root


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a build."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def alive(group: int) -> bool:
    """Whether any process of a group runs (a zombie does not)."""
    result = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    return any(line.strip() and not line.strip().startswith("Z") for line in result.stdout.splitlines())


class Builder:
    """Builds in processes of their own, which a process that has everything imported forks: a second, not ten."""

    def __init__(self, tree: Path) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", FORKER, str(tree)], env=environment, **pipes)

    def start(self, output: Path) -> int:
        """Begin a build; returns the process id."""
        self.process.stdin.write(f"{output}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """How the build ended: exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Poll until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the build does not get on, or ended before it could be killed"
        time.sleep(0.002)


def _is_writing(folder: Path, shards: int, process: int) -> bool:
    """Enough shards are complete, and the process has begun another."""
    return len(list(folder.glob("[!.]*.parquet"))) >= shards and any(folder.glob(f".partial-*-{process}-*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_ten_times(large_tree: Path, tmp_path: Path) -> None:
    """SIGKILL at ten random moments, then a last run: the bytes of one undisturbed run, no row lost or doubled."""
    rng, output, builder = random.Random(20), tmp_path / "killed", Builder(large_tree)
    folder, partials_seen, complete = output / "data" / "ms3", 0, []
    for _ in range(KILLS):
        process = builder.start(output)
        target = len(list(folder.glob("[!.]*.parquet"))) + rng.randrange(4)
        wait_for(partial(_is_writing, folder, target, process))
        time.sleep(rng.random() * 0.05)
        os.kill(process, signal.SIGKILL)
        assert builder.status() == -signal.SIGKILL
        partials_seen += any(folder.glob(f".partial-*-{process}-*"))
        complete.append(len(list(folder.glob("[!.]*.parquet"))))
        assert not (output / "README.md").exists()
    assert partials_seen, "no kill fell into the writing of a file"
    assert complete == sorted(complete), "a complete file was lost"
    process = builder.start(output)
    assert builder.status() == 0
    builder.start(tmp_path / "whole")
    assert builder.status() == 0
    builder.close()
    assert digests(output) == digests(tmp_path / "whole")
    rows = datasets.load_dataset(str(output), "ms3", cache_dir=str(tmp_path / "cache"))
    for split in SPLITS:
        assert rows[split]["video_id"][:] == [entry.name for entry in read_entries(large_tree, "ms3", (split,))]


@pytest.mark.slow
def test_processes_end_with_their_owner(large_tree: Path, tmp_path: Path) -> None:
    """Two workers: the owner is killed, they go too; a run of one process finishes what they began."""
    program, output = tmp_path / "program.py", tmp_path / "killed"
    program.write_text(PROGRAM)  # a file, since spawned processes read it again
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(program), str(large_tree), str(output)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    folder = output / "data" / "ms3"
    wait_for(lambda: any(folder.glob("[!.]*.parquet")))
    assert alive(process.pid)
    process.kill()  # the owner alone
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not alive(process.pid), 60)
    report = build_dataset(large_tree, "ms3", output, rows_per_shard=3, progress=False)
    assert report.kept
    build_dataset(large_tree, "ms3", tmp_path / "whole", rows_per_shard=3, progress=False)
    assert digests(output) == digests(tmp_path / "whole")


def test_killed_worker() -> None:
    """A worker that is killed (as the system does when memory runs out) is one clear error."""
    with pytest.raises(ChildProcessError, match="use fewer processes and run it again"):
        list(run_tasks(os._exit, [1, 2, 3], num_processes=2))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_interrupts_go_to_the_owner_alone_and_workers_load_little() -> None:
    """Else workers that still import would answer a Ctrl-C with a traceback each; and imports take them seconds."""
    blocked = "__import__('signal').SIGINT in __import__('signal').pthread_sigmask(0, [])"
    state = f"({blocked}, 'torch' in __import__('sys').modules)"
    assert list(run_tasks(eval, [state] * 3, num_processes=2)) == [(True, False)] * 3
    assert eval(state) == (False, True)


def test_interrupted(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a file: nothing partial remains, and the next run gives the same bytes."""
    import combo_hf.data.avsbench_build as module

    reader, calls = module.entry_to_row, []

    def interrupt(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return reader(*arguments)

    build_dataset(tree, "ms3", tmp_path / "whole", rows_per_shard=2, progress=False)
    monkeypatch.setattr(module, "entry_to_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(tree, "ms3", tmp_path / "again", rows_per_shard=2, progress=False)
    names = {path.name for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert names == {"build-ms3.json", "train-00000-of-00001.parquet"}
    report = build_dataset(tree, "ms3", tmp_path / "again", rows_per_shard=2, progress=False)
    assert (report.written, report.kept) == (2, 1)
    assert digests(tmp_path / "whole") == digests(tmp_path / "again")


def test_sample_round_trip(avs_sample: Path, tmp_path: Path) -> None:
    """All three subsets in one folder, through `datasets`: features, ids, and the bytes of every picture and sound."""
    for subset in SUBSETS:
        build_dataset(avs_sample, subset, tmp_path / "out", rows_per_shard=2, progress=False)
    for subset in SUBSETS:
        loaded = datasets.load_dataset(str(tmp_path / "out"), subset, cache_dir=str(tmp_path / "cache"))
        assert sorted(loaded) == sorted(SPLITS)
        for split in SPLITS:
            assert loaded[split].features == row_features()
            wanted = list(read_rows(avs_sample, subset, split))
            raw = datasets.Image(decode=False)
            lists = {name: datasets.List(raw) for name in ("frames", "masks", "maskiges")}
            rows = loaded[split].cast(datasets.Features(dict(loaded[split].features) | lists))
            assert [dict(row) for row in rows] == wanted
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "cc-by-nc-4.0"
    assert [config["config_name"] for config in header["configs"]] == list(SUBSETS)
    assert "| s4 | train | 6 | 3452 |" in card
    assert "OpenNLPLab/AVSBench" in card


CHANGES = {
    "rows_per_shard (was 2, now 3)": {"rows_per_shard": 3},
    "maskiges (was auto, now no)": {"maskiges": "no"},
    "splits (was ['train', 'val', 'test'], now ['train'])": {"splits": ["train"]},
}


@pytest.mark.parametrize("message", CHANGES)
def test_other_settings(tree: Path, tmp_path: Path, message: str) -> None:
    """Going on with other settings is refused; starting anew is not, and leaves nothing of the old."""
    settings = {"rows_per_shard": 2, "progress": False}
    build_dataset(tree, "ms3", tmp_path / "out", **settings)
    before = digests(tmp_path / "out")
    changed = settings | CHANGES[message]
    with pytest.raises(ValueError) as caught:
        build_dataset(tree, "ms3", tmp_path / "out", **changed)
    assert message in str(caught.value)
    assert digests(tmp_path / "out") == before
    build_dataset(tree, "ms3", tmp_path / "out", **changed, resume=False)
    build_dataset(tree, "ms3", tmp_path / "new", **changed)
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


def test_other_clips(tree: Path, tmp_path: Path) -> None:
    """A csv file that changed in between is noticed."""
    root = tmp_path / "tree"
    shutil.copytree(find_home(tree, "ms3"), root)
    build_dataset(root, "ms3", tmp_path / "out", progress=False)
    meta = root / "ms3_meta_data.csv"
    meta.write_text(meta.read_text().replace(",val", ",train"))
    with pytest.raises(ValueError, match=r"clips .*the clips of the csv file"):
        build_dataset(root, "ms3", tmp_path / "out", splits=["train", "test"], progress=False)


def test_damaged_shard_is_written_again(tree: Path, tmp_path: Path) -> None:
    """A file cut by a full disk or a power cut does not count as complete."""
    build_dataset(tree, "ms3", tmp_path / "out", progress=False)
    before = digests(tmp_path / "out")
    path = tmp_path / "out" / "data" / "ms3" / "val-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    report = build_dataset(tree, "ms3", tmp_path / "out", progress=False)
    assert (report.written, report.kept) == (1, 2)
    assert digests(tmp_path / "out") == before


def test_damaged_clip(tree: Path, tmp_path: Path) -> None:
    """It stops the build by name; or it is left out and listed; once it is whole again, its file is written anew."""
    root = tmp_path / "tree"
    shutil.copytree(find_home(tree, "ms3"), root)
    clip = read_entries(root, "ms3", ("train",))[1]
    mask = clip.path(root, subset_rule("ms3"), subset_rule("ms3").mask, 2)
    whole = mask.read_bytes()
    mask.write_bytes(whole[:30])
    with pytest.raises(ValueError, match=f"ms3 train clip {clip.name}: {clip.name}_3.png is damaged"):
        build_dataset(root, "ms3", tmp_path / "out", progress=False)
    report = build_dataset(root, "ms3", tmp_path / "out", on_error="skip", progress=False)
    assert report.rows == {"train": 1, "val": 1, "test": 1}
    assert [name for name, _ in report.skipped] == [clip.name]
    assert f"- ms3 train: {clip.name}" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="is damaged"):
        build_dataset(root, "ms3", tmp_path / "out", progress=False)
    mask.write_bytes(whole)
    report = build_dataset(root, "ms3", tmp_path / "out", progress=False)
    assert (report.rows["train"], report.skipped) == (2, ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "s5"}, "unknown subset 's5'"),
        ({"splits": []}, "splits must be different ones"),
        ({"splits": ["train", "train"]}, "splits must be different ones"),
        ({"splits": ["dev"]}, "unknown split 'dev'"),
        ({"num_processes": 0}, "1 or more"),
        ({"rows_per_shard": 0}, "1 or more"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"maskiges": "yes"}, "it has no Maskiges"),
        ({"subset": "avss"}, "no subset avss here"),
    ],
)
def test_bad_build_arguments(tree: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Every refusal says what was wrong."""
    with pytest.raises(ValueError) as caught:
        build_dataset(**{"root": tree, "subset": "ms3", "output": tmp_path / "out", "progress": False} | options)
    assert message in str(caught.value)


def test_folder_of_others(tree: Path, tmp_path: Path) -> None:
    """A folder with other files is not touched."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no build"):
        build_dataset(tree, "ms3", tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="no complete build"):
        push_dataset(tmp_path, "me/x", private=True)
    with pytest.raises(ValueError, match="may not be handed on"):
        push_dataset(tmp_path, "me/x", private=False)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """synthesize the official folders, check them, build them, read them."""
    root, output = tmp_path / "AVSBench", tmp_path / "out"
    arguments = ["data", "synthesize", "--layout", "official", "--output", str(root), "--kind", "s4", "--clips", "2"]
    assert main(arguments) == 0
    assert main(["data", "check", str(root)]) == 0
    assert "0 error(s), 3 note(s)" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--strict", "--quick"]) == 1
    build = ["data", "build", "--subset", "s4", "--root", str(root), "--output", str(output)]
    assert main(build) == 0
    assert "s4: train 2, val 2, test 2 rows" in capsys.readouterr().out
    assert main([*build, "--push-to-hub", "me/x"]) == 2
    assert "--private" in capsys.readouterr().err
    table = pyarrow.parquet.read_table(output / "data" / "s4" / "test-00000-of-00001.parquet")
    assert table.num_rows == 2
    next(path for path in root.rglob("*_2.png") if "visual_frames" in path.parts).unlink()
    assert main(["data", "check", str(root)]) == 1
    assert "frame-missing" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2


def test_settings_name_no_place(tree: Path, tmp_path: Path) -> None:
    """What is uploaded tells nothing about this machine."""
    build_dataset(tree, "ms3", tmp_path / "out", progress=False)
    for path in (tmp_path / "out" / "README.md", tmp_path / "out" / "build-ms3.json"):
        assert str(tmp_path) not in path.read_text()
        assert str(tree) not in path.read_text()
    assert json.loads((tmp_path / "out" / "build-ms3.json").read_text())["subset"] == "ms3"

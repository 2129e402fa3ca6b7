"""`combo-hf evaluate`: exit codes, kill -9 and going on, several processes; bundled weights on a few small clips."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from combo_hf import BUNDLED_MODEL, cli
from combo_hf.data.synthetic.dataset import write_dataset


CLIPS = 6
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """Folder with the data sets ms3 and broken (its last clip has a damaged frame), and a finished evaluation."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("évaluation 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
        write_dataset("ms3", root / "ms3", {"test": CLIPS}, 3, ("rows",), 96, num_frames=2, maskiges="superpixels",
                      progress=False)  # fmt: skip
        break_last_clip(root / "ms3", root / "broken")
        assert cli.main(command(root / "ms3", root / "whole")) == 0
        yield root


def break_last_clip(source: Path, target: Path) -> None:
    import pyarrow.parquet

    (table,) = [pyarrow.parquet.read_table(path) for path in (source / "data").glob("*.parquet")]
    rows = table.to_pylist()
    rows[-1]["frames"][1]["bytes"] = rows[-1]["frames"][1]["bytes"][:50]
    target.mkdir()
    broken = pyarrow.Table.from_pylist(rows, schema=table.schema)
    pyarrow.parquet.write_table(broken, target / "test-00000-of-00001.parquet")


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        str(BUNDLED_MODEL),
        str(data),
        "--output",
        str(output),
        "--device",
        "cpu",
        "--sheet",
        "1",
        *more,
    ]


def run(capsys, arguments: list[str]) -> tuple[int, str, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_report_on_the_screen_and_in_the_folder(capsys, place: Path):
    before = contents(place / "whole")
    code, out, err = run(capsys, command(place / "ms3", place / "whole"))
    assert (code, err) == (0, "")
    results = json.loads((place / "whole" / "results.json").read_text())
    assert f"M_J             {100 * results['scores']['M_J']:6.2f}" in out and f"{CLIPS} videos" in out
    assert str(place / "whole") in out and results["model"] == str(BUNDLED_MODEL)
    assert contents(place / "whole") == before  # a finished evaluation, asked for again
    with Image.open(io.BytesIO(before["sheet.png"])) as sheet:
        assert sheet.height > 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate"], "model, data"),
        (["evaluate", "nosuch", "DATA"], "nosuch: no such folder"),
        (["evaluate", "MODEL", "nosuch"], "nosuch is no folder"),
        (["evaluate", "MODEL", "DATA", "--split", "train"], "train"),
        (["evaluate", "MODEL", "DATA", "--protocol", "coco"], "protocol: wanted one of"),
        (["evaluate", "MODEL", "DATA", "--scores", "both"], "scores: wanted one of"),
        (["evaluate", "MODEL", "DATA", "--batch-size", "0"], "--batch-size"),
        (["evaluate", "MODEL", "DATA", "--device", "nosuch"], "nosuch"),
        (["evaluate", "MODEL", "DATA", "--output", "DATA"], "holds files that are no evaluation"),
        (["evaluate", "MODEL", "DATA", "--output", "WHOLE", "--silence-audio"], "silence_audio was False, is True"),
        (["evaluate", "MODEL", "BROKEN"], "clip synthetic_ms3_test_3_000005: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, place: Path, tmp_path: Path, arguments: list, words: str):
    places = {"MODEL": BUNDLED_MODEL, "DATA": place / "ms3", "WHOLE": place / "whole", "BROKEN": place / "broken"}
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    if "--output" not in arguments and len(arguments) > 1:
        arguments += ["--output", str(tmp_path / "out")]
    before = contents(place / "whole")
    code, _, err = run(capsys, arguments)
    assert code == 2 and err.startswith("combo-hf: error: ") and err.count("\n") == 1 and words in err, err
    assert contents(place / "whole") == before


def spawn(arguments: list[str]) -> subprocess.Popen:
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SLOW = """
import sys, time
from combo_hf import cli
from combo_hf.evaluation import run as evaluation_run
predict = evaluation_run.predict_class_maps
evaluation_run.predict_class_maps = lambda *arguments: (time.sleep(1), predict(*arguments))[1]
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
def test_killed_with_9_and_run_again_gives_the_same_files(place: Path, tmp_path: Path):
    output = tmp_path / "out"
    child = spawn(["-c", SLOW, *command(place / "ms3", output)])
    try:
        deadline = time.monotonic() + 300
        while child.poll() is None and time.monotonic() < deadline:
            parts = list(output.glob("*.part-*")) if output.is_dir() else []
            if any(part.read_bytes().count(b"\n") >= 2 for part in parts):
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    finally:
        child.communicate()
    assert child.returncode == -signal.SIGKILL and not (output / "results.json").exists()
    done = b"".join(path.read_bytes() for path in output.glob("*.part-*")).count(b"\n")
    assert 2 <= done < CLIPS
    assert cli.main(command(place / "ms3", output)) == 0
    assert contents(output) == contents(place / "whole")


@pytest.mark.slow
def test_two_processes_under_torchrun_give_the_same_files(place: Path, tmp_path: Path):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "combo_hf"]
    child = spawn([*start, *command(place / "ms3", tmp_path / "out")])
    out, err = child.communicate(timeout=500)
    assert child.returncode == 0, err
    assert out.count("written to") == 1
    assert contents(tmp_path / "out") == contents(place / "whole")


@pytest.mark.slow
def test_error_in_one_of_several_processes_is_one_line(capsys, place: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output = tmp_path / "out"
    code, _, err = run(capsys, command(place / "broken", output, "--num-processes", "2"))
    assert code == 2 and err.count("\n") == 1 and "clip synthetic_ms3_test_3_000005: " in err
    assert not (output / "results.json").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(capsys, command(place / "ms3", output, "--num-processes", "2"))
    assert code == 2 and "several processes already" in err

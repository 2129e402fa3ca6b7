"""Scripts of examples/ on bad input: one line as of the commands, a traceback only with --debug."""

import subprocess
import sys
from pathlib import Path

import pytest

from combo_hf.cli import run_script


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("a: wrong\nsecond line"), 2, "tool.py: error: a: wrong\n"),
        (FileNotFoundError(2, "No such file", "/x/film.mp4"), 2, "tool.py: error: film.mp4: No such file\n"),
        (ZeroDivisionError("by zero"), 3, "tool.py: error: unexpected ZeroDivisionError: by zero (--debug "),
        (KeyboardInterrupt(), 130, "tool.py: interrupted\n"),
        (None, 0, ""),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, code, text):
    monkeypatch.setattr(sys, "argv", ["/x/tool.py", "--size", "3"])

    def script():
        assert sys.argv[1:] == ["--size", "3"]
        if error is not None:
            raise error

    assert run_script(script) == code
    written = capsys.readouterr().err
    assert written.startswith(text) and written.count("\n") == (error is not None)
    monkeypatch.setattr(sys, "argv", ["/x/tool.py", "--debug", "--size", "3"])
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            run_script(script)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build_avsbench.py", "--root", "nowhere", "--output", "x"], "nowhere: no such folder"),
        (["figures.py", "--index", "a"], "argument --index: invalid int value: 'a'"),
    ],
)
def test_examples(tmp_path, arguments, message):
    name, *rest = arguments
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES.parent)!r}); import runpy; sys.argv = {arguments!r};"
    command = [sys.executable, "-c", f"{code} runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"{name}: error: {message}")


def test_every_example_ends_so():
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.startswith("# %%"):  # the twin of a notebook
            continue
        assert "sys.exit(run_script(main))" in text or "sys.exit(cli.main(" in text, path.name

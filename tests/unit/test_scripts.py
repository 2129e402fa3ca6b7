"""Scripts of examples/ on bad input: one line as of the commands, a traceback only with --debug."""

import runpy
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
def test_examples(tmp_path, monkeypatch, capsys, arguments, message):
    name, *rest = arguments
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="^2$"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"{name}: error: {message}"), err


def test_every_example_ends_so():
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.startswith("# %%"):  # the twin of a notebook
            continue
        assert "sys.exit(run_script(main))" in text or "sys.exit(cli.main(" in text, path.name

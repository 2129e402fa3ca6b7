"""What could run a stranger's code, or start another program, is called in the few places that are listed here."""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path

import pytest

from combo_hf import cli
from combo_hf.results.folder import predict_to_folder, source_name


ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    [*(ROOT / "combo_hf").rglob("*.py"), *(ROOT / "space").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
)

FORBIDDEN = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|exec\w*|spawn\w*|startfile|fork)|subprocess\.\w+"
    r"|(c?pickle|_pickle|dill|cloudpickle|marshal|shelve|joblib|jsonpickle)\.(load|loads|Unpickler|open)|runpy\.\w+"
    r"|torch\.(load|hub\.\w+|jit\.load|package\.\w+|utils\.model_zoo\.\w+)|torch\.serialization\.(safe|add_safe)_globals"
    r"|(np|numpy)\.(load|lib\.format\.read_array|fromregex)|pd\.read_pickle|pandas\.read_pickle"
    r"|yaml\.(load|load_all|unsafe_load|full_load|UnsafeLoader|FullLoader|Loader)|shutil\.unpack_archive"
    r"|(.*\.)?extractall|tarfile\.\w+|tempfile\.mktemp|ctypes\.\w+|importlib\.import_module|import_module"
)
# (file, call) -> keywords that the call must have, or None: looked at, and harmless for the reason that follows.
ALLOWED = {
    ("combo_hf/conversion/files.py", "torch.load"): {"weights_only": True},
    ("combo_hf/conversion/files.py", "torch.serialization.safe_globals"): None,  # replacements that check, no numpy
    ("combo_hf/conversion/files.py", "pickle.Unpickler"): None,  # find_class refuses all but a table of names
    # runs on an endpoint that somebody made for this repository, whose code it is
    ("combo_hf/publishing/handler.py", "trust_remote_code"): None,
    ("examples/train_sound_encoder.py", "torch.load"): {"weights_only": True},
    ("examples/train_sound_encoder.py", "np.load"): {"allow_pickle": False},
    ("combo_hf/files/npz.py", "np.load"): {"allow_pickle": False},
    ("combo_hf/files/typed_yaml.py", "yaml.load"): None,  # a loader derived from SafeLoader
    ("combo_hf/benchmarking/timing.py", "ctypes.CDLL"): None,  # the C library, by a fixed name
    ("space/housekeeping.py", "ctypes.CDLL"): None,  # the same
    ("combo_hf/files/ahead.py", "ctypes.c_ulong"): None,  # the number of its own thread, which it ends
    ("combo_hf/files/ahead.py", "ctypes.py_object"): None,
    # module names of the package's own tables
    ("combo_hf/__init__.py", "importlib.import_module"): None,
    ("combo_hf/commands/proposals.py", "importlib.import_module"): None,
    ("combo_hf/conversion/exporting.py", "importlib.import_module"): None,
    ("combo_hf/proposals/__init__.py", "importlib.import_module"): None,
    ("combo_hf/proposals_combo.py", "importlib.import_module"): None,
}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes; what is no name becomes `?`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(code: str, file: str) -> list[str]:
    """Uses of forbidden names, also as bases and under other names, and keywords that switch safety off."""
    found, aliases = [], {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            parent = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            aliases |= {
                name.asname or name.name: f"{parent}{name.name}" for name in node.names if parent or name.asname
            }
    for node in ast.walk(tree):
        uses = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        keywords = {entry.arg: getattr(entry.value, "value", "?") for entry in getattr(node, "keywords", [])}
        for name in map(dotted, uses):
            first, dot, rest = name.partition(".")
            known = {name, f"{aliases.get(first, first)}{dot}{rest}"}
            if any(FORBIDDEN.fullmatch(spelling) for spelling in known):
                wanted = [ALLOWED[file, spelling] or {} for spelling in known if (file, spelling) in ALLOWED]
                if not wanted or any(keywords.get(key) != value for key, value in wanted[0].items()):
                    found.append(f"{file}:{node.lineno}: {name}")
        unsafe = {
            "shell": True,
            "weights_only": False,
            "allow_pickle": True,
            "trust_remote_code": True,
            "verify": False,
        }
        found += [
            f"{file}:{node.lineno}: {key}"
            for key, value in unsafe.items()
            if keywords.get(key, not value) is value and (file, key) not in ALLOWED
        ]
    return found


def test_the_package() -> None:
    found = [danger for path in FILES for danger in dangers(path.read_text("utf-8"), str(path.relative_to(ROOT)))]
    rooms = {path.relative_to(ROOT / "combo_hf").parts[0] for path in FILES if path.is_relative_to(ROOT / "combo_hf")}
    assert found == [] and rooms >= {"data", "training", "conversion", "pipeline_combo.py"}


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec(text)", "os.system('x')", "subprocess.run(['x'])", "pickle.load(file)", "torch.load(path)",
        "from pickle import loads\nloads(data)", "import pickle as p\np.loads(data)", "np.load(path)",
        "from torch import load as read\nread(path)", "class A(pickle.Unpickler): pass", "yaml.load(text)",
        "archive.extractall(folder)", "zipfile.ZipFile(path).extractall()", "run(words, shell=True)",
        "importlib.import_module(name)", "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)", "x.y(weights_only=False)", "tempfile.mktemp()",
    ],
)  # fmt: skip
def test_dangers_are_seen(code: str) -> None:
    assert dangers(code, "combo_hf/other.py")


def test_allowed_calls_keep_their_conditions() -> None:
    file = "combo_hf/conversion/files.py"
    assert dangers("torch.load(path, weights_only=True)", file) == []
    assert dangers("torch.load(path)", file) and dangers("torch.load(path, weights_only=flag)", file)
    used = {place: (ROOT / place[0]).read_text("utf-8") for place in ALLOWED}
    assert all(name.rpartition(".")[2] in text for (_, name), text in used.items())


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\\b", "..", "a\0b"])
def test_results_stay_in_their_folder(tiny_pipe, film: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name: wanted the name of a file without folders"):
        predict_to_folder(tiny_pipe, film, tmp_path / "out", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (b"\0" * 100, "video"), ("/a/b/../c.d.mp4", "c.d"), ("..", "video"), ("https://u:p@host/../..?key=s", "video"),
        ("https://host/%2e%2e%2fx.mp4", "x"), ("https://host/a%00b.mp4", "a b"), ("C:\\films\\x.mp4", None),
    ],
)  # fmt: skip
def test_names_of_results(source: object, name: str | None) -> None:
    found = source_name(source)
    assert found and found == Path(found).name and found not in (".", "..")
    assert not re.search(r"[/\\\x00]", found) and not {"u:p", "key=s"} & {found}
    assert name is None or found == name


def test_no_secret_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
                            film: Path, tiny_folder: str) -> None:  # fmt: skip
    """Neither the token of the Hub nor the keys of an address are in what is printed or written."""
    secrets = ("hf_" + "S" * 34, "KEYOFTHEADDRESS")
    monkeypatch.setenv("HF_TOKEN", secrets[0])
    monkeypatch.setenv("COMBO_PUBLIC_ADDRESSES_ONLY", "1")
    address = f"https://me:{secrets[1]}@127.0.0.1/film.mp4?token={secrets[1]}"
    calls = [
        ["predict", str(film), "--output", str(tmp_path / "out"), "--model", tiny_folder, "--json", "--sheet"],
        ["predict", address, "--output", str(tmp_path / "no"), "--model", tiny_folder],
        ["info", tiny_folder],
        ["push", tiny_folder, "me/model", "--dry-run"],
        ["push", str(tmp_path / "nosuch"), "me/model"],
    ]
    codes = [cli.main(call) for call in calls]
    shown = "".join(capsys.readouterr())
    assert codes == [0, 2, 0, 0, 2], shown
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert written and not any(secret in shown or secret.encode() in written for secret in secrets)


def test_temporary_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, film: Path, tiny_folder: str
) -> None:
    """Whether it works or not, the system's folder for temporary files is as empty afterwards as before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(film.read_bytes()[:2000])
    calls = [
        (["predict", str(film), "--output", str(tmp_path / "out"), "--model", tiny_folder, "--masks", "--json"], 0),
        (["predict", str(damaged), "--output", str(tmp_path / "no"), "--model", tiny_folder], 2),
        (["convert", str(damaged), "--preset", "r50-s4", "--output", str(tmp_path / "model")], 2),
        (["push", tiny_folder, "me/model", "--dry-run"], 0),
        (["data", "synthesize", "--kind", "s4", "--clips", "1", "--output", str(tmp_path / "data")], 0),
    ]  # fmt: skip
    for call, code in calls:
        assert cli.main(call) == code
        assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"tmp", "out", "data", "damaged.mp4"}

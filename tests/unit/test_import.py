"""What `import combo_hf` costs and does, and the rules for the files that ship with a checkpoint."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


PACKAGE = Path(__file__).resolve().parents[2] / "combo_hf"
CORE = sorted(path for path in PACKAGE.glob("*_combo*.py"))
OPTIONAL = set("torchaudio torchvision av cv2 scipy skimage soundfile datasets evaluate gradio tqdm".split())
ENTRY_FILES = {
    f"{name}_combo.py"
    for name in "configuration modeling processing image_processing feature_extraction pipeline".split()
}
SAVING_FILES = {"configuration_combo.py", "modeling_combo.py", "processing_combo.py", "pipeline_combo.py"}
REQUIRED = {"torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub"}


def run_python(code, *paths, **options):
    search = "".join(f"sys.path.insert(0, {str(path)!r});" for path in (PACKAGE.parent, *paths))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys;{search}{code}"], capture_output=True, text=True, **options
    )


def test_import_is_quiet_and_light():
    """No module of this package but the core, and nothing that is optional, is loaded by the import.

    Names are looked up afterwards; one that does not exist is an error of the usual kind.
    """
    code = (
        "import combo_hf; print(*[name for name in sys.modules if name.split('.')[0] in {watched!r}], sep='\\n');"
        "assert [getattr(combo_hf, name) for name in combo_hf.__all__];"
        "assert set(combo_hf.__all__) <= set(dir(combo_hf));"
        "combo_hf.nosuch"
    )
    done = run_python(code.format(watched={"combo_hf", "gradio", "evaluate", "datasets", "skimage", "matplotlib"}))
    assert set(done.stdout.split()) <= {"combo_hf", *(f"combo_hf.{path.stem}" for path in CORE)}
    *_, error = done.stderr.splitlines()
    assert error == "AttributeError: module 'combo_hf' has no attribute 'nosuch'"
    assert done.stderr.startswith("Traceback"), "a warning or a word before the error"


@pytest.mark.parametrize(
    "program, words, command",
    [
        ("/env/bin/combo-hf", ["python3", "/env/bin/combo-hf", "info"], True),
        ("/env/bin/combo-hf", ["python3", "-c", "from multiprocessing.spawn import ..."], False),  # its worker process
        ("-m", ["python3", "-W", "error", "-m", "combo_hf", "info"], True),
        ("-m", ["python3", "-m", "pytest", "combo_hf"], False),
        ("/home/me/train.py", ["python3", "/home/me/train.py", "combo-hf"], False),
        ("", ["python3"], False),
    ],
)
def test_only_the_command_registers_later(monkeypatch, program, words, command):
    import combo_hf

    monkeypatch.setattr(sys, "argv", [program, "info"])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert combo_hf._is_command() is command


def test_editors_see_the_public_names():
    import combo_hf

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    shown = {alias.name: node.module for node in block.body for alias in node.names}
    assert shown == combo_hf._PUBLIC
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)


def test_auto_classes_know_the_architecture(tiny_folder):
    import transformers

    import combo_hf

    for auto, expected in [
        (transformers.AutoConfig, combo_hf.ComboConfig),
        (transformers.AutoModel, combo_hf.ComboForAudioVisualSegmentation),
        (transformers.AutoModelForUniversalSegmentation, combo_hf.ComboForAudioVisualSegmentation),
        (transformers.AutoImageProcessor, combo_hf.ComboImageProcessor),
        (transformers.AutoFeatureExtractor, combo_hf.ComboFeatureExtractor),
        (transformers.AutoProcessor, combo_hf.ComboProcessor),
    ]:
        assert type(auto.from_pretrained(tiny_folder)) is expected


def test_a_task_without_a_model_loads_the_bundled_weights(tiny_folder, monkeypatch):
    """The registry's default is a folder, so nothing is asked of a network."""
    import transformers
    from transformers.pipelines import PIPELINE_REGISTRY

    import combo_hf

    task = PIPELINE_REGISTRY.supported_tasks[combo_hf.TASK]
    assert task["default"]["model"][0] == str(combo_hf.DEFAULT_MODEL)
    if not (combo_hf.DEFAULT_MODEL / "config.json").is_file():
        monkeypatch.setitem(task, "default", {"model": (tiny_folder, "main")})
    pipe = transformers.pipeline("audio-visual-segmentation", device="cpu")
    assert isinstance(pipe, combo_hf.AudioVisualSegmentationPipeline)


def test_loading_says_nothing():
    """Neither of our default model, nor of an image backend that is not missing."""
    code = (
        "import combo_hf, transformers; transformers.logging.disable_progress_bar();"
        "pipe = transformers.pipeline('audio-visual-segmentation', device='cpu');"
        "transformers.AutoProcessor.from_pretrained(combo_hf.BUNDLED_MODEL);"
        "transformers.AutoImageProcessor.from_pretrained(combo_hf.BUNDLED_MODEL);"
        "import numpy; pipe({'frames': numpy.zeros((1, 64, 64, 3), numpy.uint8), 'audio': None})"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_docstrings_it_says_so(monkeypatch):
    """As under `python -OO`, which would first compile all of torch and transformers anew."""
    import combo_hf
    from combo_hf import modeling_combo_encoders as encoders

    def without(config):
        raise ValueError("no docstring of BitConfig")

    monkeypatch.setattr(encoders.AutoBackbone, "from_config", without)
    monkeypatch.setattr(encoders, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    with pytest.raises(ValueError, match="run Python without -OO"):
        combo_hf.load_pipeline(combo_hf.BUNDLED_MODEL)


@pytest.mark.parametrize("error", ["OSError('Could not load it')", "RuntimeError('CUDA 13.2')", "ImportError('x')"])
def test_a_broken_torchaudio_gives_one_clear_error(tmp_path, error):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(f"raise {error}\n")
    done = run_python("import combo_hf", tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and done.stdout == ""
    assert "During handling" not in done.stderr and "direct cause" not in done.stderr
    assert lines[-1].startswith(
        "ImportError: transformers imports torchaudio where there is one, and here it does not"
    )
    assert "pip uninstall torchaudio" in lines[-1]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_files_are_flat(path):
    """Remote code is carried by a regular expression over the text: only flat siblings, named one by one."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    siblings = {other.stem for other in CORE}
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, f"line {node.lineno}: from .{node.module or ''}"
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            root = name.split(".")[0]
            assert root != "combo_hf", f"line {node.lineno}: absolute import of the package"
            if root in OPTIONAL:
                assert id(node) in guarded, f"line {node.lineno}: {root} outside of try"
            else:
                assert root in REQUIRED | set(sys.stdlib_module_names), f"line {node.lineno}: {root}"
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*(import|from)\s", line)]
    statements = {node.lineno for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert set(lines) <= statements, "a line of text looks like an import"


@pytest.mark.parametrize("name", [path.name for path in CORE])
def test_the_whole_core_is_reached_from_what_is_saved(name):
    """No file of the core is left behind, whether model, processor or pipeline is saved, or loaded and saved again."""
    from transformers.dynamic_module_utils import get_relative_import_files

    reached = {name} | {Path(file).name for file in get_relative_import_files(str(PACKAGE / name))}
    if name in SAVING_FILES:
        assert reached == {path.name for path in CORE}
    assert reached <= {path.name for path in CORE}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_files_know_nothing_of_each_other_s_classes(path):
    """Each entry point is loaded from a folder of its own: the same class then exists several times."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not names & (imported - own), f"line {node.lineno}: {names & imported}"
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], "state of the module"


def test_the_code_named_in_a_checkpoint_exists():
    from combo_hf import remote_code_combo as remote

    named = {**remote.AUTO_MAP, "pipeline": remote.CUSTOM_PIPELINES["audio-visual-segmentation"]["impl"]}
    for reference in named.values():
        module, _, name = reference.partition(".")
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        assert f"{module}.py" in ENTRY_FILES
    assert [path.name for path in remote.code_files()] == [path.name for path in CORE]

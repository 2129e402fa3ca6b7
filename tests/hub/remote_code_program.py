"""What a user without this package does with a checkpoint: run by test_remote_code.py in a process of its own.

    python -I remote_code_program.py FOLDER FILM OUTPUT

`FOLDER` may be a Hub id. Writes what it computed to OUTPUT/outputs.npz, what it saw to OUTPUT/facts.json, and saves
the pipeline again to OUTPUT/again.
"""

import json
import sys
import warnings
from pathlib import Path


sys.modules["combo_hf"] = None  # as if it were not installed: importing it now fails

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


def main(folder: str, film: str, output: Path) -> None:
    """Load everything there is from a checkpoint and use it."""
    torch.set_num_threads(1)
    facts = {"classes": {}}
    names = "AutoConfig AutoModel AutoModelForUniversalSegmentation AutoProcessor AutoImageProcessor"
    for name in f"{names} AutoFeatureExtractor".split():
        loaded = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        facts["classes"][name] = [type(loaded).__module__.split(".")[0], type(loaded).__name__]
        facts[name] = loaded
    model, processor = facts.pop("AutoModel").eval(), facts.pop("AutoProcessor")
    facts = {"classes": facts["classes"]}
    random = np.random.default_rng(0)
    frames = list(random.integers(0, 256, (3, 40, 60, 3), dtype=np.uint8))
    batch = processor(frames=[frames], audio=[random.standard_normal(48000).astype(np.float32)], sampling_rate=16000)
    with torch.no_grad():
        outputs = model(**batch)
    pipe = transformers.pipeline("audio-visual-segmentation", model=folder, trust_remote_code=True, device="cpu")
    result = pipe(film)
    maps = np.stack([frame["label_map"] for frame in result["frames"]])
    scores = [segment["score"] for frame in result["frames"] for segment in frame["segments"]]
    np.savez(
        output / "outputs.npz", classes=outputs.class_queries_logits, masks=outputs.masks_queries_logits, maps=maps,
        scores=np.array(scores), **{name: value for name, value in batch.items()}
    )  # fmt: skip
    untold = transformers.pipeline(model=folder, trust_remote_code=True, device="cpu")  # the task is in the checkpoint
    facts["pipelines"] = [type(pipe).__name__, type(untold).__name__]
    pipe.save_pretrained(output / "again")
    package = str(Path(__file__).resolve().parents[2] / "combo_hf")
    files = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    facts["files of the package"] = [file for file in files if file.startswith(package)]
    (output / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

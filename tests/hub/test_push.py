"""`combo-hf push` against a Hub: what goes, what does not, what happens when something breaks on the way."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from hub_server import READER, WRITER
from huggingface_hub import HfApi

import combo_hf
from combo_hf import remote_code_combo
from combo_hf.cli import main
from combo_hf.publishing import build_card, find_origin, plan_publication, publish, upload
from combo_hf.publishing.card import MARK
from combo_hf.publishing.plan import INDEX, WEIGHTS


CODE = {path.name for path in remote_code_combo.code_files()}
USUAL = {"README.md", "config.json", "processor_config.json", "handler.py", "requirements.txt", WEIGHTS} | CODE
LEFT_BEHIND = {
    "optimizer.bin": b"o", "random_states_0.pkl": b"r", "events.out.tfevents": b"e", "metrics.jsonl": b"{}",
    "trainer.py": b"print()", "pytorch_model.bin": b"p", "notes.txt": b"n", ".env": b"x",
    "remote_code_combo.py": b"raise SystemExit",
}  # fmt: skip


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A folder as training leaves it, with much in it that is nobody's business."""
    target = shutil.copytree(tiny_folder, tmp_path / "best")
    for name, content in LEFT_BEHIND.items():
        (target / name).write_bytes(content)
    (target / "logs").mkdir()
    (target / "logs" / "log.txt").write_text("log")
    return target


@pytest.fixture
def quick(monkeypatch):
    """No pauses between attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def run(*arguments):
    return main(["push", *map(str, arguments)])


def heads(hub, repo_id="tester/new"):
    return [commit.title for commit in hub.store.repos["models", repo_id].commits.values()]


def results_for(folder, data="/home/somebody/avs/s4-rows", **settings):
    from combo_hf.files.environment import fingerprint_weights

    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(folder)
    settings = {"weights": fingerprint_weights(model), "silence_audio": False, "blank_maskige": False, **settings}
    scores = {"M_J": 0.4321, "M_F": 0.5, "num_videos": 7}
    return {"model": "x", "data": data, "split": "test", "subset": "s4", "protocol": "avsbench", "scores": scores,
            "settings": settings}  # fmt: skip


@pytest.mark.parametrize("name", ["README.md", "preview.png"])
def test_a_link_out_of_the_folder_is_not_published(folder, name):
    (folder.parent / "private.txt").write_text("my diary")
    (folder / name).symlink_to(folder.parent / "private.txt")
    with pytest.raises(ValueError, match=f"{name} is a link to .*private.txt, outside of"):
        plan_publication(folder, "tester/new")
    blobs, snapshot = folder.parent / "blobs", folder.parent / "snapshots" / "revision"  # as in the Hub's cache
    blobs.mkdir()
    snapshot.parent.mkdir()
    shutil.move(folder, snapshot)
    (snapshot / name).unlink()
    (blobs / "hash").write_bytes(b"of the owner")
    (snapshot / name).symlink_to(Path("..", "..", "blobs", "hash"))
    publication = plan_publication(snapshot, "tester/new", preview=name == "preview.png")
    assert [file.source for file in publication.files if file.name == name] == [b"of the owner"]


def test_push_and_everything_that_loads_it(hub_client, folder, film, capsys):
    assert run(folder, "new", "--private") == 0
    out = capsys.readouterr()
    assert f"published: {hub_client.endpoint}/tester/new at " in out.out
    files = hub_client.files("tester/new")
    assert set(files) == USUAL | {".gitattributes", "preview.png"}
    assert files["preview.png"].startswith(b"\x89PNG") and files["remote_code_combo.py"] != b"raise SystemExit"
    assert hub_client.store.repos["models", "tester/new"].private
    assert heads(hub_client) == ["initial commit", "Publish COMBO checkpoint"]
    assert WRITER not in out.out + out.err and 'load_pipeline("tester/new")' in files["README.md"].decode()

    expected = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(folder).state_dict()
    model = transformers.AutoModel.from_pretrained("tester/new", revision="main")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert type(transformers.AutoProcessor.from_pretrained("tester/new")) is combo_hf.ComboProcessor
    commit = HfApi().model_info("tester/new").sha
    pipe = transformers.pipeline("audio-visual-segmentation", model="tester/new", revision=commit, device="cpu")
    assert len(pipe(str(film))["frames"]) == 3
    with pytest.raises(OSError, match="none"):
        combo_hf.ComboProcessor.from_pretrained("tester/new", revision="none")
    with pytest.raises(OSError, match="tester/new"):
        combo_hf.ComboProcessor.from_pretrained("tester/new", token=READER, force_download=True)


def test_dry_run_shows_all_and_sends_nothing(hub_client, folder, capsys):
    assert run(folder, "tester/new", "--dry-run", "--no-preview") == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split()[1] for line in lines[:-2]}
    assert set(shown) == USUAL and shown[WEIGHTS] == f"{(folder / WEIGHTS).stat().st_size:,}"
    assert lines[-1] == "dry run: nothing was sent to tester/new" and hub_client.log == []


def test_a_second_push_of_the_same_changes_nothing(hub_client, folder):
    for _ in range(2):
        assert run(folder, "tester/new", "--no-preview", "--message", "mine") == 0
    assert heads(hub_client) == ["initial commit", "mine"]


def test_card_only(hub_client, folder):
    assert run(folder, "tester/new", "--card-only", "--no-preview") == 0
    assert set(hub_client.files("tester/new")) == {".gitattributes", "README.md"}


def test_large_weights_go_in_shards_and_old_weights_go_away(hub_client, folder, quick):
    publish(plan_publication(folder, "tester/new", preview=False))
    publication = plan_publication(folder, "tester/new", preview=False, max_shard_size=2_000_000)
    shards = [file for file in publication.files if file.why == "weights"]
    temporary = shards[0].source.parent
    assert len(shards) > 3 and all(file.size <= 2_100_000 for file in shards)
    published = publish(publication)
    del publication
    assert not temporary.exists()
    names = set(hub_client.files("tester/new"))
    assert published.removed == [WEIGHTS] and WEIGHTS not in names and INDEX in names
    expected = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(folder).state_dict()
    loaded = combo_hf.ComboForAudioVisualSegmentation.from_pretrained("tester/new").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    assert publish(plan_publication(folder, "tester/new", preview=False)).removed == sorted(
        file.name for file in shards
    )


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut_upload", "pattern": "/lfs/upload/", "after": 100_000},
        {"kind": "refuse", "pattern": "/lfs/upload/", "times": 2},
        {"kind": "status", "pattern": "/lfs/upload/"},
        {"kind": "status", "pattern": "/preupload/", "status": 429},
        {"kind": "refuse", "pattern": "/commit/"},
        {"kind": "cut_upload", "pattern": "/commit/", "after": 1000, "reset": True},
        {"kind": "status", "pattern": "/commit/", "status": 502},
        {"kind": "lost_answer", "pattern": "/commit/"},
    ],
    ids=lambda fault: " ".join(map(str, fault.values())),
)
def test_a_connection_that_breaks_once(hub_client, folder, quick, fault):
    """The client or we try again; there is one commit with everything, never half a one or two."""
    ordered = hub_client.fail(**fault)
    published = publish(plan_publication(folder, "tester/new", preview=False))
    assert ordered.times == 0 and heads(hub_client) == ["initial commit", "Publish COMBO checkpoint"]
    repo = hub_client.store.repos["models", "tester/new"]
    assert repo.branches["main"] == published.commit and set(hub_client.files("tester/new")) == USUAL | {
        ".gitattributes"
    }


@pytest.mark.parametrize("pattern", ["/lfs/upload/", "/commit/"])
def test_a_connection_that_stays_broken(hub_client, folder, quick, capsys, pattern):
    fault = hub_client.fail("refuse", pattern, times=10_000)
    assert run(folder, "tester/new", "--no-preview") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith("Nothing was published; run it again to go on.") and WRITER not in error
    assert heads(hub_client) == ["initial commit"]
    fault.times = 0
    assert run(folder, "tester/new", "--no-preview") == 0
    assert set(hub_client.files("tester/new")) == USUAL | {".gitattributes"}


def test_somebody_else_changed_it_meanwhile(hub_client, folder, quick, monkeypatch):
    publication = plan_publication(folder, "tester/new", preview=False)
    stale = upload._stale

    def change_first(api, repo_id, head, names):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id)
        return stale(api, repo_id, head, names)

    monkeypatch.setattr(upload, "_stale", change_first)
    with pytest.raises(OSError, match="A commit has happened since"):
        publish(publication)
    assert WEIGHTS not in hub_client.files("tester/new")


@pytest.mark.parametrize(
    "repo, token, message",
    [
        ("tester/new", None, "no access token"),
        ("tester/new", "hf_wrong", "does not accept the access token"),
        ("tester/new", READER, "may not write there"),
        ("stranger/new", WRITER, "may not write there"),
        ("a/b/c", WRITER, "no name of a repository"),
        ("tester/a--b", WRITER, "no name of a repository"),
        ("tester/../x", WRITER, "no name of a repository"),
    ],
)
def test_no_right_to_publish(hub_client, folder, monkeypatch, capsys, repo, token, message):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    assert run(folder, repo, "--no-preview") == 2
    captured = capsys.readouterr()
    assert message in captured.err and (token is None or token not in captured.out + captured.err)
    assert not hub_client.store.repos


def test_offline(hub_client, folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(folder, "tester/new", "--dry-run", "--no-preview") == 0
    assert run(folder, "tester/new", "--no-preview") == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err and hub_client.log == []


def test_private_never_means_public(hub_client, folder, capsys):
    HfApi().create_repo("tester/new")
    assert run(folder, "tester/new", "--private", "--no-preview") == 2
    assert "exists and is public" in capsys.readouterr().err and heads(hub_client) == ["initial commit"]


def damage(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: shutil.rmtree(folder), "no such file or folder"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "processor_config.json").unlink(), "holds no processor_config.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"no model.safetensors \(pytorch_model.bin is not published"),
        (damage(WEIGHTS, b"short"), "does not load, so it is not published"),
        (damage("config.json", b"{"), "config.json is no JSON"),
        (damage("config.json", b'{"model_type": "bert"}'), "config.json is of a 'bert'"),
        (damage("README.md", b"my token is hf_" + b"a" * 34), "README.md holds what looks like an access token"),
        (damage("README.md", b"---\na: [\n---\n"), "Invalid metadata in README.md"),
        (damage("results.json", b"[]"), "wanted a mapping"),
        (damage("results.json", b'{"scores": {}}'), "not a results.json"),
        (damage("recipe.yaml", b"a: [\n"), "recipe.yaml cannot be read"),
        (damage("conversion_report.json", b"{"), "conversion_report.json cannot be read"),
    ],
)
def test_a_folder_that_is_not_published(hub_client, folder, capsys, spoil, message):
    spoil(folder)
    assert run(folder, "tester/new", "--no-preview") == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and len(error.splitlines()[-1]) < 400
    assert [path for path in hub_client.store.repos if WEIGHTS in hub_client.files(path[1])] == []


def test_weights_that_do_not_fit(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_layers": 6}))
    with pytest.raises(ValueError, match="do not fit the configuration"):
        plan_publication(folder, "tester/new", preview=False)


def card_of(publication):
    text = next(file.source for file in publication.files if file.name == "README.md").decode()
    return text, yaml.safe_load(text.split("---\n")[1])


def test_only_measured_scores_become_metadata(folder, tmp_path):
    text, data = card_of(plan_publication(folder, "tester/new", preview=False))
    assert "model-index" not in data and "None were measured" in text
    whole, silent = tmp_path / "whole.json", tmp_path / "silent.json"
    whole.write_text(json.dumps(results_for(folder)))
    silent.write_text(json.dumps(results_for(folder, silence_audio=True)))
    text, data = card_of(plan_publication(folder, "tester/new", preview=False, results=[whole, silent]))
    (result,) = data["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"M_J": 43.21, "M_F": 50.0}
    assert result["dataset"] == {"name": "s4-rows", "type": "custom", "split": "test"}
    assert "| s4-rows | test | 7 | avsbench | silence in place of the sound | 43.21 | 50.00 |" in text
    assert "/home/somebody" not in text


def test_metadata_that_the_hub_filters_by(folder, tmp_path):
    assert {"pipeline_tag": "image-segmentation", "library_name": "transformers"}.items() <= card_of(
        plan_publication(folder, "tester/new", preview=False)
    )[1].items()
    recipe = {"model": {"pretrained": "me/first"}, "data": {"source": "avsbench", "path": "me/rows", "subset": "s4"}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "results.json").write_text(json.dumps(results_for(folder, data="me/test-rows")))
    _, data = card_of(plan_publication(folder, "tester/new", preview=False))
    assert data["base_model"] == ["me/first"] and data["datasets"] == ["me/rows", "me/test-rows"]
    assert data["metrics"] == ["M_J", "M_F"]


def test_no_path_of_the_machine_is_published(folder, tmp_path):
    (tmp_path / "models").mkdir()
    inner = {"name": "mobile_sam", "model": "/home/me/secret/my-sam", "points_per_side": 8}
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text())
    places = {"proposal_generator": {"name": "cached", "folder": "/home/me/cache", "generator": inner}}
    places |= {"a": ["C:\\Users\\me\\b", "~/c", "../d"], "repository": "facebook/sam-vit-huge"}
    path.write_text(json.dumps({**saved, **places}))
    publication = plan_publication(folder, "tester/new", preview=False)
    published = json.loads(next(file.source for file in publication.files if file.name == path.name))
    assert published["proposal_generator"] == {**inner, "model": "my-sam"}
    assert published["a"] == ["b", "c", "d"] and published["repository"] == "facebook/sam-vit-huge"
    assert all(published[key] == value for key, value in saved.items() if key not in (*places, "auto_map"))


def test_foreign_words_are_no_markup_in_the_card(tiny_folder, tmp_path):
    evil = "<img src=x onerror=alert(1)>\n# Title | [a](b)"
    config = combo_hf.ComboConfig.from_pretrained(tiny_folder)
    config.id2label = {0: "background", 1: evil}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": {"preset": evil}, "mixed_precision": evil}))
    card = build_card(config, "tester/new", find_origin(tmp_path, evil))
    body = card.split("---\n", 2)[2]
    assert "<img" not in body and "&lt;img src=x onerror" in body and "\n# Title" not in body and "[a](b)" not in body


def test_handler_of_an_endpoint(tiny_folder, film):
    from combo_hf.publishing.handler import EndpointHandler

    handler = EndpointHandler(tiny_folder)
    data = Path(film).read_bytes()
    answer = handler({"inputs": data, "parameters": {"fps": 1}})
    assert len(answer["frames"]) == 3
    assert handler({"inputs": base64.b64encode(data).decode(), "parameters": {"fps": 1}}) == answer
    assert json.loads(json.dumps(answer)) == answer
    for inputs, message in ((b"x", "damaged"), ("http://example.org/a.mp4", "base64"), (None, "NoneType")):
        assert message in handler({"inputs": inputs})["error"]
    assert "no" in handler({"inputs": data, "parameters": {"no": 1}})["error"]


def test_scores_of_other_weights_are_refused(folder, tmp_path):
    results = results_for(folder)
    results["settings"]["weights"] = "0" * 16
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="measured with other weights"):
        plan_publication(folder, "tester/new", preview=False)


RECIPE = {"model": {"preset": "tiny"}, "seed": 3, "data": {"kind": "ms3", "train_clips": 5, "cache": "/home/me/cache"}}
STARTED = {**RECIPE, "model": {"pretrained": "/home/me/x"}}


@pytest.mark.parametrize(
    "files, option, license, shown, hidden",
    [
        ({}, None, "other", "nothing is recorded beside the weights", "synthetic"),
        ({}, "mit", "mit", "mit, says whoever published them", "CC BY"),
        ({"recipe.yaml": RECIPE}, None, "apache-2.0", "5 synthetic clips of kind ms3", "/home/me"),
        ({"../recipe.yaml": RECIPE}, None, "apache-2.0", "- seed 3", "/home/me"),
        ({"recipe.yaml": STARTED}, None, "other", "started from other weights (pretrained)", "/home/me"),
        ({"recipe.yaml": {"data": {"source": "avsbench", "path": "/home/me/a", "subset": "s4"}}}, None, "cc-by-nc-4.0",
         "AVSBench, subset s4", "/home/me"),
        ({"conversion_report.json": {"preset": "r50-s4", "consumed": {"a": []}}}, None, "other", "| taken over | 1 |",
         "synthetic"),
    ],
)  # fmt: skip
def test_what_the_card_says_of_the_origin(tiny_folder, tmp_path, files, option, license, shown, hidden):
    (tmp_path / "best").mkdir()
    for name, content in files.items():
        (tmp_path / "best" / name).write_text(json.dumps(content))  # JSON is YAML
    config = combo_hf.ComboConfig.from_pretrained(tiny_folder)
    card = build_card(config, "tester/new", find_origin(tmp_path / "best", option))
    assert yaml.safe_load(card.split("---\n")[1])["license"] == license
    assert shown in card and hidden not in card.replace("synthetic clips", "")


def test_a_card_of_your_own_goes_as_it_is(folder):
    (folder / "README.md").write_text("# Mine\n")
    assert card_of_bytes(folder) == b"# Mine\n"
    (folder / "README.md").write_text(f"# Made\n{MARK}\n")
    assert b"## Use it" in card_of_bytes(folder)


def card_of_bytes(folder):
    files = plan_publication(folder, "tester/new", preview=False, card_only=True).files
    return next(file.source for file in files if file.name == "README.md")


def test_the_code_in_the_card_runs(hub_client, tmp_path, capsys):
    assert run(combo_hf.BUNDLED_MODEL, "tester/demo", "--no-preview") == 0
    blocks = re.findall(r"```python\n(.*?)```", hub_client.files("tester/demo")["README.md"].decode(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    assert "emergency-car" in capsys.readouterr().out


def test_the_bundled_folder_is_published_complete(hub_client):
    """It carries no code itself; what is published from it does."""
    assert not list(Path(combo_hf.BUNDLED_MODEL).glob("*.py"))
    publish(plan_publication(combo_hf.BUNDLED_MODEL, "tester/demo", preview=False))
    files = hub_client.files("tester/demo")
    assert set(files) == USUAL | {".gitattributes"}
    assert json.loads(files["config.json"])["auto_map"] == remote_code_combo.AUTO_MAP
    assert b"Apache-2.0. They were trained on drawn" in files["README.md"]

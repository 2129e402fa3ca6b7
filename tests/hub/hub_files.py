"""The routes of a small Hub that move files: listing, uploading, downloading."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import yaml
from hub_store import Entry, HubError, Repo, Store, upload_mode


@dataclass(frozen=True)
class User:
    """Who a token belongs to; `write` is whether it may change things, in the namespaces named."""

    name: str
    write: bool
    namespaces: tuple[str, ...] = ()


@dataclass
class Call:
    """A request as the routes see it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes = b""
    upload: Path | None = None
    user: User | None = None
    endpoint: str = ""
    cdn: str = ""

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, None, "the body is not JSON") from error

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("true", "1")


@dataclass
class Answer:
    """Status, headers and a body: bytes, something for JSON, or a file."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


class FileRoutes:
    """Routes over the files of a store; who may do what is for the class that has all routes."""

    store: Store
    page_size: int
    part_size: int | None

    def readable(self, call: Call, kind: str | None, id: str, content: bool = False) -> Repo:
        raise NotImplementedError

    def writable(self, call: Call, kind: str | None, id: str) -> Repo:
        raise NotImplementedError

    def tree(self, call: Call, kind: str, id: str, revision: str, path: str | None = None) -> Answer:
        commit = self.readable(call, kind, id).commit_at(revision)
        rows = _list(commit.files, (path or "").strip("/"), call.flag("recursive"))
        if path and not rows:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        start = int(call.query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.page_size < len(rows):
            query = {name: values[-1] for name, values in call.query.items()} | {"cursor": start + self.page_size}
            headers["Link"] = f'<{call.endpoint}{quote(call.path)}?{urlencode(query)}>; rel="next"'
        page = [self._expanded(row, commit) if call.flag("expand") else row for row in rows[start:][: self.page_size]]
        return Answer(body=page, headers=headers)

    def paths_info(self, call: Call, kind: str, id: str, revision: str) -> Answer:
        commit = self.readable(call, kind, id).commit_at(revision)
        form = parse_qs(call.body.decode()) if b"=" in call.body[:64] else call.json()
        rows = {row["path"]: row for row in _list(commit.files, "", recursive=True)}
        found = [rows[path.strip("/")] for path in form.get("paths", []) if path.strip("/") in rows]
        expand = str(form.get("expand", ["false"])).lower().count("true") > 0
        return Answer(body=[self._expanded(row, commit) if expand else row for row in found])

    @staticmethod
    def _expanded(row: dict, commit: Any) -> dict:
        return {**row, "lastCommit": {"id": commit.oid, "title": commit.title, "date": commit.date}}

    # -- uploads --

    def validate_yaml(self, call: Call) -> Answer:
        match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", call.json().get("content", ""), re.S)
        errors, warnings = [], []
        if match is None:
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
        else:
            try:
                errors = _card_errors(yaml.safe_load(match[1]))
            except yaml.YAMLError as error:
                errors = [{"message": f"invalid YAML: {error}"}]
        return Answer(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def preupload(self, call: Call, kind: str, id: str, revision: str) -> Answer:
        files = self.writable(call, kind, id).commit_at(revision).files
        answers = []
        for file in call.json()["files"]:
            mode = upload_mode(file["path"], file["size"], base64.b64decode(file.get("sample", "")))
            old = files.get(file["path"])
            oid = None if old is None else old.sha256 if old.lfs else old.oid
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer(body={"files": answers, "commitOid": revision})

    def commit(self, call: Call, kind: str, id: str, revision: str) -> Answer:
        repo = self.writable(call, kind, id)
        if call.flag("create_pr"):
            raise HubError(501, None, "this server has no pull requests")
        header, changes = {}, []
        for line in call.body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                header = value
            elif key == "file":
                changes.append(("file", value["path"], base64.b64decode(value["content"])))
            elif key == "lfsFile":
                changes.append(("lfs", value["path"], value["oid"], value.get("size")))
            else:
                folder = key == "deletedFolder"
                name = value["path"].rstrip("/") + "/" if folder else value["path"]
                changes.append(("delete_folder" if folder else "delete", name))
        made = self.store.commit(repo, revision, header.get("summary", ""), changes, header.get("parentCommit"))
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{call.endpoint}/{prefix}{id}/commit/{made.oid}"
        return Answer(body={"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})

    def lfs_batch(self, call: Call, id: str, kind: str | None = None) -> Answer:
        self.writable(call, kind, id)
        wanted = call.json()
        objects = []
        for file in wanted["objects"]:
            oid, size = file["oid"], file["size"]
            objects.append({"oid": oid, "size": size, "authenticated": True})
            if self.store.blob(oid).is_file():
                continue
            upload: dict[str, Any] = {"href": f"{call.cdn}/lfs/upload/{oid}"}
            if self.part_size and size > self.part_size and "multipart" in wanted.get("transfers", ()):
                parts = range(1, -(-size // self.part_size) + 1)
                urls = {f"{part:05d}": f"{call.cdn}/lfs/upload/{oid}/{part}" for part in parts}
                upload = {"href": f"{call.endpoint}/lfs/complete/{oid}"}
                upload["header"] = {"chunk_size": str(self.part_size), **urls}
            objects[-1]["actions"] = {"upload": upload, "verify": {"href": f"{call.endpoint}/lfs/verify"}}
        return Answer(body={"transfer": "basic", "objects": objects})

    def lfs_upload(self, call: Call, oid: str, part: str | None = None) -> Answer:
        if call.upload is None:
            raise HubError(400, None, "no content")
        if part is None:
            self.store.add_blob(call.upload, oid)
        else:
            call.upload.replace(self._part(oid, int(part)))
        return Answer(headers={"ETag": f'"{oid}-{part or 0}"'})

    def lfs_complete(self, call: Call, oid: str) -> Answer:
        parts = [self._part(oid, part["partNumber"]) for part in call.json()["parts"]]
        whole = self._part(oid, 0)
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        self.store.add_blob(whole, oid)
        for part in parts:
            part.unlink()
        return Answer(body={})

    def _part(self, oid: str, number: int) -> Path:
        return self.store.root / f"{oid}.{number}.part"

    def lfs_verify(self, call: Call) -> Answer:
        wanted = call.json()
        blob = self.store.blob(wanted["oid"])
        if not blob.is_file() or blob.stat().st_size != wanted["size"]:
            raise HubError(400, None, "the uploaded object is not there or has another size")
        return Answer(body={})

    # -- downloads --

    def resolve(self, call: Call, id: str, revision: str, path: str, kind: str | None = None) -> Answer:
        repo = self.readable(call, kind, id, content=True)
        try:
            commit, entry = repo.entry_at(revision, path)
        except HubError as error:
            if error.code == "EntryNotFound":
                error.body["commit"] = repo.commit_at(revision).oid
            raise
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not entry.lfs:
            return Answer(body=self.store.blob(entry.sha256), headers={**headers, "ETag": f'"{entry.oid}"'})
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
        name = quote(path.rpartition("/")[2])
        return Answer(302, headers={**headers, "Location": f"{call.cdn}/cdn/{entry.sha256}?name={name}"})

    def download(self, call: Call, oid: str) -> Answer:
        if not self.store.blob(oid).is_file():
            raise HubError(403, None, "no such object")
        return Answer(body=self.store.blob(oid), headers={"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def lfs_facts(entry: Entry, name: str = "oid") -> dict[str, Any]:
    return {name: entry.sha256, "size": entry.size, "pointerSize": 130}


def _list(files: dict[str, Entry], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Rows of a tree: the files and folders below `folder`."""
    prefix = folder + "/" if folder else ""
    rows: dict[str, dict] = {}
    for path, entry in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            rows.setdefault(name, {"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
        if recursive or len(parts) == 1:
            row = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            rows[path] = row | ({"lfs": lfs_facts(entry)} if entry.lfs else {})
    return list(rows.values())


def _card_errors(card: Any) -> list[dict[str, str]]:
    """What is wrong with a card's metadata, as far as this server looks."""
    if not isinstance(card, dict):
        return [{"message": "the metadata is not a mapping"}]
    errors = []
    for name in ("license", "library_name", "pipeline_tag"):
        if not isinstance(card.get(name, ""), str):
            errors.append(f"{name} must be a string")
    for index, model in enumerate(card.get("model-index") or []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append(f"model-index[{index}] needs a name and results")
            continue
        for result in model["results"]:
            complete = result.get("task", {}).get("type") and all(
                result.get("dataset", {}).get(k) for k in ("type", "name")
            )
            metrics = result.get("metrics")
            if not complete or not metrics or not all({"type", "value"} <= set(metric) for metric in metrics):
                errors.append(f"model-index[{index}].results needs task.type, dataset.type, dataset.name and metrics")
    return [{"message": error} for error in errors]

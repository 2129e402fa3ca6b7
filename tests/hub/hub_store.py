"""What a small Hub keeps: repositories with branches and commits, and their files by content.

Everything lies below one folder: `blobs/<sha256>` and `state.json`. A commit is applied as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


LFS_SUFFIXES = tuple(
    ".7z .arrow .bin .ckpt .flac .gz .h5 .joblib .mp3 .mp4 .npy .npz .onnx .ot .parquet .pb .pickle .pkl .pt .pth "
    ".rar .safetensors .tar .tflite .tgz .wav .xz .zip .zst".split()
)
REGULAR_LIMIT = 10 * 1024 * 1024
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class HubError(Exception):
    """An answer of the API that is an error.

    Args:
        status: of HTTP.
        code: `X-Error-Code`, by which the client chooses the exception, or `None`.
        message: `X-Error-Message` and the `error` of the JSON body.
    """

    def __init__(self, status: int, code: str | None, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


@dataclass(frozen=True)
class Entry:
    """A file of a commit: `oid` is git's hash of it (of its pointer where `lfs`), `sha256` that of the content."""

    path: str
    size: int
    oid: str
    sha256: str
    lfs: bool


@dataclass
class Commit:
    """Files of one state of a repository."""

    oid: str
    title: str
    date: str
    parent: str | None
    files: dict[str, Entry]


@dataclass
class Repo:
    """A repository. `kind` is `models`, `datasets` or `spaces`; `gated` lists who may read it, `None` is everybody."""

    kind: str
    id: str
    private: bool = False
    gated: list[str] | None = None
    sdk: str | None = None
    created: str = ""
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit_at(self, revision: str) -> Commit:
        """Commit of a branch, tag, or (the first letters of) a commit's own name."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        found = [known for known in self.commits if known == oid or (len(oid) >= 7 and known.startswith(oid))]
        if not found:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[found[0]]

    def entry_at(self, revision: str, path: str) -> tuple[Commit, Entry]:
        """File of a revision."""
        commit = self.commit_at(revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found")
        return commit, commit.files[path]


class Store:
    """All repositories and files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        self._load()

    def blob(self, sha256: str) -> Path:
        """Where the content with this hash lies."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise HubError(400, None, f"{sha256!r} is no sha256")
        return self.root / "blobs" / sha256

    def add_blob(self, temporary: Path, expected: str | None = None) -> str:
        """Take over an uploaded file; its hash is checked against what was announced."""
        digest = hashlib.sha256()
        with temporary.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if expected not in (None, digest.hexdigest()):
            temporary.unlink()
            raise HubError(400, None, "the uploaded content does not have the announced sha256")
        os.replace(temporary, self.blob(digest.hexdigest()))
        return digest.hexdigest()

    def read(self, entry: Entry) -> bytes:
        """Content of a file."""
        return self.blob(entry.sha256).read_bytes()

    def create(self, kind: str, repo_id: str, private: bool = False, sdk: str | None = None) -> Repo:
        """A new repository, with `.gitattributes` as its first commit."""
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise HubError(409, None, f"You already created this {kind[:-1]} repo: {repo_id}")
            if not all(NAME.fullmatch(part) for part in repo_id.split("/")):
                raise HubError(400, None, f"Invalid repo name: {repo_id}")
            repo = Repo(kind, repo_id, private, sdk=sdk, created=_now())
            self.repos[(kind, repo_id)] = repo
            self.commit(repo, "main", "initial commit", [("file", ".gitattributes", GIT_ATTRIBUTES)])
            return repo

    def commit(
        self, repo: Repo, branch: str, title: str, changes: Iterable[tuple], parent: str | None = None
    ) -> Commit:
        """Apply all changes as one commit.

        Args:
            changes: ("file", path, bytes), ("lfs", path, sha256, size), ("delete", path) or ("delete_folder", path).
            parent: the commit that the branch must be at.
        """
        with self.lock:
            head = repo.branches.get(branch)
            if head is None and repo.commits:
                raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            if parent is not None and not (head or "").startswith(parent):
                raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head].files) if head else {}
            for change in changes:
                self._apply(files, change)
            date = _now()
            text = json.dumps([repo.kind, repo.id, head, title, date, sorted(entry.oid for entry in files.values())])
            commit = Commit(hashlib.sha1(text.encode()).hexdigest(), title, date, head, files)
            repo.commits[commit.oid] = commit
            repo.branches[branch] = commit.oid
            self.save()
            return commit

    def _apply(self, files: dict[str, Entry], change: tuple) -> None:
        kind, path = change[:2]
        if path.startswith(("/", "../")) or "/../" in path or path.endswith("/") != (kind == "delete_folder"):
            raise HubError(400, None, f"Invalid path: {path}")
        if kind == "file":
            content = change[2]
            sha256 = hashlib.sha256(content).hexdigest()
            if not self.blob(sha256).is_file():
                self._write(self.blob(sha256), content)
            files[path] = Entry(path, len(content), _git_hash(content), sha256, False)
        elif kind == "lfs":
            sha256 = change[2]
            if not self.blob(sha256).is_file():
                raise HubError(400, None, f"LFS pointer of {path} points to an object that was never uploaded")
            size = self.blob(sha256).stat().st_size
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
            files[path] = Entry(path, size, _git_hash(pointer.encode()), sha256, True)
        elif kind == "delete" and files.pop(path, None) is None:
            raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        elif kind == "delete_folder":
            for name in [name for name in files if name.startswith(path)]:
                del files[name]

    def save(self) -> None:
        """Write the state; a reader never sees half of it."""
        with self.lock:
            state = json.dumps([asdict(repo) for repo in self.repos.values()])
            self._write(self.root / "state.json", state.encode())

    def _load(self) -> None:
        state = self.root / "state.json"
        for entry in json.loads(state.read_text(encoding="utf-8")) if state.is_file() else ():
            commits = {
                oid: Commit(**{**commit, "files": {path: Entry(**file) for path, file in commit["files"].items()}})
                for oid, commit in entry.pop("commits").items()
            }
            self.repos[(entry["kind"], entry["id"])] = Repo(**entry, commits=commits)

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        temporary = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        temporary.write_bytes(content)
        os.replace(temporary, path)


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """`lfs` or `regular`, roughly as the Hub decides."""
    binary = b"\0" in sample
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > REGULAR_LIMIT or binary else "regular"


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

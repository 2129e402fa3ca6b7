"""The routes of a small Hub: who asks for what, and what the answer is.

Written from what the client of huggingface_hub sends and reads (`hf_api.py`, `_commit_api.py`, `lfs.py`,
`file_download.py`, `hf_file_system.py` of the installed package). Xet storage is absent: large files go by LFS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import yaml
from hub_files import Answer, Call, FileRoutes, User, lfs_facts
from hub_store import Entry, HubError, Repo, Store


KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
REPO = r"(?P<id>[^/]+(?:/[^/]+)?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
WEB = rf"(?:/(?P<kind>datasets|spaces))?/{REPO}"


class Api(FileRoutes):
    """All routes over one store.

    Args:
        store: repositories and files.
        users: token -> who it belongs to.
        page_size: entries per page of a tree.
        part_size: an LFS file above this many bytes is uploaded in parts of it; `None`: never.
    """

    def __init__(
        self, store: Store, users: dict[str, User], page_size: int = 1000, part_size: int | None = None
    ) -> None:
        self.store, self.users, self.page_size, self.part_size = store, users, page_size, part_size
        routes: list[tuple[str, str, Callable]] = [
            ("GET", r"/api/whoami-v2", self.whoami),
            ("GET", r"/api/agent-harnesses", lambda call: Answer(body={})),
            ("POST", r"/api/validate-yaml", self.validate_yaml),
            ("POST", r"/api/repos/create", self.create_repo),
            ("DELETE", r"/api/repos/delete", self.delete_repo),
            ("PUT", API + r"/settings", self.settings),
            ("GET", API + r"/auth-check", lambda call, **names: Answer(body=bool(self.readable(call, **names)))),
            ("GET", API + r"/refs", self.refs),
            ("GET", API + r"/commits/(?P<revision>[^/]+)", self.commits),
            ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", self.tree),
            ("POST", API + r"/paths-info/(?P<revision>[^/]+)", self.paths_info),
            ("POST", API + r"/preupload/(?P<revision>[^/]+)", self.preupload),
            ("POST", API + r"/commit/(?P<revision>[^/]+)", self.commit),
            ("POST", API + r"/(?P<what>branch|tag)/(?P<name>[^/]+)", self.create_ref),
            ("DELETE", API + r"/(?P<what>branch|tag)/(?P<name>[^/]+)", self.delete_ref),
            ("GET", API + r"(?:/revision/(?P<revision>[^/]+))?", self.info),
            ("POST", WEB + r"\.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", r"/lfs/upload/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", self.lfs_upload),
            ("POST", r"/lfs/complete/(?P<oid>[0-9a-f]{64})", self.lfs_complete),
            ("POST", r"/lfs/verify", self.lfs_verify),
            ("GET", WEB + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
            ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", self.download),
        ]
        self.routes = [(method, re.compile(pattern), run) for method, pattern, run in routes]

    def answer(self, call: Call) -> Answer:
        """The answer to a call; `HubError` where that is an error."""
        token = (call.headers.get("authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.users:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        call.user = self.users.get(token)
        method = "GET" if call.method == "HEAD" else call.method
        for wanted, pattern, run in self.routes:
            match = pattern.fullmatch(call.path)
            if wanted == method and match:
                names = {name: value if value is None else unquote(value) for name, value in match.groupdict().items()}
                return run(call, **names)
        raise HubError(404, None, f"no route for {call.method} {call.path}")

    # -- who may do what --

    def readable(self, call: Call, kind: str | None, id: str, content: bool = False) -> Repo:
        """The repository, if the caller may see it (with `content`: download from it)."""
        repo = self.store.repos.get((kind or "models", id))
        name = call.user.name if call.user else None
        own = call.user is not None and id.split("/")[0] in (name, *call.user.namespaces)
        if repo is None or (repo.private and not own):
            if call.user is None:
                raise HubError(401, "RepoNotFound", "Invalid username or password.")
            raise HubError(404, "RepoNotFound", "Repository not found")
        if content and repo.gated is not None and not own and name not in repo.gated:
            status = 401 if call.user is None else 403
            raise HubError(status, "GatedRepo", f"Access to {kind or 'model'} {id} is restricted.")
        return repo

    def writable(self, call: Call, kind: str | None, id: str) -> Repo:
        """The repository, if the caller may change it."""
        repo = self.readable(call, kind, id)
        self.may_write(call, id.split("/")[0])
        return repo

    def may_write(self, call: Call, namespace: str) -> None:
        """Raise unless the caller may change things in a namespace."""
        if call.user is None:
            raise HubError(401, None, "Invalid username or password.")
        if not call.user.write or namespace not in (call.user.name, *call.user.namespaces):
            raise HubError(403, None, f"You don't have the rights to change {namespace}")

    def whoami(self, call: Call) -> Answer:
        if call.user is None:
            raise HubError(401, None, "Invalid username or password.")
        user = call.user
        role = {"role": "write" if user.write else "read", "displayName": "test"}
        orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "admin"} for name in user.namespaces]
        body = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs}
        return Answer(body={**body, "auth": {"type": "access_token", "accessToken": role}})

    # -- repositories --

    def create_repo(self, call: Call) -> Answer:
        wanted = call.json()
        if call.user is None:
            raise HubError(401, None, "Invalid username or password.")
        namespace = wanted.get("organization") or call.user.name
        self.may_write(call, namespace)
        kind, repo_id = wanted.get("type") or "model", f"{namespace}/{wanted['name']}"
        url = f"{call.endpoint}/{'' if kind == 'model' else KINDS[kind] + '/'}{repo_id}"
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        try:
            self.store.create(KINDS[kind], repo_id, private, wanted.get("sdk"))
        except HubError as error:
            error.body["url"] = url
            raise
        return Answer(body={"url": url, "name": repo_id, "id": repo_id})

    def delete_repo(self, call: Call) -> Answer:
        wanted = call.json()
        repo_id = f"{wanted.get('organization') or (call.user.name if call.user else '')}/{wanted['name']}"
        repo = self.writable(call, KINDS[wanted.get("type") or "model"], repo_id)
        with self.store.lock:
            del self.store.repos[(repo.kind, repo.id)]
            self.store.save()
        return Answer()

    def settings(self, call: Call, kind: str, id: str) -> Answer:
        repo, wanted = self.writable(call, kind, id), call.json()
        if "private" in wanted or "visibility" in wanted:
            repo.private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        if "gated" in wanted:
            repo.gated = [] if wanted["gated"] else None
        self.store.save()
        return Answer(body={"private": repo.private, "gated": repo.gated is not None})

    def create_ref(self, call: Call, kind: str, id: str, what: str, name: str) -> Answer:
        repo, wanted = self.writable(call, kind, id), call.json()
        refs = repo.branches if what == "branch" else repo.tags
        new, start = (name, wanted.get("startingPoint") or "main") if what == "branch" else (wanted["tag"], name)
        if new in refs:
            raise HubError(409, None, f"Reference already exists: {new}")
        refs[new] = repo.commit_at(start).oid
        self.store.save()
        return Answer()

    def delete_ref(self, call: Call, kind: str, id: str, what: str, name: str) -> Answer:
        repo = self.writable(call, kind, id)
        if (repo.branches if what == "branch" else repo.tags).pop(name, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {name}")
        self.store.save()
        return Answer()

    def refs(self, call: Call, kind: str, id: str) -> Answer:
        repo = self.readable(call, kind, id)
        lists = {}
        for name, prefix, values in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags)):
            lists[name] = [
                {"name": ref, "ref": f"refs/{prefix}/{ref}", "targetCommit": oid} for ref, oid in values.items()
            ]
        return Answer(body={**lists, "converts": [], "pullRequests": []})

    def commits(self, call: Call, kind: str, id: str, revision: str) -> Answer:
        repo = self.readable(call, kind, id)
        commit, rows = repo.commit_at(revision), []
        while commit is not None:
            rows.append({"id": commit.oid, "title": commit.title, "message": "", "date": commit.date, "authors": []})
            commit = repo.commits.get(commit.parent)
        return Answer(body=rows)

    def info(self, call: Call, kind: str, id: str, revision: str | None = None) -> Answer:
        repo = self.readable(call, kind, id)
        commit = repo.commit_at(revision or "main")
        card = self._card(commit.files.get("README.md"))
        siblings = [
            {"rfilename": entry.path, **({"size": entry.size, "blobId": entry.oid} if call.flag("blobs") else {})}
            | ({"lfs": lfs_facts(entry, "sha256")} if call.flag("blobs") and entry.lfs else {})
            for entry in commit.files.values()
        ]
        body = {
            "_id": commit.oid[:24], "id": id, "modelId": id, "author": id.split("/")[0], "sha": commit.oid,
            "lastModified": commit.date, "createdAt": repo.created, "private": repo.private, "disabled": False,
            "gated": False if repo.gated is None else "manual", "downloads": 0, "likes": 0, "siblings": siblings,
            "tags": card.get("tags") or [], "cardData": card or None, "usedStorage": 0,
        }  # fmt: skip
        for name in ("library_name", "pipeline_tag", "model-index"):
            if card.get(name):
                body[name] = card[name]
        if kind == "spaces":
            body["sdk"] = repo.sdk
        if kind != "models":
            del body["modelId"]
        return Answer(body=body)

    def _card(self, readme: Entry | None) -> dict[str, Any]:
        if readme is None:
            return {}
        match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", self.store.read(readme).decode(errors="replace"), re.S)
        return (yaml.safe_load(match[1]) or {}) if match else {}

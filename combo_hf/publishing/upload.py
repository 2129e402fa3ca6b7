"""Upload of a publication: one commit, all of it or nothing.

The client of huggingface_hub repeats what can be repeated (files go up before the commit that names them). The commit
itself is sent again only where it is certain that it did not happen. The access token is that of `hf auth login` or
`HF_TOKEN`; it is never printed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from combo_hf.publishing.plan import Publication


if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

Answer = TypeVar("Answer")

ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, doubled each time
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Published:
    """Where it went: `repo_id`, its `url`, `commit` (hash), whether it was `created`, and stale files `removed`."""

    repo_id: str
    url: str
    commit: str
    created: bool
    removed: list[str]


def publish(
    publication: Publication,
    *,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Published:
    """Upload.

    Args:
        publication: of [`plan_publication`].
        private: nobody else may see it. An existing repository that is public is then an error.
        message: of the commit.
        token: default: that of `hf auth login` or `HF_TOKEN`.
        report: called with a line on what is being done.

    Returns:
        What and where.

    Raises:
        PermissionError: no token, one that is not valid, or one that may not write there.
        ValueError: `private` and the repository is public, or the Hub did not accept the card.
        ConnectionError: the Hub cannot be reached, or the connection broke more than once; nothing was published.
        OSError: any other answer of the Hub, in its words.
    """
    api = _api(token)
    report = report or (lambda line: None)
    repo_id = publication.repo_id
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} has no owner; plan the publication for resolve_repo_id({repo_id!r}).")
    head, existed = _prepare(api, repo_id, private)
    report(f"{'found' if existed else 'made'} {repo_id}, uploading {publication.size / 1e6:.1f} MB")
    message = message or ("Update the model card" if publication.card_only else "Publish COMBO checkpoint")
    removed = [] if publication.card_only else _stale(api, repo_id, head, {file.name for file in publication.files})
    commit = _commit(api, repo_id, head, publication, removed, message, report)
    return Published(repo_id, f"{api.endpoint}/{repo_id}", commit, not existed, removed)


def resolve_repo_id(repo_id: str, token: str | None = None) -> str:
    """`owner/name`, the owner being the user of the token where none is named.

    Asking who that is also finds a token that is not valid, before anything is done.

    Raises:
        PermissionError: no token, or one that is not valid.
        ConnectionError: the Hub cannot be reached.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        user = _ask(_api(token).whoami)["name"]
    except LocalTokenNotFoundError:
        raise PermissionError("no access token: run 'hf auth login', or set HF_TOKEN.") from None
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def check_access(repo_id: str, *, private: bool = False, token: str | None = None) -> None:
    """Find before a long run what would stop a publication at its end; makes and sends nothing.

    Args:
        repo_id: `owner/name`.
        private: as in [`publish`].
        token: default: that of `hf auth login` or `HF_TOKEN`.

    Raises:
        PermissionError: no token, or one that is not valid.
        ValueError: `private` and the repository is public.
        ConnectionError: the Hub cannot be reached.
        OSError: any other answer of the Hub, in its words.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    resolve_repo_id(repo_id, token)
    try:
        info = _ask(_api(token).model_info, repo_id)
    except RepositoryNotFoundError:
        return
    _check_private(repo_id, private, info)


def _check_private(repo_id: str, private: bool, info: ModelInfo) -> None:
    if private and not info.private:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub first, or choose another name.")


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="combo-hf")


def _prepare(api: HfApi, repo_id: str, private: bool) -> tuple[str | None, bool]:
    """Head of the repository, which is made where it does not exist; and whether it did."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = _ask(api.model_info, repo_id)
    except RepositoryNotFoundError:
        # None leaves it to the owner's own default.
        _ask(api.create_repo, repo_id, private=private or None, exist_ok=True)
        return _ask(api.model_info, repo_id).sha, False
    _check_private(repo_id, private, info)
    return info.sha, True


def _stale(api: HfApi, repo_id: str, head: str | None, names: set[str]) -> list[str]:
    """Weights of an earlier publication that a loader would prefer to, or mix with, the new ones."""
    files = _ask(api.list_repo_files, repo_id, revision=head)
    return sorted(name for name in files if SHARD.fullmatch(name) and name not in names)


def _commit(
    api: HfApi,
    repo_id: str,
    head: str | None,
    publication: Publication,
    removed: list[str],
    message: str,
    report: Callable[[str], None],
) -> str:
    """Make the one commit; repeat it where the connection broke and the branch has not moved."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    for attempt in range(1, ATTEMPTS + 1):
        sources = [(file.name, file.source) for file in publication.files]
        operations = [
            *(
                CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
                for name, source in sources
            ),
            *(CommitOperationDelete(name) for name in removed),
        ]
        try:
            return _ask(api.create_commit, repo_id, operations, commit_message=message, parent_commit=head).oid
        except ConnectionError as error:
            report(f"{error}; attempt {attempt} of {ATTEMPTS}")
            if attempt == ATTEMPTS:
                raise ConnectionError(f"{error}. Nothing was published; run it again to go on.") from error
            time.sleep(PAUSE * 2 ** (attempt - 1))
            newest = _ask(api.list_repo_commits, repo_id)[0]
            if newest.commit_id != head and newest.title != message:
                raise ConnectionError(f"{repo_id} was changed by somebody else meanwhile; run it again.") from error
            if newest.commit_id != head:  # it did happen, and its answer was lost
                return newest.commit_id
    raise AssertionError("unreachable")


def _ask(call: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
    """Ask the Hub; errors come back in plain words and without the request.

    Raises:
        RepositoryNotFoundError, LocalTokenNotFoundError: as they are, to be told apart.
        PermissionError, ConnectionError, ValueError, OSError: as [`publish`] says.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return call(*args, **kwargs)
    except (RepositoryNotFoundError, LocalTokenNotFoundError):
        raise
    except OfflineModeIsEnabled:
        raise ConnectionError("HF_HUB_OFFLINE is set: nothing is sent; unset it to publish.") from None
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            raise ValueError(" ".join(str(error).split())) from None  # what the client found wrong with the card
        causes = _causes(error)
        status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), 0)
        if status == 401:
            raise PermissionError("the Hub does not accept the access token: run 'hf auth login' again.") from None
        if status == 403:
            raise PermissionError("the access token may not write there; choose another owner or token.") from None
        if status in (408, 429) or status >= 500:
            raise ConnectionError(f"the Hub is busy or ill (HTTP {status})") from None
        if status:
            words = getattr(error, "server_message", None) or str(error).strip().split("\n")[-1]
            raise OSError(f"the Hub refused (HTTP {status}): {' '.join(words.split())}") from None
        # by name: the client's HTTP library has changed, and both call it so
        names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
        if names & {"TransportError", "ConnectionError", "TimeoutError"}:
            raise ConnectionError("the connection to the Hub failed") from None
        raise


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and what led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found

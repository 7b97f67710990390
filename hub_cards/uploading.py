"""Putting a selection of files into a repository of the Hub: one commit, a tag, and nothing half done.

huggingface_hub uploads large files first, as objects that no branch knows yet; the Hub keeps them, so a broken upload
goes on where it stopped when the same command is given again. Only then one commit makes everything visible at once.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.hub_cards.file_selection import PublishedFile
from modeling_tsarank.ranking_errors import InputError, ResourceError


logger = logging.getLogger(__name__)

ATTEMPTS = 5
# Seconds before the second attempt; each further wait is twice as long.
FIRST_WAIT = 1.0
WAIT_VARIABLE = "TSARANK_UPLOAD_WAIT"
"""Environment variable with another first wait."""
# huggingface_hub changed its HTTP library from httpx to httpx2; a broken connection is an exception of that library.
BROKEN_CONNECTIONS = tuple(
    importlib.import_module(name).TransportError for name in ("httpx", "httpx2") if importlib.util.find_spec(name)
)


@dataclass(frozen=True)
class Target:
    """Where something is published.

    Attributes:
        repo_id: `owner/name`.
        repo_type: "model", "dataset" or "space".
        tag: name of the revision that is made, or `None`.
        private: visibility of a new repository, which an existing one must already have; `None` makes a private one
            and takes an existing one as it is.
        message: of the commit.
        space_sdk: of a new Space.
        token: the Hub's token; `None` takes `HF_TOKEN` or the one of `hf auth login`.
    """

    repo_id: str
    repo_type: str
    tag: str | None
    private: bool | None = True
    message: str = "Publish with tsarank"
    space_sdk: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class Published:
    """What a publication came to.

    Attributes:
        url: of the repository.
        commit: the commit that holds the files.
        tag: its tag, or `None`.
        changed: whether anything was new.
    """

    url: str
    commit: str
    tag: str | None
    changed: bool


def check_repo_id(repo_id: str) -> None:
    """Raises `InputError` unless it is `owner/name` as the Hub takes it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} cannot be the name of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"a repository is named owner/name, got {repo_id!r}")


def upload(
    files: Sequence[PublishedFile], target: Target, stale: Callable[[str], bool] = lambda _: False
) -> Published:
    """Publishes files as one commit, and tags it.

    Args:
        files: the whole of what is published.
        target: where.
        stale: says which other files of the repository the same commit takes out, such as an older version's weights.

    Raises:
        InputError: no or an insufficient token, another visibility than asked for, or a tag that stands for something
            else.
        ResourceError: the Hub cannot be reached or the repository was changed meanwhile; nothing of the commit is
            visible then, and the same command goes on.
    """
    check_repo_id(target.repo_id)
    if target.token is None and get_token() is None:
        raise InputError("no Hub token: set HF_TOKEN, or log in with `hf auth login`")
    first_wait = _first_wait()
    publisher = _Upload(files, target, stale)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return publisher.run()
        except (HfHubHTTPError, OSError, RuntimeError, *BROKEN_CONNECTIONS) as error:
            cause = _cause(error)
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if isinstance(error, ResourceError):
                raise
            if status is not None and status not in (408, 429) and status < 500:
                raise _refused(publisher.name, status, cause) from error
            if attempt == ATTEMPTS:
                raise ResourceError(
                    f"the Hub at {publisher.api.endpoint} failed {ATTEMPTS} times ({_short(cause)}); nothing of "
                    f"{publisher.name} has changed, what was uploaded is kept: run the same command again"
                ) from error
            wait = first_wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            logger.warning("%s; trying again in %.0f s (%d of %d)", _short(cause), wait, attempt, ATTEMPTS)
            time.sleep(wait)
    raise AssertionError("the loop returns or raises")


class _Upload:
    """An upload that may be run again after any failure: what the Hub has already is not sent twice."""

    def __init__(self, files: Sequence[PublishedFile], target: Target, stale: Callable[[str], bool]) -> None:
        self.target, self.stale = target, stale
        self.sources = {file.path: file.source for file in files}
        self.api = HfApi(token=target.token)
        self.repo: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
        self.name = f"the {target.repo_type} {target.repo_id}"
        self.before: str | None = None

    def run(self) -> Published:
        head = self._prepare()
        self.before = self.before or head
        tags = {tag.name: tag.target_commit for tag in self.api.list_repo_refs(**self.repo).tags}
        url = f"{self.api.endpoint}/{_PREFIX[self.target.repo_type]}{self.target.repo_id}"
        tag = self.target.tag
        if tag is not None and tag in tags:
            if self._holds(tags[tag]):
                return Published(url, tags[tag], tag, head != self.before)
            raise InputError(
                f"{self.name} already has a {tag}, whose files are others ({tags[tag][:8]}); "
                "give this version another --tag"
            )
        commit = head if self._holds(head) else self._commit(head)
        if tag is not None:
            self.api.create_tag(**self.repo, tag=tag, revision=commit, exist_ok=True)
        return Published(url, commit, tag, commit != self.before)

    def _prepare(self) -> str:
        """Makes the repository if there is none; returns the commit that `main` stands at."""
        target = self.target
        try:
            info = self.api.repo_info(**self.repo)
        except RepositoryNotFoundError:
            self.api.create_repo(
                **self.repo, private=target.private is not False, exist_ok=True, space_sdk=target.space_sdk
            )
            info = self.api.repo_info(**self.repo)
        if target.private is not None and bool(info.private) != target.private:
            there, option = ("private", "leave out --public") if info.private else ("public", "say --public")
            raise InputError(f"{self.name} exists and is {there}; {option} to publish there, or change it on the Hub")
        return str(info.sha)

    def _holds(self, revision: str) -> bool:
        """Whether that revision has exactly these files, and nothing stale beside them."""
        remote = self._remote(revision)
        if any(self.stale(path) and path not in self.sources for path in remote):
            return False
        return all(path in remote and _is_same(source, remote[path]) for path, source in self.sources.items())

    def _remote(self, revision: str) -> dict[str, RepoFile]:
        try:
            tree = list(self.api.list_repo_tree(**self.repo, recursive=True, revision=revision))
        except RevisionNotFoundError:
            return {}
        return {item.path: item for item in tree if isinstance(item, RepoFile)}

    def _commit(self, head: str) -> str:
        """Uploads large files, then makes everything visible by one commit."""
        operations: list[Any] = [CommitOperationAdd(path, source) for path, source in self.sources.items()]
        for path in self._remote(head):
            if path not in self.sources and self.stale(path):
                logger.warning("%s: %s of the earlier version is taken out", self.target.repo_id, path)
                operations.append(CommitOperationDelete(path))
        try:
            info = self.api.create_commit(
                **self.repo, operations=operations, commit_message=self.target.message, parent_commit=head
            )
            return str(info.oid)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 412:
                raise
            raise ResourceError(
                f"{self.name} was changed by somebody else meanwhile; run the same command again"
            ) from error


_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def _is_same(source: Path | bytes, remote: RepoFile) -> bool:
    """Whether a file's content has the remote one's id: git's of a blob, or the SHA-256 of what is stored by LFS."""
    if remote.lfs is None:
        return git_hash(source if isinstance(source, bytes) else source.read_bytes()) == remote.blob_id
    return (
        hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else hash_file(source)
    ) == remote.lfs.sha256


def _refused(name: str, status: int, error: BaseException) -> InputError:
    if status == 401:
        return InputError("the Hub refused the token; log in anew with `hf auth login`, or set another HF_TOKEN")
    if status == 403:
        return InputError(f"this token may not write to {name}; it needs the right to write there")
    return InputError(f"the Hub refused {name}: {_short(error)}")


def _first_wait() -> float:
    text = os.environ.get(WAIT_VARIABLE) or str(FIRST_WAIT)
    try:
        wait = float(text)
    except ValueError:
        wait = math.nan
    if not 0 <= wait <= 3600:
        raise InputError(f"{WAIT_VARIABLE} must be a number of seconds from 0 to 3600, got {text!r:.60}")
    return wait


def _cause(error: BaseException) -> BaseException:
    """What lies beneath huggingface_hub's own wrapping of an upload's failure."""
    while isinstance(error, RuntimeError) and not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

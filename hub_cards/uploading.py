"""Uploads a publication: a preview, then one commit and a tag, so that nothing is half published.

huggingface_hub uploads large files first, as objects outside any branch; the Hub stores them, so that repeating the
command resumes an interrupted upload. Only then does one commit make everything visible at once.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.sizes import readable_size
from modeling_tsarank.hub_cards.file_selection import Selection, fits
from modeling_tsarank.hub_cards.secret_scan import refuse_secrets
from modeling_tsarank.ranking_errors import InputError, ResourceError


logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
DEFAULT_TAG = "v1"
UNKNOWN_LICENSE = "unknown"
ATTEMPTS = 5
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further wait is twice as long."""
# huggingface_hub changed its HTTP library from httpx to httpx2; a connection error is an exception of that library.
BROKEN_CONNECTIONS = tuple(
    importlib.import_module(name).TransportError for name in ("httpx", "httpx2") if importlib.util.find_spec(name)
)


@dataclass(frozen=True)
class Published:
    """The result of a publication.

    Attributes:
        url: URL of the repository.
        commit: The commit with the files.
        changed: Whether anything was new.
    """

    url: str
    commit: str
    changed: bool


@dataclass
class Publication:
    """A publication that is ready to upload.

    Attributes:
        selection: The files, including the card.
        repo_id: `owner/name`.
        repo_type: "model", "dataset" or "space".
        tag: Name of the revision to create.
        private: Visibility of a new repository, which must match that of an existing one; `None` creates a private one
            and leaves an existing one unchanged.
        message: Commit message.
        stale: Patterns of the repository's other files to delete in the commit, such as an older version's weights.
        not_secret: Paths that the user has checked for secrets.
        refusals: Reasons why this cannot be published; a preview is possible all the same.
        space_sdk: SDK of a new Space.
        token: The Hub's token; `None` takes `HF_TOKEN` or the one of `hf auth login`.
    """

    selection: Selection
    repo_id: str
    repo_type: str
    tag: str = DEFAULT_TAG
    private: bool | None = True
    message: str | None = None
    stale: Sequence[str] = ()
    not_secret: Sequence[str] = ()
    refusals: Sequence[str] = ()
    space_sdk: str | None = None
    token: str | None = None

    @property
    def card(self) -> str:
        """The text of the card."""
        return next(file for file in self.selection.files if file.path == CARD_NAME).read().decode("utf-8")

    def check(self, preview: bool = False) -> None:
        """Raises `InputError` if this cannot be published: an invalid repository name, files that seem to contain
        secrets, or, unless `preview`, any of `refusals`."""
        check_repo_id(self.repo_id)
        if self.refusals and not preview:
            raise InputError(self.refusals[0])
        refuse_secrets(self.selection.files, self.not_secret)

    def carry_out(self) -> Published:
        """Checks and uploads, see `upload`."""
        self.check()
        return upload(self)

    def describe(self) -> str:
        """The output of `--dry-run`: files with their sizes, what is left out and why, and the card."""
        visibility = "public" if self.private is False else "private"
        lines = [f"{self.repo_type} {self.repo_id} ({visibility}, one commit, tag {self.tag})", ""]
        width = max(len(readable_size(file.size)) for file in self.selection.files)
        lines += [f"  {readable_size(file.size):>{width}}  {file.path}" for file in self.selection.files]
        lines.append(f"  {readable_size(self.selection.size):>{width}}  in {len(self.selection.files)} files")
        if self.selection.left_out:
            lines += ["", "left out:"]
            lines += [f"  {path}  ({why})" for path, why in self.selection.left_out]
        if self.refusals:
            lines += ["", "the real run will fail because:"]
            lines += [f"  {reason}" for reason in self.refusals]
        return "\n".join([*lines, "", f"{CARD_NAME}:", "", self.card])


def check_repo_id(repo_id: str) -> None:
    """Raises `InputError` unless it is a valid `owner/name` of the Hub."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is not a valid repository name: {error}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"expected a repository as owner/name, got {repo_id!r}")


def upload(publication: Publication) -> Published:
    """Publishes the files of a publication as one commit, and tags it.

    Raises:
        InputError: No token or one without write access, a repository of another visibility than given, or an existing
            tag with other files.
        ResourceError: The Hub cannot be reached or the repository was changed in the meantime; nothing of the commit
            is visible then, and repeating the command resumes.
    """
    if publication.token is None and get_token() is None:
        raise InputError("no Hub token: set HF_TOKEN, or log in with `hf auth login`")
    publisher = _Upload(publication)
    attempt = 1
    while True:
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
                    f"the Hub at {publisher.api.endpoint} failed {ATTEMPTS} times ({_short(cause)}); "
                    f"{publisher.name} is unchanged, uploaded files are stored: run the same command again to resume"
                ) from error
            wait = FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            logger.warning("%s; trying again in %.0f s (%d of %d)", _short(cause), wait, attempt, ATTEMPTS)
            time.sleep(wait)
            attempt += 1


class _Upload:
    """An upload that can be repeated after any failure: files that the Hub already has are not sent again."""

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.sources = {file.path: file.source for file in publication.selection.files}
        self.api = HfApi(token=publication.token)
        self.repo: dict[str, Any] = {"repo_id": publication.repo_id, "repo_type": publication.repo_type}
        self.name = f"the {publication.repo_type} {publication.repo_id}"
        self.before: str | None = None

    def run(self) -> Published:
        head = self._prepare()
        self.before = self.before or head
        tags = {tag.name: tag.target_commit for tag in self.api.list_repo_refs(**self.repo).tags}
        prefix = REPO_TYPES_URL_PREFIXES.get(self.publication.repo_type, "")
        url = f"{self.api.endpoint}/{prefix}{self.publication.repo_id}"
        tag = self.publication.tag
        if tag in tags:
            if self._holds(tags[tag]):
                return Published(url, tags[tag], head != self.before)
            raise InputError(
                f"{self.name} already has a {tag} with other files ({tags[tag][:8]}); give this version another --tag"
            )
        commit = head if self._holds(head) else self._commit(head)
        self.api.create_tag(**self.repo, tag=tag, revision=commit, exist_ok=True)
        return Published(url, commit, commit != self.before)

    def _prepare(self) -> str:
        """Creates the repository if there is none; returns the current commit of `main`."""
        private = self.publication.private
        try:
            info = self.api.repo_info(**self.repo)
        except RepositoryNotFoundError:
            sdk = self.publication.space_sdk
            self.api.create_repo(**self.repo, private=private is not False, exist_ok=True, space_sdk=sdk)
            info = self.api.repo_info(**self.repo)
        if private is not None and bool(info.private) != private:
            there, option = ("private", "leave out --public") if info.private else ("public", "add --public")
            raise InputError(f"{self.name} exists and is {there}; {option} to publish there, or change it on the Hub")
        return str(info.sha)

    def _holds(self, revision: str) -> bool:
        """Whether that revision has exactly these files, and no stale ones."""
        remote = self._remote(revision)
        here = (path in remote and _is_same(source, remote[path]) for path, source in self.sources.items())
        return not self._stale(remote) and all(here)

    def _stale(self, remote: Iterable[str]) -> list[str]:
        return [path for path in remote if path not in self.sources and fits(path, self.publication.stale)]

    def _remote(self, revision: str) -> dict[str, RepoFile]:
        try:
            tree = list(self.api.list_repo_tree(**self.repo, recursive=True, revision=revision))
        except RevisionNotFoundError:
            return {}
        return {item.path: item for item in tree if isinstance(item, RepoFile)}

    def _commit(self, head: str) -> str:
        """Uploads large files, then makes everything visible by one commit."""
        operations: list[Any] = [CommitOperationAdd(path, source) for path, source in self.sources.items()]
        for path in self._stale(self._remote(head)):
            logger.warning("%s: %s of the earlier version is deleted", self.publication.repo_id, path)
            operations.append(CommitOperationDelete(path))
        name = self.publication.repo_id.rpartition("/")[2]
        message = self.publication.message or f"Publish {name} {self.publication.tag}"
        try:
            info = self.api.create_commit(
                **self.repo, operations=operations, commit_message=message, parent_commit=head
            )
            return str(info.oid)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 412:
                raise
            raise ResourceError(
                f"{self.name} was changed by someone else in the meantime; run the same command again"
            ) from error


def _is_same(source: Path | bytes, remote: RepoFile) -> bool:
    """Whether a file's content has the remote id: git's blob id, or the SHA-256 of a file stored with LFS."""
    if remote.lfs is None:
        return git_hash(source if isinstance(source, bytes) else source.read_bytes()) == remote.blob_id
    return (
        hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else hash_file(source)
    ) == remote.lfs.sha256


def _refused(name: str, status: int, error: BaseException) -> InputError:
    if status == 401:
        return InputError("the Hub rejected the token; log in again with `hf auth login`, or set another HF_TOKEN")
    if status == 403:
        return InputError(f"this token has no write access to {name}; use one with write access")
    return InputError(f"the Hub rejected {name}: {_short(error)}")


def _cause(error: BaseException) -> BaseException:
    """The original exception inside huggingface_hub's wrapper of an upload failure."""
    while isinstance(error, RuntimeError) and not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

"""A publication from its plan to the Hub: what is shown first, then one commit and a tag, with nothing half done.

huggingface_hub uploads large files first, as objects that no branch knows yet; the Hub keeps them, so a broken upload
goes on where it stopped when the same command is given again. Only then one commit makes everything visible at once.
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
# huggingface_hub changed its HTTP library from httpx to httpx2; a broken connection is an exception of that library.
BROKEN_CONNECTIONS = tuple(
    importlib.import_module(name).TransportError for name in ("httpx", "httpx2") if importlib.util.find_spec(name)
)


@dataclass(frozen=True)
class Published:
    """What a publication came to.

    Attributes:
        url: of the repository.
        commit: the commit that holds the files.
        changed: whether anything was new.
    """

    url: str
    commit: str
    changed: bool


@dataclass
class Publication:
    """Something that is ready to be published.

    Attributes:
        selection: the files, card included.
        repo_id: `owner/name`.
        repo_type: "model", "dataset" or "space".
        tag: name of the revision that is made.
        private: visibility of a new repository, which an existing one must already have; `None` makes a private one
            and takes an existing one as it is.
        message: of the commit.
        stale: patterns of the repository's other files that the commit takes out, such as an older version's weights.
        not_secret: paths whose look-alikes of secrets the user has looked at.
        refusals: why this cannot be published, where a preview was made all the same.
        space_sdk: of a new Space.
        token: the Hub's token; `None` takes `HF_TOKEN` or the one of `hf auth login`.
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
        """Raises `InputError` for whatever keeps this from being published: a name the Hub would not take, files that
        hold what looks like a secret, and, but for a preview, `refusals`."""
        check_repo_id(self.repo_id)
        if self.refusals and not preview:
            raise InputError(self.refusals[0])
        refuse_secrets(self.selection.files, self.not_secret)

    def carry_out(self) -> Published:
        """Checks and uploads, see `upload`."""
        self.check()
        return upload(self)

    def describe(self) -> str:
        """Files with their sizes, what is left out and why, and the card: what `--dry-run` prints."""
        visibility = "public" if self.private is False else "private"
        lines = [f"{self.repo_type} {self.repo_id} ({visibility}, one commit, tag {self.tag})", ""]
        width = max(len(readable_size(file.size)) for file in self.selection.files)
        lines += [f"  {readable_size(file.size):>{width}}  {file.path}" for file in self.selection.files]
        lines.append(f"  {readable_size(self.selection.size):>{width}}  in {len(self.selection.files)} files")
        if self.selection.left_out:
            lines += ["", "left out:"]
            lines += [f"  {path}  ({why})" for path, why in self.selection.left_out]
        if self.refusals:
            lines += ["", "the real run will refuse this:"]
            lines += [f"  {reason}" for reason in self.refusals]
        return "\n".join([*lines, "", f"{CARD_NAME}:", "", self.card])


def check_repo_id(repo_id: str) -> None:
    """Raises `InputError` unless it is `owner/name` as the Hub takes it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} cannot be the name of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"a repository is named owner/name, got {repo_id!r}")


def upload(publication: Publication) -> Published:
    """Publishes the files of a publication as one commit, and tags it.

    Raises:
        InputError: no or an insufficient token, another visibility than asked for, or a tag that stands for something
            else.
        ResourceError: the Hub cannot be reached or the repository was changed meanwhile; nothing of the commit is
            visible then, and the same command goes on.
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
                    f"the Hub at {publisher.api.endpoint} failed {ATTEMPTS} times ({_short(cause)}); nothing of "
                    f"{publisher.name} has changed, what was uploaded is kept: run the same command again"
                ) from error
            wait = FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            logger.warning("%s; trying again in %.0f s (%d of %d)", _short(cause), wait, attempt, ATTEMPTS)
            time.sleep(wait)
            attempt += 1


class _Upload:
    """An upload that may be run again after any failure: what the Hub has already is not sent twice."""

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
                f"{self.name} already has a {tag}, whose files are others ({tags[tag][:8]}); "
                "give this version another --tag"
            )
        commit = head if self._holds(head) else self._commit(head)
        self.api.create_tag(**self.repo, tag=tag, revision=commit, exist_ok=True)
        return Published(url, commit, commit != self.before)

    def _prepare(self) -> str:
        """Makes the repository if there is none; returns the commit that `main` stands at."""
        private = self.publication.private
        try:
            info = self.api.repo_info(**self.repo)
        except RepositoryNotFoundError:
            sdk = self.publication.space_sdk
            self.api.create_repo(**self.repo, private=private is not False, exist_ok=True, space_sdk=sdk)
            info = self.api.repo_info(**self.repo)
        if private is not None and bool(info.private) != private:
            there, option = ("private", "leave out --public") if info.private else ("public", "say --public")
            raise InputError(f"{self.name} exists and is {there}; {option} to publish there, or change it on the Hub")
        return str(info.sha)

    def _holds(self, revision: str) -> bool:
        """Whether that revision has exactly these files, and nothing stale beside them."""
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
            logger.warning("%s: %s of the earlier version is taken out", self.publication.repo_id, path)
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
                f"{self.name} was changed by somebody else meanwhile; run the same command again"
            ) from error


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


def _cause(error: BaseException) -> BaseException:
    """What lies beneath huggingface_hub's own wrapping of an upload's failure."""
    while isinstance(error, RuntimeError) and not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

"""A disk cache of all expensive results: a model's answers, scores, generated queries.

Every entry is on disk as soon as it is computed, so an interrupted run loses at most the requests in progress, and a
second run repeats no request. The key is a hash of the request; it includes no header, and so no API key.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from modeling_tsarank.files.result_log import ResultLog
from modeling_tsarank.files.writing import write_errors
from modeling_tsarank.ranking_errors import InputError


def request_key(request: Any) -> str:
    """SHA-256 (hexadecimal) of a JSON-serializable request, independent of the order of its fields."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_BEGINNING = b'{"settings":'


class RequestCache(ResultLog):
    """Maps requests to answers, both JSON-serializable: a `ResultLog` whose units are the keys of requests.

    Args:
        path: The file; its folder is created if necessary.

    Raises:
        InputError: the file is not such a cache.
        ResourceError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        with write_errors(path):  # fail before any request is paid for
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        super().__init__(path)
        with path.open("rb") as file:
            head = file.read(len(_BEGINNING))
            # A first line truncated by a kill is accepted if it is a prefix of ours.
            foreign = not _BEGINNING.startswith(head) or b"\n" in file.read()
        if not len(self) and foreign:
            raise InputError(f"{path} is not a cache of answers; choose another file, or remove it")

    def get(self, request: Any) -> Any | None:
        """The cached answer to `request`, or None."""
        try:
            return self[request_key(request)]
        except KeyError:
            return None

    def put(self, request: Any, answer: Any) -> None:
        """Stores an answer; on disk when this returns. An existing answer is replaced."""
        self.add({request_key(request): answer})

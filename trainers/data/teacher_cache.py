"""A disk cache of everything that was paid for: a model's answers, scores, generated queries.

Every entry is on the disk as soon as it is there, so a killed run loses at most what was under way, and a second run
asks nothing twice. The key is a hash of the request; no header, and so no API key, is part of it.
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
    """SHA-256 (hexadecimal) of a JSON-able request, whatever the order of its fields."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_BEGINNING = b'{"settings":'


class RequestCache(ResultLog):
    """Request to answer, both JSON-able: a `ResultLog` whose units are the keys of requests.

    Args:
        path: The file; its folder is made if need be.

    Raises:
        InputError: the file is no such cache.
        ResourceError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        with write_errors(path):  # found out before anything is paid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        super().__init__(path)
        with path.open("rb") as file:
            head = file.read(len(_BEGINNING))
            # A first line that a kill has cut is one of ours as far as it goes.
            foreign = not _BEGINNING.startswith(head) or b"\n" in file.read()
        if not len(self) and foreign:
            raise InputError(f"{path} is no cache of answers; name another file, or remove it")

    def get(self, request: Any) -> Any | None:
        """The answer to `request`, or None where it was never answered."""
        try:
            return self[request_key(request)]
        except KeyError:
            return None

    def put(self, request: Any, answer: Any) -> None:
        """Keeps an answer; on disk when this returns. An answer that is there already is replaced."""
        self.add({request_key(request): answer})

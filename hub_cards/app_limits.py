"""Limits of one request to the Space, so that fifty at once exhaust neither memory nor time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from modeling_tsarank.cache.state_files import NamedDocument
from modeling_tsarank.ranking_errors import InputError


PREFIX = "TSARANK_APP_"


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of the queue. Each can be set by the environment variable TSARANK_APP_<FIELD>.

    Attributes:
        documents: Maximum number of documents.
        document_bytes: UTF-8 bytes of one document.
        total_bytes: UTF-8 bytes of all documents together, or of an uploaded file.
        query_characters: Characters of the query.
        tokens: Model tokens of one request, after each document is truncated to the model's length.
        seconds: Time limit of one ranking; checked before every batch.
        waiting: Maximum length of the queue; further requests are rejected.
    """

    documents: int = 100
    document_bytes: int = 20_000
    total_bytes: int = 256_000
    query_characters: int = 1_000
    tokens: int = 12_000
    seconds: int = 60
    waiting: int = 40

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Limits:
        """The defaults, overridden by the environment. Raises `InputError` unless a value is a positive number."""
        environment = os.environ if environment is None else environment
        values = {}
        for field in fields(cls):
            name = PREFIX + field.name.upper()
            text = environment.get(name)
            if text is None:
                continue
            if not (text.isascii() and text.isdigit()) or int(text) < 1:
                raise InputError(f"{name} must be a positive whole number, got {text!r}")
            values[field.name] = int(text)
        return cls(**values)

    @property
    def body_bytes(self) -> int:
        """Bytes of one HTTP request body: the documents as JSON, up to six bytes per character, plus a margin."""
        return 6 * self.total_bytes + 65_536

    def check_query(self, query: str) -> None:
        """Raises `InputError` if the query is too long."""
        if len(query) > self.query_characters:
            raise InputError(
                f"the query has {len(query):,} characters; at most {self.query_characters:,} are allowed here"
            )

    def check_size(self, size: int, what: str) -> None:
        """Raises `InputError` if `size` bytes, of `what`, exceed the limit for all documents together."""
        if size > self.total_bytes:
            raise InputError(
                f"{what} {size:,} bytes; at most {self.total_bytes:,} are allowed here: "
                "provide fewer or shorter documents"
            )

    def check_documents(self, documents: Sequence[NamedDocument]) -> None:
        """Raises `InputError` if there are no documents, too many, or too large ones."""
        if not documents:
            raise InputError("there are no documents to rank; provide at least one")
        if len(documents) > self.documents:
            raise InputError(f"{len(documents):,} documents were given; at most {self.documents:,} are allowed here")
        total = 0
        for document in documents:
            size = len(document.text.encode("utf-8", "replace"))
            if size > self.document_bytes:
                raise InputError(
                    f"document {document.id[:40]} has {size:,} bytes; at most {self.document_bytes:,} are allowed here"
                )
            total += size
        self.check_size(total, "the documents have")

    def check_tokens(self, tokens: int, documents: int) -> None:
        """Raises `InputError` if the model would have to process too many tokens."""
        if tokens > self.tokens:
            raise InputError(
                f"{documents:,} documents have {tokens:,} tokens in total; at most {self.tokens:,} are allowed here: "
                "provide fewer or shorter documents"
            )

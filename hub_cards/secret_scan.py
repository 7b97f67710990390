"""Texts that look like passwords and tokens, searched for in everything that is about to be published."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tqdm.auto import tqdm

from modeling_tsarank.hub_cards.file_selection import PublishedFile
from modeling_tsarank.ranking_errors import InputError


# What a provider's tokens look like. Each is specific enough to be rare in ordinary text.
PATTERNS: tuple[tuple[str, str], ...] = (
    ("a Hugging Face token", r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("an OpenAI or Anthropic key", r"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a Google key", r"\bAIza[0-9A-Za-z_-]{35}\b"),
    ("a Slack token", r"\bxox[abeprs]-[0-9A-Za-z-]{20,}"),
    ("a PyPI token", r"\bpypi-[A-Za-z0-9_-]{50,}"),
    ("a Weights & Biases key", r"(?i:\bwandb[_-]?api[_-]?key\W{1,5}[0-9a-f]{40}\b)"),
    ("a private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    (
        "a password in an address",
        r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'{}<>]{1,64}:[^\s:/@\"'{}<>]{3,128}@[\w.-]{3,}",
    ),
)
_ANY = re.compile("|".join(f"(?P<p{i}>{pattern})" for i, (_, pattern) in enumerate(PATTERNS)).encode())
_PIECE = 1 << 20
# Longer than anything the patterns match, so that nothing is missed where two pieces meet.
_OVERLAP = 512


@dataclass(frozen=True)
class Finding:
    """Something that looks like a secret: the file, where in it, and what it looks like. Never the text itself."""

    path: str
    place: str
    what: str


def refuse_secrets(files: Sequence[PublishedFile], not_secret: Iterable[str] = (), show: bool | None = None) -> None:
    """Raises `InputError` if a file holds what looks like a secret.

    Args:
        files: what is about to be published.
        not_secret: paths whose look-alikes the user has looked at.
        show: whether to show a progress bar; `None` where there is much to read.

    Raises:
        InputError: names the first look-alikes, without their text.
    """
    allowed, findings = set(not_secret), []
    total = sum(file.size for file in files)
    with tqdm(
        total=total,
        desc="looking for secrets",
        unit="B",
        unit_scale=True,
        disable=not (total > 200_000_000 if show is None else show),
    ) as bar:
        for file in files:
            if file.path not in allowed:
                findings += find_secrets(file)
            bar.update(file.size)
    if findings:
        shown = "; ".join(f"{f.path} ({f.place}): {f.what}" for f in findings[:3])
        more = f" and {len(findings) - 3} more" if len(findings) > 3 else ""
        raise InputError(
            f"not published, because this looks like a secret: {shown}{more}; take it out, or, if it is none, "
            f"allow the file with --not-secret {findings[0].path}"
        )


def find_secrets(file: PublishedFile) -> list[Finding]:
    """Look-alikes in one file: in text by line, in Parquet by column, in safetensors in the header."""
    stream: IO[bytes] = io.BytesIO(file.source) if isinstance(file.source, bytes) else file.source.open("rb")
    with stream:
        head = stream.read(8192)
        stream.seek(0)
        if file.path.endswith(".safetensors"):
            length = int.from_bytes(head[:8], "little")
            return [Finding(file.path, "header", what) for _, what in _in_bytes(head[8 : 8 + length])]
        if head[:4] == b"PAR1":
            return _in_parquet(file, stream)
        if b"\0" in head:
            return []  # a binary file: weights, an image
        return [Finding(file.path, f"line {line}", what) for line, what in _in_stream(stream)]


def _in_bytes(data: bytes) -> Iterator[tuple[int, str]]:
    for match in _ANY.finditer(data):
        yield match.start(), PATTERNS[int((match.lastgroup or "p0")[1:])][0]


def _in_stream(stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Line numbers and kinds, in pieces that overlap."""
    before, line, reported = b"", 1, -1
    start = 0
    while piece := stream.read(_PIECE):
        data = before + piece
        for position, what in _in_bytes(data):
            if start + position > reported:
                reported = start + position
                yield line + data[:position].count(b"\n"), what
        kept = data[-_OVERLAP:]
        line += data[: len(data) - len(kept)].count(b"\n")
        start += len(data) - len(kept)
        before = kept


def _in_parquet(file: PublishedFile, stream: IO[bytes]) -> list[Finding]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(stream)
    findings = []
    metadata = table.schema_arrow.metadata or {}
    for _, what in _in_bytes(b"\n".join(metadata.values())):
        findings.append(Finding(file.path, "metadata", what))
    for batch in table.iter_batches(batch_size=2048):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if _holds_text(column.type):
                text = json.dumps(column.to_pylist(), ensure_ascii=False).encode("utf-8", "replace")
                findings += [Finding(file.path, f"column {name}", what) for _, what in _in_bytes(text)]
    return findings


def _holds_text(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return True
    return any(_holds_text(kind.field(i).type) for i in range(kind.num_fields))

"""Scans everything that is about to be published for texts that look like passwords and tokens.

Only files whose complete text can be scanned are published by default: UTF-8 text, gzip of it, Parquet, safetensors
and SentencePiece models. Everything else is rejected unless the user allows it by name. Not found are secrets that are
encrypted, in base64, written as numbers, or shown in the pixels of an image.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import html
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from modeling_tsarank.hub_cards.file_selection import PublishedFile
from modeling_tsarank.ranking_errors import InputError


# The formats of providers' tokens: their prefixes, and the whole pattern. Each is specific enough to be rare in
# ordinary text.
_PART = rb"[^\s:/@\"'{}<>\x00-\x20\x7f-\xff]"
_PATTERNS: tuple[tuple[str, tuple[bytes, ...], bytes], ...] = (
    ("a Hugging Face token", (b"hf_", b"api_org_"), rb"(?:hf|hf_oauth|api_org)_[A-Za-z0-9]{30,}"),
    (
        "a GitHub token",
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        rb"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    ),
    ("a GitLab token", (b"glpat-",), rb"glpat-[A-Za-z0-9_-]{20,}"),
    ("an OpenAI or Anthropic key", (b"sk-",), rb"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    ("a Groq key", (b"gsk_",), rb"gsk_[A-Za-z0-9]{40,}"),
    ("an NVIDIA key", (b"nvapi-",), rb"nvapi-[A-Za-z0-9_-]{50,}"),
    ("an AWS access key", (b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])"),
    (
        "an AWS secret key",
        (b"secret_access_key", b"SECRET_ACCESS_KEY", b"secretAccessKey"),
        rb"(?i:secret_?access_?key)\W{1,5}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    ),
    ("a Google key", (b"AIza",), rb"\bAIza[0-9A-Za-z_-]{35}"),
    ("a Slack token", (b"xox",), rb"\bxox[abeprs]-[0-9A-Za-z-]{20,}"),
    ("a PyPI token", (b"pypi-",), rb"pypi-[A-Za-z0-9_-]{50,}"),
    ("a Weights & Biases key", (b"andb", b"ANDB"), rb"(?i:andb[_-]?api[_-]?key\W{1,5}[0-9a-f]{40}(?![0-9a-f]))"),
    ("a private key", (b"-----BEGIN ",), rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    (
        "a password in an address",
        (b"://",),
        rb"(?<=[A-Za-z0-9+.-])://(?:%b{0,64}:%b{3,128}|%b{20,128})@[\w.-]{3,}" % (_PART, _PART, _PART),
    ),
)
PATTERNS = tuple((what, signs, re.compile(pattern)) for what, signs, pattern in _PATTERNS)
# Escapes of characters in JSON, source code, URLs and HTML; a token may follow one without a space.
_ESCAPE = re.compile(
    rb"[\\%&](?:(?<=\\)(?:[nrtbf]|(/)|(?:x|u00|u\{)([0-7][0-9a-fA-F])\}?|([01][0-7]{2}))"
    rb"|(?<=%)([2-7][0-9a-fA-F])|(?<=&)(#?[A-Za-z0-9]{2,8};))"
)
_PIECE = 1 << 20
# Longer than any token, so that nothing is missed across chunk boundaries.
_OVERLAP = 4096
_WHAT_IS_READ = "neither UTF-8 text, as it is or in gzip, nor Parquet, safetensors or SentencePiece"


@dataclass(frozen=True)
class Finding:
    """A text that looks like a secret, or a file that cannot be scanned.

    Attributes:
        path: The file.
        place: Where in the file; empty for a file that cannot be scanned.
        what: What it looks like, or why the file cannot be scanned. Never the text itself.
    """

    path: str
    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.path} ({self.place}): {self.what}" if self.place else f"{self.path} ({self.what})"


class _UnreadableError(ValueError):
    """The text of a file, or of a part of it, cannot be extracted."""


def refuse_secrets(files: Sequence[PublishedFile], not_secret: Iterable[str] = ()) -> None:
    """Raises `InputError` if a file contains text that looks like a secret, or cannot be scanned.

    Args:
        files: The files to publish.
        not_secret: Paths that the user has checked.

    Raises:
        InputError: Lists the first findings, without their text.
    """
    allowed, findings = set(not_secret), []
    total = sum(file.size for file in files)
    quick = total <= 200_000_000
    with tqdm(total=total, desc="scanning for secrets", unit="B", unit_scale=True, disable=quick) as bar:
        for file in files:
            if file.path not in allowed:
                findings += find_secrets(file)
            bar.update(file.size)
    worst = [finding for finding in findings if finding.place] or findings
    if worst:
        reason, advice = "looks like a secret", "remove it, or, if it is not one,"
        if not worst[0].place:
            reason, advice = "cannot be scanned for secrets", "publish it in another format, or, if it has none,"
        more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        raise InputError(
            f"not published, because this {reason}: {'; '.join(map(str, worst[:3]))}{more}; {advice} allow the file "
            f"with --not-secret {worst[0].path}"
        )


def find_secrets(file: PublishedFile) -> list[Finding]:
    """Findings in one file, the first of each kind in each part; a file that cannot be scanned is a finding."""
    findings: list[Finding] = []
    try:
        with contextlib.closing(_open(file)) as stream:
            for part, pieces in _texts(file, stream):
                for what, line in _look_alikes(pieces).items():
                    finding = Finding(file.path, part or f"line {line}", what)
                    if finding not in findings:
                        findings.append(finding)
    except ImportError as error:
        findings.append(Finding(file.path, "", f"it needs a missing package: {error}"))
    except OSError as error:
        findings.append(Finding(file.path, "", f"it cannot be read: {error.strerror or error}"))
    except UnicodeError:
        findings.append(Finding(file.path, "", f"it is {_WHAT_IS_READ}"))
    except (ValueError, EOFError, zlib.error, OverflowError) as error:
        reason = str(error) if isinstance(error, _UnreadableError) else f"it is damaged ({type(error).__name__})"
        findings.append(Finding(file.path, "", reason))
    return findings


def _open(file: PublishedFile) -> IO[bytes]:
    return io.BytesIO(file.source) if isinstance(file.source, bytes) else file.source.open("rb")


# ---- what the text of a file is ----------------------------------------------------------------------


def _texts(file: PublishedFile, stream: IO[bytes]) -> Iterator[tuple[str, Iterable[bytes]]]:
    """The parts of a file by name, with each part's text in chunks; a file that is one text has one unnamed part."""
    yield "its name", [file.path.encode("utf-8", "replace")]
    head = stream.read(4)
    stream.seek(0)
    if file.path.endswith(".safetensors"):
        yield "header", [_safetensors_header(file, stream)]
    elif file.path.endswith(".parquet") or head == b"PAR1":
        yield from _parquet(stream)
    elif file.path.endswith(".model") and head[:1] == b"\n":
        # Each of its strings follows a length byte, which may look like a letter.
        yield "bytes", (re.sub(rb"(?=sk-|A[KS]IA|AIza|xox)", b" ", piece) for piece in _pieces(stream))
    elif head[:2] == b"\x1f\x8b":
        yield "", _utf8(_pieces(gzip.GzipFile(fileobj=stream)))
    else:
        yield "", _utf8(_pieces(stream))


def _pieces(stream: Any) -> Iterator[bytes]:
    while piece := stream.read(_PIECE):
        yield piece


def _utf8(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks. Raises `UnicodeError` if they are not text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for piece in pieces:
        if b"\0" in piece:
            raise UnicodeError("a NUL")
        decoder.decode(piece)
        yield piece
    decoder.decode(b"", final=True)


def _safetensors_header(file: PublishedFile, stream: IO[bytes]) -> bytes:
    """The header of a safetensors file, checked to contain nothing but the header and the tensors it declares."""
    import safetensors

    try:
        if isinstance(file.source, Path):
            safetensors.safe_open(file.source, "numpy")
        else:
            safetensors.deserialize(file.source)
    except safetensors.SafetensorError as error:
        raise _UnreadableError(f"it is not a valid safetensors file: {error}") from error
    return stream.read(int.from_bytes(stream.read(8), "little"))


def _parquet(stream: IO[bytes]) -> Iterator[tuple[str, Iterable[bytes]]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        names = table.schema_arrow.to_string(truncate_metadata=False).encode("utf-8", "replace")
        # In the output of to_string, parts of the metadata may be escaped.
        pairs = [*(table.schema_arrow.metadata or {}).items(), *(table.metadata.metadata or {}).items()]
        yield "metadata", [b"\n".join([names, *(part for pair in pairs for part in pair)])]
        columns = [field.name for field in table.schema_arrow if _holds_text(field.type)]
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                rows = json.dumps(column.to_pylist(), ensure_ascii=False, default=_as_text)
                yield f"column {name}", _utf8([rows.encode("utf-8")])
    except pyarrow.ArrowException as error:
        raise _UnreadableError(f"it is damaged or encrypted ({type(error).__name__})") from error


def _holds_text(kind: Any) -> bool:
    """Whether a type is anything other than numbers and lists of numbers."""
    import pyarrow

    inside = [kind.field(number).type for number in range(kind.num_fields)]
    return any(map(_holds_text, inside)) if inside else not pyarrow.types.is_primitive(kind)


def _as_text(value: Any) -> str:
    """Types that JSON lacks, as text: bytes, which must be valid text, dates and decimal numbers."""
    if not isinstance(value, bytes):
        return str(value)
    if b"\0" in value:
        raise UnicodeError("a NUL")
    return value.decode("utf-8")


# ---- searching ---------------------------------------------------------------------------------------


def _look_alikes(pieces: Iterable[bytes]) -> dict[str, int]:
    """What looks like a secret in a text, with the line of the first match of each kind, also after unescaping."""
    found: dict[str, int] = {}
    before, line = b"", 1
    for piece in itertools.chain(pieces, [b""]):
        data = before + piece
        for view in dict.fromkeys((data, _ESCAPE.sub(_unescaped, data))):
            for what, signs, pattern in PATTERNS:
                # Searching for a short prefix is much faster than matching everywhere.
                here = [sign for sign in signs if sign in view]
                if not here or what in found:
                    continue
                places = (place for sign in here for place in _places(view, sign, 1 if before else 0))
                matches = (match for place in places if (match := pattern.match(view, place)))
                # A match at the end of a chunk may continue in the next one.
                match = next((match for match in matches if match.end() < len(view) or not piece), None)
                if match is not None:
                    found[what] = line + view.count(b"\n", 0, match.start())
        before = data[-_OVERLAP:]
        line += data.count(b"\n", 0, len(data) - len(before))
    return found


def _places(data: bytes, sign: bytes, start: int) -> Iterator[int]:
    while (start := data.find(sign, start)) >= 0:
        yield start
        start += 1


def _unescaped(match: re.Match[bytes]) -> bytes:
    slash, sixteen, eight, percent, entity = match.groups()
    if entity is not None:
        return html.unescape(f"&{entity.decode()}").replace("\n", " ").encode("utf-8", "replace")
    code = int(eight, 8) if eight else int(sixteen or percent or b"20", 16)
    return slash or bytes([code]).replace(b"\n", b" ")

"""Texts that look like passwords and tokens, searched for in everything that is about to be published."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tqdm.auto import tqdm

from modeling_tsarank.hub_cards.file_selection import PublishedFile
from modeling_tsarank.hub_cards.model_facts import safetensors_header
from modeling_tsarank.hub_cards.secret_unpacking import (
    BROKEN,
    HEAD,
    MAX_DEPTH,
    Budget,
    Stream,
    Text,
    Unreadable,
    is_text,
    opaque_kind,
    read_head,
    reader_of,
)
from modeling_tsarank.ranking_errors import InputError, ModelError


# What a provider's tokens look like: signs they begin with, and the whole from the sign on. Each is specific enough
# to be rare in ordinary text, and in weights, whose bytes are searched too.
_PART = rb"[^\s:/@\"'{}<>\x00-\x20\x7f-\xff]"
_PATTERNS: tuple[tuple[str, tuple[bytes, ...], bytes], ...] = (
    ("a Hugging Face token", (b"hf_", b"api_org_"), rb"(?:hf|hf_oauth|api_org)_[A-Za-z0-9]{30,}"),
    (
        "a GitHub token",
        (b"gh", b"github_pat_"),
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
    ("a password in an address", (b"://",), rb"(?<=[a-z0-9+.-])://%b{0,64}:%b{3,128}@[\w.-]{3,}" % (_PART, _PART)),
)
PATTERNS = tuple((what, pattern.decode("latin-1")) for what, _, pattern in _PATTERNS)
_IN_TEXT = tuple((what, signs, re.compile(pattern)) for what, signs, pattern in _PATTERNS)
# In a binary file letters may stand around a text by chance: its length, a checksum, an instruction of a pickle.
_RANDOM = (
    rb"sk-(?=[\w-]{0,64}[0-9])(?=[\w-]{0,64}[a-z])(?:(?=[\w-]{0,64}[A-Z])|(?=(?:[a-z]+-(?:v[0-9]+-)?)?[0-9a-f]{32}))"
)
_AROUND = re.compile(rb"^\\b|\(\?!\[0-9A-Z\]\)|\(\?!\[0-9a-f\]\)")
_IN_BINARY = tuple(
    (what, signs, re.compile(_AROUND.sub(b"", pattern).replace(b"sk-", _RANDOM, 1)))
    for what, signs, pattern in _PATTERNS
)
# JSON and source code write line breaks and some ASCII characters so; a token may follow one without a space.
_ESCAPE = re.compile(rb"\\(?:[nrtbf]|u00([0-7][0-9a-fA-F])|(/))")
_PIECE = 1 << 20
# Longer than anything the patterns match, in four bytes a character, so that nothing is missed where pieces meet.
_OVERLAP = 4096
# Binary files whose texts stand in them as they are.
_PLAIN_BINARY = (
    *(
        ".safetensors",
        ".gguf",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".pkl",
        ".pickle",
        ".joblib",
        ".npy",
        ".npz",
        ".msgpack",
    ),
    *(
        ".onnx",
        ".onnx_data",
        ".pb",
        ".tflite",
        ".mlmodel",
        ".model",
        ".index",
        ".faiss",
        ".ttf",
        ".otf",
        ".ico",
        ".bmp",
    ),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif", ".tif", ".tiff", ".wav", ".mp3", ".flac", ".ogg", ".opus"),
    *(".m4a", ".mp4", ".webm", ".mov"),
)


@dataclass(frozen=True)
class Finding:
    """Something that looks like a secret, or a file that cannot be searched for one.

    Attributes:
        path: the file.
        place: where in it; empty for a file that cannot be searched.
        what: what it looks like, or why the file cannot be searched. Never the text itself.
    """

    path: str
    place: str
    what: str


def refuse_secrets(files: Sequence[PublishedFile], not_secret: Iterable[str] = (), show: bool | None = None) -> None:
    """Raises `InputError` if a file holds what looks like a secret, or cannot be searched for one.

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
    secrets = [finding for finding in findings if finding.place]
    if secrets:
        shown = "; ".join(f"{f.path} ({f.place}): {f.what}" for f in secrets[:3])
        more = f" and {len(secrets) - 3} more" if len(secrets) > 3 else ""
        raise InputError(
            f"not published, because this looks like a secret: {shown}{more}; take it out, or, if it is none, "
            f"allow the file with --not-secret {secrets[0].path}"
        )
    if findings:
        shown = "; ".join(f"{f.path} ({f.what})" for f in findings[:3])
        more = f" and {len(findings) - 3} more" if len(findings) > 3 else ""
        raise InputError(
            f"not published, because this cannot be searched for secrets: {shown}{more}; publish it unpacked or in "
            f"another format, or, if it has none, allow the file with --not-secret {findings[0].path}"
        )


def find_secrets(file: PublishedFile) -> list[Finding]:
    """Look-alikes in one file, in its bytes and in what can be unpacked of it; a file that cannot be is a finding."""
    search = _Search(file)
    with contextlib.ExitStack() as stack:
        try:
            stream: IO[bytes] = io.BytesIO(file.source) if isinstance(file.source, bytes) else file.source.open("rb")
            stack.enter_context(stream)
        except OSError as error:
            return [Finding(file.path, "", f"it cannot be read: {error.strerror or error}")]
        try:
            search.look_into(file.path, "", stream, Budget(file.size))
        except Unreadable as reason:
            search.findings.append(Finding(file.path, "", str(reason)))
        except OSError as error:  # no room to unpack it, for one
            search.findings.append(Finding(file.path, "", f"it cannot be unpacked: {error.strerror or error}"))
        stream.seek(0)
        head = read_head(stream)
        stream.seek(0)
        texts = stream if (end := _numbers_begin(file, head)) is None else io.BytesIO(stream.read(end))
        search.look_through(texts, "", head, _is_plain(head, file.path))
        return search.findings


def _numbers_begin(file: PublishedFile, head: bytes) -> int | None:
    """Where the tensors of a sound safetensors file of floats begin: weights need not be searched."""
    if not file.path.endswith(".safetensors") or isinstance(file.source, bytes):
        return None
    try:
        tensors = [one for name, one in safetensors_header(file.source).items() if name != "__metadata__"]
        end = max(one["data_offsets"][1] for one in tensors)
        floats = all(one["dtype"].lstrip("B").startswith("F") for one in tensors)
    except (ModelError, KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    begin = 8 + int.from_bytes(head[:8], "little")
    return begin if floats and begin + end == file.size else None


class _Search:
    """The findings of one file; what was found in a part of it is not found again in the whole."""

    def __init__(self, file: PublishedFile) -> None:
        self.path = file.path
        self.findings: list[Finding] = []
        self._known: set[tuple[str, bytes]] = set()

    def look_into(self, name: str, place: str, stream: IO[bytes], budget: Budget, depth: int = 0) -> None:
        """Searches a stream: its parts where it has some, else its bytes. A file's own bytes are searched elsewhere.

        Raises:
            Unreadable: it is damaged, encrypted, too large unpacked, or of a kind that cannot be read.
        """
        head = read_head(stream)
        opaque, reader = opaque_kind(head), reader_of(head, name)
        if opaque is not None:
            raise Unreadable(f"{place}: {opaque}" if place else opaque)
        if depth == 0 and reader is None and not is_text(head) and not name.lower().endswith(_PLAIN_BINARY):
            raise Unreadable("a binary file of an unknown kind")
        if depth > MAX_DEPTH:
            raise Unreadable(f"{place}: packed more than {MAX_DEPTH} times")
        with contextlib.ExitStack() as stack:
            whole: Any = io.BufferedReader(Stream(head, stream))
            if depth and (reader is None or reader[1]):
                if reader is not None:
                    copy = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20))
                    shutil.copyfileobj(whole, copy)
                    copy.seek(0)
                    whole = copy
                self.look_through(whole, place, head, _is_plain(head, name))
                if reader is not None:
                    whole.seek(0)
            elif depth == 0 and stream.seekable():
                stream.seek(0)
                whole = stream
            if reader is None:
                return
            try:
                for inner, part in reader[0](whole, budget):
                    where = "/".join(filter(None, (place, _shown(inner))))
                    if isinstance(part, Text):
                        self.look_through(part, where, part.getvalue()[:HEAD], _is_plain(part.getvalue(), ""), False)
                    else:
                        self.look_into(inner, where, part, budget, depth + 1)
            except ImportError as error:
                raise Unreadable(f"{place or 'it'} needs a missing package: {error}") from error
            except BROKEN as error:
                kind = type(error).__name__
                raise Unreadable(f"{place or 'it'} is damaged, encrypted or of an unknown kind ({kind})") from error

    def look_through(self, stream: IO[bytes], place: str, head: bytes, plain: bool, numbered: bool = True) -> None:
        """Searches the bytes of a stream, which begins with `head`.

        Args:
            stream: it.
            place: what it is in the file.
            head: its first bytes.
            plain: whether it is plain text, in which tokens stand between spaces or signs.
            numbered: whether lines or bytes are counted.
        """
        text = is_text(head)
        header = 8 + int.from_bytes(head[:8], "little") if self.path.endswith(".safetensors") and not place else 0
        known = set(self._known)
        for offset, line, what, token in _matches(stream, _IN_TEXT if plain else _IN_BINARY, text):
            self._known.add((what, token))
            if (what, token) not in known:
                here = "header" if offset < header else f"line {line}" if text else f"byte {offset}"
                shown = ", ".join(filter(None, (place, here))) if numbered else place
                self.findings.append(Finding(self.path, shown, what))


def _shown(name: str) -> str:
    """A name in an archive as a message may show it: on one line, and no secret itself."""
    text = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    return "…" if next(_look_alikes(text.encode(), _IN_BINARY), None) else text[:80]


def _is_plain(head: bytes, name: str) -> bool:
    return is_text(head) and b"\0" not in head and not name.lower().endswith(_PLAIN_BINARY)


def _matches(stream: IO[bytes], patterns: Any, text: bool) -> Iterator[tuple[int, int, str, bytes]]:
    """Offset, line, kind and beginning of every look-alike, in pieces that overlap.

    Bytes are searched as they are, without NULs (UTF-16 and UTF-32 have them between ASCII characters), and those of a
    text with the escapes of JSON undone; offsets are those of the piece where the bytes are not as they are.
    """
    before, line, start = b"", 1, 0
    seen: set[tuple[int, str]] = set()
    while piece := stream.read(_PIECE):
        data = before + piece
        views = [data]
        if b"\0" in data:
            views.append(data.replace(b"\0", b""))
        if text and b"\\" in data:
            views.append(_ESCAPE.sub(_unescaped, views[-1]))
        for number, view in enumerate(views):
            for what, match in _look_alikes(view, patterns):
                at = line + view.count(b"\n", 0, match.start())
                if (at, what) not in seen:
                    seen.add((at, what))
                    yield start + (match.start() if number == 0 else 0), at, what, match.group()[:20]
        kept = data[-_OVERLAP:]
        line += data.count(b"\n", 0, len(data) - len(kept))
        start += len(data) - len(kept)
        before = kept
        seen = {(at, what) for at, what in seen if at >= line}


def _look_alikes(data: bytes, patterns: Any) -> Iterator[tuple[str, re.Match[bytes]]]:
    """What matches at a sign: to look for a few letters is much faster than to match everywhere."""
    for what, signs, pattern in patterns:
        for sign in signs:
            place = data.find(sign)
            while place >= 0:
                if match := pattern.match(data, place):
                    yield what, match
                place = data.find(sign, place + 1)


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes([int(match.group(1), 16)]) if match.group(1) else match.group(2) or b" "

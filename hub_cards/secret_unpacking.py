"""What is inside a file that is searched for secrets: archives, tables, databases and compressed text, part by part.

Formats that keep their text as it is (weights, pickles, GGUF, audio, most images) need no unpacking: their bytes are
searched. What can be read neither way raises `Unreadable`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any


HEAD = 1 << 16
MAX_DEPTH = 6
# A file may unpack to so much more than its own size; ordinary text gets about ten times smaller.
_RATIO, _ROOM = 200, 256 << 20
_CONTROLS = bytes(code for code in range(1, 32) if code not in b"\t\n\f\r\x1b")

Part = tuple[str, IO[bytes]]
"""A place in a file, "" for the whole of it, and what stands there."""


class Text(io.BytesIO):
    """Texts of a table, one a line: not a file, whatever they begin with."""


class Unreadable(Exception):  # noqa: N818 - it is a finding, not an error
    """Why a file cannot be looked into."""


BROKEN = (
    *(EOFError, OSError, ValueError, RuntimeError, NotImplementedError, OverflowError, struct.error, sqlite3.Error),
    *(zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, MemoryError),
)
"""What readers raise for damaged, encrypted or unknown content; pyarrow's errors are among them."""


class Budget:
    """How much may still be unpacked of one published file."""

    def __init__(self, size: int) -> None:
        self._left = _ROOM + _RATIO * size

    def spend(self, count: int) -> None:
        """Raises `Unreadable` where too much was unpacked."""
        self._left -= count
        if self._left < 0:
            raise Unreadable(f"it unpacks to more than {_RATIO} times its size")


class Stream(io.RawIOBase):
    """A stream whose first bytes were already read, and whose bytes count as unpacked."""

    def __init__(self, head: bytes, rest: Any, budget: Budget | None = None) -> None:
        self._head, self._rest, self._budget = head, rest, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        if self._budget is not None:
            self._budget.spend(len(data))
        return len(data)


def read_head(stream: IO[bytes]) -> bytes:
    """The first bytes, all `HEAD` of them unless the stream is shorter."""
    head = b""
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    return head


def is_text(head: bytes) -> bool:
    """Whether this looks like text of any encoding: hardly any control characters, NULs aside."""
    plain = head.replace(b"\0", b"")
    return len(plain) - len(plain.translate(None, _CONTROLS)) <= 0.02 * len(plain)


# ---- kinds of files --------------------------------------------------------------------------------

_OPAQUE: tuple[tuple[bytes, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1f\x9d", "compressed by compress"),
    (b"\x89LZO", "compressed by lzop"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed by Snappy"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"%PDF-", "a PDF document"),
    (b"Salted__", "encrypted by OpenSSL"),
    (b"age-encryption.org/", "encrypted by age"),
    (b"-----BEGIN PGP MESSAGE", "encrypted by PGP"),
    (b"!<arch>\n", "an ar archive"),
)
# Also words that a text may begin with.
_OPAQUE_BINARY: tuple[tuple[bytes, str], ...] = (
    *((b"LZIP", "compressed by lzip"), (b"MSCF", "a cabinet archive"), (b"xar!", "a xar archive")),
    *(
        (b"wOFF", "a WOFF font"),
        (b"wOF2", "a WOFF font"),
        (b"Obj\x01", "Avro"),
        (b"ORC", "ORC"),
        (b"FEA1", "Feather V1"),
    ),
    *((b"PARE", "encrypted Parquet"), (b"PACK", "a Git pack")),
)


def opaque_kind(head: bytes) -> str | None:
    """What a file is that cannot be looked into, or `None`."""
    kinds = _OPAQUE if is_text(head) else (*_OPAQUE, *_OPAQUE_BINARY)
    return next((what for magic, what in kinds if head.startswith(magic)), None)


def reader_of(head: bytes, name: str) -> tuple[Callable[[Any, Budget], Iterator[Part]], bool] | None:
    """What yields the parts of a file, and whether it needs a seekable one; `None` for a file without parts."""
    name = name.lower()
    for magic, reader, seeks in _READERS:
        if head.startswith(magic):
            return reader, seeks
    if head[257:262] == b"ustar":
        return _tar, False
    if head[:1] == b"x" and head[:2] in (b"x\x01", b"x^", b"x\x9c", b"x\xda") and _is_zlib(head):
        return _zlib, False
    if name.endswith(".lzma") or (head[:3] == b"\x5d\0\0" and _is_lzma(head)):
        return _xz, False
    if name.endswith(".br"):
        return _arrow_codec("brotli"), False
    return None


def _is_zlib(head: bytes) -> bool:
    try:
        zlib.decompressobj().decompress(head, HEAD)
    except zlib.error:
        return False
    return True


def _is_lzma(head: bytes) -> bool:
    """Whether this is LZMA without a container, as joblib writes it."""
    try:
        lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(head, HEAD)
    except lzma.LZMAError:
        return False
    return True


# ---- compressed streams ----------------------------------------------------------------------------


def _gzip(stream: Any, budget: Budget) -> Iterator[Part]:
    yield "", io.BufferedReader(Stream(b"", gzip.GzipFile(fileobj=stream), budget))


def _bz2(stream: Any, budget: Budget) -> Iterator[Part]:
    yield "", io.BufferedReader(Stream(b"", _Bunzipped(stream), budget))


def _xz(stream: Any, budget: Budget) -> Iterator[Part]:
    yield "", io.BufferedReader(Stream(b"", lzma.LZMAFile(stream), budget))  # noqa: SIM115


def _zlib(stream: Any, budget: Budget) -> Iterator[Part]:
    yield "", io.BufferedReader(Stream(b"", _Inflated(stream), budget))


class _Bunzipped:
    """One bzip2 stream after the other; `bz2.BZ2File` drops what else follows them."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._inflate = stream, bz2.BZ2Decompressor()

    def read(self, count: int) -> bytes:
        while True:
            if self._inflate.eof:
                packed = self._inflate.unused_data or self._stream.read(HEAD)
                if not packed:
                    return b""
                self._inflate = bz2.BZ2Decompressor()
            else:
                packed = self._stream.read(HEAD) if self._inflate.needs_input else b""
                if not packed and self._inflate.needs_input:
                    raise EOFError("the stream ends before its end")
            if data := self._inflate.decompress(packed, count):
                return data


class _Inflated:
    """A zlib stream, decompressed as it is read; what follows its end must be empty."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._inflate = stream, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._stream.read(HEAD)
            if not packed:
                raise EOFError("the stream ends before its end")
            if data := self._inflate.decompress(packed, count):
                return data
        if self._inflate.unused_data.strip(b"\0") or self._stream.read(1):
            raise Unreadable("something follows the end of a compressed stream")
        return b""


def _arrow_codec(codec: str) -> Callable[[Any, Budget], Iterator[Part]]:
    def opened(stream: Any, budget: Budget) -> Iterator[Part]:
        import pyarrow

        # Over a reader of its own: pyarrow closes what it was given.
        own = pyarrow.PythonFile(io.BufferedReader(Stream(b"", stream)), mode="r")
        file = pyarrow.CompressedInputStream(own, codec)
        yield "", io.BufferedReader(Stream(b"", file, budget))

    return opened


# ---- archives --------------------------------------------------------------------------------------


def _zip(file: Any, budget: Budget) -> Iterator[Part]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.flag_bits & 0x1:
                raise Unreadable("a file in it is encrypted")
            if not info.is_dir():
                with archive.open(info) as member:
                    yield info.filename, io.BufferedReader(Stream(b"", member, budget))


def _tar(stream: Any, budget: Budget) -> Iterator[Part]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            notes = "\n".join([info.name, info.linkname, info.uname, *map(str, info.pax_headers.values())])
            yield "names", Text(notes.encode("utf-8", "surrogateescape"))
            member = archive.extractfile(info) if info.isreg() else None
            if member is not None:
                yield info.name, io.BufferedReader(Stream(b"", member, budget))


# ---- tables ----------------------------------------------------------------------------------------


def _parquet(file: Any, budget: Budget) -> Iterator[Part]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    notes = [*_notes(table.schema_arrow), *(table.metadata.metadata or {}).values()]
    yield "metadata", Text(b"\n".join(notes))
    for batch in table.iter_batches(batch_size=256):
        yield from _columns(batch, budget)


def _arrow(file: Any, budget: Budget) -> Iterator[Part]:
    import pyarrow.ipc

    table = pyarrow.ipc.open_file(file)
    yield "metadata", Text(b"\n".join(_notes(table.schema)))
    for number in range(table.num_record_batches):
        yield from _columns(table.get_batch(number), budget)


def _notes(schema: Any) -> Iterator[bytes]:
    """Metadata and names of a schema or a field, and of all fields in it."""
    for key, value in (schema.metadata or {}).items():
        yield from (key, value)
    kind = getattr(schema, "type", None)
    count = len(schema) if kind is None else kind.num_fields
    for number in range(count):
        field = schema.field(number) if kind is None else kind.field(number)
        yield field.name.encode()
        yield from _notes(field)


def _columns(batch: Any, budget: Budget) -> Iterator[Part]:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for values, is_text_type in _leaves(column):
            different = list(dict.fromkeys(values))
            budget.spend(sum(map(len, different)))
            yield f"column {name}", Text(b"\n".join(different))
            for value in [] if is_text_type else different:
                if reader_of(value[:HEAD], "") is not None or opaque_kind(value[:HEAD]) is not None:
                    yield f"column {name}", io.BytesIO(value)


def _leaves(column: Any) -> Iterator[tuple[list[bytes], bool]]:
    """The texts and bytes of an array of any type, those of nested arrays too, and whether they are of a text type."""
    import pyarrow

    kinds, kind = pyarrow.types, column.type
    if isinstance(kind, pyarrow.BaseExtensionType):
        yield from _leaves(column.storage)
    elif kinds.is_dictionary(kind):
        yield from _leaves(column.dictionary)
    elif kinds.is_run_end_encoded(kind):
        yield from _leaves(column.values)
    elif kinds.is_map(kind):
        yield from _leaves(column.keys)
        yield from _leaves(column.items)
    elif kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        if kind.value_type in (pyarrow.int8(), pyarrow.uint8()):
            yield [bytes(code & 0xFF for code in row if code is not None) for row in column.to_pylist() if row], False
        else:
            yield from _leaves(column.flatten())
    elif kinds.is_list_view(kind) or kinds.is_large_list_view(kind):
        yield from _leaves(column.values)
    elif kinds.is_struct(kind) or kinds.is_union(kind):
        for number in range(kind.num_fields):
            yield from _leaves(column.field(number))
    elif (binary := _binary_type(kind)) is not None:
        yield [value for value in column.cast(binary).to_pylist() if value], binary != kind


def _binary_type(kind: Any) -> Any:
    """The type of bytes under a type of texts or bytes; `None` for any other."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_string(kind):
        return pyarrow.binary()
    if kinds.is_large_string(kind):
        return pyarrow.large_binary()
    if kinds.is_string_view(kind):
        return pyarrow.binary_view()
    is_bytes = kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)
    return kind if is_bytes or kinds.is_fixed_size_binary(kind) else None


def _sqlite(file: Any, budget: Budget) -> Iterator[Part]:
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        connection = sqlite3.connect(f"file:{copy.name}?mode=ro&immutable=1", uri=True)
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        try:
            # What a virtual table holds is in tables of its own.
            found = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
            names = [name for name, sql in found if not str(sql).upper().startswith("CREATE VIRTUAL")]
            for name in names:
                quoted = name.replace('"', '""')
                for row in connection.execute(f'SELECT * FROM "{quoted}"'):
                    texts = "\n".join(value for value in row if isinstance(value, str))
                    budget.spend(len(texts))
                    yield f"table {name}", Text(texts.encode("utf-8", "surrogateescape"))
                    for value in row:
                        if isinstance(value, bytes) and value:
                            yield f"table {name}", io.BytesIO(value)
        finally:
            connection.close()


def _png(file: Any, budget: Budget) -> Iterator[Part]:
    """Compressed texts of an image; the others stand in the file as they are."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind not in (b"zTXt", b"iTXt", b"iCCP"):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        _, _, content = file.read(length).partition(b"\0")
        file.seek(4, io.SEEK_CUR)
        if kind == b"iTXt":
            packed = content[:1] == b"\1"
            content = content[2:].split(b"\0", 2)[-1]
            if not packed:
                continue
        else:
            content = content[1:]
        yield kind.decode(), io.BufferedReader(Stream(b"", _Inflated(io.BytesIO(content)), budget))


_READERS: tuple[tuple[bytes, Callable[[Any, Budget], Iterator[Part]], bool], ...] = (
    (b"\x1f\x8b", _gzip, False),
    *((b"BZh%d1AY&SY" % level, _bz2, False) for level in range(1, 10)),
    (b"\xfd7zXZ\x00", _xz, False),
    (b"\x28\xb5\x2f\xfd", _arrow_codec("zstd"), False),
    (b"\x04\x22\x4d\x18", _arrow_codec("lz4"), False),
    (b"PK\x03\x04", _zip, True),
    (b"PK\x05\x06", _zip, True),
    (b"PAR1", _parquet, True),
    (b"ARROW1", _arrow, True),
    (b"SQLite format 3\0", _sqlite, True),
    (b"\x89PNG\r\n\x1a\n", _png, True),
)

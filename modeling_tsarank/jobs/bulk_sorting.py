"""Pairs of any number in the order of their documents, in bounded memory, so that all queries of a document meet."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from ..files.writing import write_errors
from ..ranking_errors import InputError
from ..ranking_text import clean_text, document_text
from .bulk_pairs import Block, PairFiles, arrow, block_of_table, cut


_BUCKET_ROWS = 50_000
# More would need too many open files.
_MOST_BUCKETS = 256
NUMBER = "row"
_HASH = "document hash"


def document_hash(document: str | None) -> int:
    """A 63-bit digest of a document's text, equal for equal ones: only the order by it matters."""
    return int.from_bytes(hashlib.blake2b((document or "").encode(), digest_size=8).digest()) >> 1


def sorted_blocks(
    blocks: Iterable[Block],
    files: PairFiles,
    total: int,
    size: int,
    folder: Path,
    wanted: Callable[[int], bool] = lambda _: True,
) -> Iterator[Block]:
    """Blocks of `size` pairs with equal documents side by side, otherwise in the order given.

    The pairs are first dealt into files of the folder by the leading bits of their documents' digests, then each file
    is sorted in memory, where equal documents are held once. What the folder holds is removed, before and after.

    Raises:
        InputError: the files of pairs have different types of columns.
        ResourceError: the folder cannot be written: it takes about the input's size.
    """
    pyarrow = arrow()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with write_errors(folder):
            folder.mkdir(parents=True)
            paths = _deal(blocks, files, min(-(-total // _BUCKET_ROWS), _MOST_BUCKETS), folder)
        for index, table in enumerate(cut((_sorted_table(path, files) for path in paths), size)):
            if wanted(index):
                numbers, table = table.column(NUMBER).to_pylist(), _recoded(table, files, arrow().string())
                yield block_of_table(index, numbers, table, files)
            else:
                yield Block(index, len(table))
    except pyarrow.ArrowException as error:
        raise InputError(f"the files of pairs cannot be sorted together: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deal(blocks: Iterable[Block], files: PairFiles, count: int, folder: Path) -> list[Path]:
    ipc = arrow().ipc
    writers: dict[int, Any] = {}
    with ExitStack() as stack:
        for block in blocks:
            table = _table(block, files)
            bucket_of = [value * count >> 63 for value in table.column(_HASH).to_pylist()].__getitem__
            for bucket, rows in groupby(sorted(range(len(table)), key=bucket_of), bucket_of):
                if bucket not in writers:
                    file = stack.enter_context((folder / f"{bucket:03d}.arrow").open("wb"))
                    writers[bucket] = stack.enter_context(ipc.new_stream(file, table.schema))
                writers[bucket].write_table(table.take(list(rows)))
    return sorted(folder.iterdir())


def _table(block: Block, files: PairFiles) -> Any:
    pyarrow = arrow()
    documents = [_text(value, document_text) for value in block.documents]
    return pyarrow.table(
        {
            _HASH: pyarrow.array(map(document_hash, documents), pyarrow.int64()),
            NUMBER: pyarrow.array(block.numbers, pyarrow.int64()),
            files.query: pyarrow.array([_text(value, clean_text) for value in block.queries], pyarrow.string()),
            files.document: pyarrow.array(documents, pyarrow.string()),
            **(block.kept or {}),
        }
    )


def _text(value: Any, clean: Callable[[Any, str], str]) -> str | None:
    """The text to sort and to score; `None` where there is none, which scoring will complain of."""
    try:
        return clean(value, "a text of the pairs")
    except InputError:
        return None


def _sorted_table(path: Path, files: PairFiles) -> Any:
    pyarrow = arrow()
    once = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    with path.open("rb") as file, pyarrow.ipc.open_stream(file) as reader:
        parts = [_recoded(pyarrow.Table.from_batches([batch]), files, once) for batch in reader]
    table = pyarrow.concat_tables(parts).unify_dictionaries()
    return table.sort_by([(_HASH, "ascending"), (NUMBER, "ascending")])


def _recoded(table: Any, files: PairFiles, kind: Any) -> Any:
    """The table with the documents as another kind of strings, where they are strings."""
    place = table.schema.get_field_index(files.document)
    column = table.column(place)
    if arrow().types.is_nested(column.type):
        return table
    return table.set_column(place, files.document, column.cast(kind))

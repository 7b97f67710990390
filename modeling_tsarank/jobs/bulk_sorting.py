"""An external sort by document: pairs of any number in bounded memory, so that all queries of a document meet."""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..ranking_errors import InputError
from ..ranking_text import clean_text, document_text
from .bulk_output import hashed_parquet, is_output_of
from .bulk_pairs import PairFiles, PairRows, Shard, arrow, read_shards, writing_error


_RUN_ROWS = 50_000
# More runs than this would need too many open files at the merge.
_MOST_RUNS = 256
_MERGE_ROWS = 128
NUMBER = "row"
HASH = "document_hash"


def document_hash(document: str | None) -> int:
    """A 63-bit digest of a document's text, equal for equal ones: only the order by it matters."""
    return int.from_bytes(hashlib.blake2b((document or "").encode(), digest_size=8).digest()) >> 1


def _text(value: Any, clean: Callable[[Any, str], str]) -> str | None:
    """The text to sort and to score; `None` where there is none, which scoring will complain of."""
    try:
        return clean(value, "a text of the pairs")
    except InputError:
        return None


def sort_by_document(
    files: PairFiles,
    shards: Sequence[Shard],
    folder: Path,
    row_group: int,
    digest: str,
    show: bool | None = None,
    check: Callable[[], None] = lambda: None,
) -> PairFiles:
    """Writes the pairs into `folder/sorted.parquet`, equal documents side by side, otherwise in input order.

    A file that is there already is taken if it is whole and was made under the same `digest`, which must identify the
    input by its content; `check` is called before it gets its name, and raises if the input has changed meanwhile.
    Takes the input's size on disk twice for a while. Raises `ResourceError` when the disk is full.
    """
    target = folder / "sorted.parquet"
    sorted_files = PairFiles((str(target),), files.query, files.document, files.keep, NUMBER)
    if is_output_of(target, digest):
        return sorted_files
    runs = folder / "runs"
    pyarrow = arrow()
    try:
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True)
        paths = _write_runs(files, shards, runs, show)
        _merge(paths, target, row_group, sum(shard.rows for shard in shards), digest, show, check)
    except OSError as error:
        raise writing_error(error, folder) from error
    except pyarrow.ArrowException as error:
        raise InputError(f"the files of pairs cannot be sorted together: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(runs, ignore_errors=True)
    return sorted_files


def _write_runs(files: PairFiles, shards: Sequence[Shard], folder: Path, show: bool | None) -> list[Path]:
    total = sum(shard.rows for shard in shards)
    limit = max(_RUN_ROWS, -(-total // _MOST_RUNS))
    paths: list[Path] = []
    tables: list[Any] = []

    def write() -> None:
        pyarrow = arrow()
        table = pyarrow.concat_tables(tables).sort_by([(HASH, "ascending"), (NUMBER, "ascending")])
        paths.append(folder / f"run-{len(paths):05d}.parquet")
        pyarrow.parquet.write_table(table, paths[-1], row_group_size=8 * _MERGE_ROWS)
        tables.clear()

    hidden = None if show is None else not show
    with tqdm(total=total, desc="sorting by document", unit="pair", disable=hidden) as bar:
        for shard, rows in read_shards(files, shards):
            tables.append(_table(rows, files))
            if sum(table.num_rows for table in tables) >= limit:
                write()
            bar.update(shard.rows)
    if tables:
        write()
    return paths


def _table(rows: PairRows, files: PairFiles) -> Any:
    pyarrow = arrow()
    documents = [_text(value, document_text) for value in rows.documents]
    return pyarrow.table(
        {
            HASH: pyarrow.array(map(document_hash, documents), pyarrow.int64()),
            NUMBER: pyarrow.array(rows.numbers, pyarrow.int64()),
            files.query: pyarrow.array([_text(value, clean_text) for value in rows.queries], pyarrow.string()),
            files.document: pyarrow.array(documents, pyarrow.string()),
            **rows.kept,
        }
    )


def _rows_of_run(path: Path) -> Iterator[tuple[int, int, Any]]:
    with arrow().parquet.ParquetFile(path) as run:
        for batch in run.iter_batches(_MERGE_ROWS):
            hashes, numbers = batch.column(0).to_pylist(), batch.column(1).to_pylist()
            for i, (first, second) in enumerate(zip(hashes, numbers, strict=True)):
                yield first, second, batch.slice(i, 1)


def _merge(
    paths: Sequence[Path],
    target: Path,
    row_group: int,
    total: int,
    digest: str,
    show: bool | None,
    check: Callable[[], None],
) -> None:
    pyarrow = arrow()
    schema = pyarrow.parquet.read_schema(paths[0])
    rows = heapq.merge(*map(_rows_of_run, paths), key=lambda row: row[:2])
    hidden = None if show is None else not show
    with (
        hashed_parquet(target, schema, digest) as writer,
        tqdm(total=total, desc="merging", unit="pair", disable=hidden) as bar,
    ):
        waiting: list[Any] = []
        for _, _, row in rows:
            waiting.append(row)
            if len(waiting) == row_group:
                writer.write_table(pyarrow.Table.from_batches(waiting).combine_chunks())
                bar.update(len(waiting))
                waiting = []
        if waiting:
            writer.write_table(pyarrow.Table.from_batches(waiting).combine_chunks())
            bar.update(len(waiting))
        check()

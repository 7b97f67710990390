"""Scoring pairs of any number: shard by shard in bounded memory, resumable with the same result.

The output folder holds `scores-000000.parquet`, … (columns `row`, the pair's number in the input, `score`, and the
columns that were asked for), `manifest.json`, which says what they were made from, and at the end `summary.json`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .bulk_pairs import PairFiles, PairRows, Shard, arrow, find_files, plan_shards, read_shards, writing_error
from .document_store import open_store, use_store
from .ranking_errors import InputError, ResourceError
from .ranking_text import clean_query, document_text


logger = logging.getLogger(__name__)

SHARD_PAIRS = 4096
_DIGEST_KEY = b"tsarank.job"
_SAMPLES, _SAMPLE_BYTES = 16, 65_536


@dataclass(frozen=True)
class BulkJob:
    """What is to be scored and how; plain values, so that it can be sent to other machines.

    Attributes:
        pairs: Parquet or JSON lines files, or folders of them.
        output: folder of the results.
        query, document: columns of the texts.
        keep: columns that the output repeats.
        shard_pairs: pairs of one output file.
        by_document: sort the pairs by document first, so that every document is read once for all its queries.
        skip_bad_pairs: pairs without a query or with texts of a wrong type get no score (null) instead of an error.
        batch_tokens: token budget of a batch.
        model: arguments of `load_ranker`, the name as `name_or_path`.
        store: folder of kept document states that the model uses and adds to.
    """

    pairs: tuple[str, ...]
    output: str
    query: str = "query"
    document: str = "document"
    keep: tuple[str, ...] = ()
    shard_pairs: int = SHARD_PAIRS
    by_document: bool = False
    skip_bad_pairs: bool = False
    batch_tokens: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    store: str | None = None


@dataclass(frozen=True)
class PreparedJob:
    """A job whose input has been looked at.

    Attributes:
        job: the job.
        files: what the shards are read from: the input, or the input sorted by document.
        shards: all shards.
        digest: of the input and of everything but the model that changes the output.
    """

    job: BulkJob
    files: PairFiles
    shards: list[Shard]
    digest: str

    @property
    def total(self) -> int:
        """Number of pairs."""
        return sum(shard.rows for shard in self.shards)

    def path(self, shard: Shard) -> Path:
        """The output file of a shard."""
        return Path(self.job.output) / f"scores-{shard.index:06d}.parquet"

    def unfinished(self) -> list[Shard]:
        """Shards whose output is not there whole, or was made by another job."""
        return [shard for shard in self.shards if not self._is_done(shard)]

    def _is_done(self, shard: Shard) -> bool:
        path = self.path(shard)
        if not path.is_file():
            return False
        pyarrow = arrow()
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                found = file.metadata
                return found.num_rows == shard.rows and (found.metadata or {}).get(_DIGEST_KEY) == self.digest.encode()
        except (pyarrow.ArrowException, OSError):
            logger.warning("%s is damaged and is made again", path)
            return False


def score_pairs(
    job: BulkJob,
    model: Any = None,
    engine: Callable[[PreparedJob, list[Shard], Callable[[Shard], None]], None] | None = None,
    show: bool | None = None,
) -> dict[str, int]:
    """Scores all pairs of a job that are not scored yet.

    Parameters:
        model: a ranking model; `None` loads what `job.model` says.
        engine: does shards and reports each that is done (`ray_scoring.RayEngine`); `None` works in this process.
        show: progress bar; `None` shows it on a terminal.

    Returns `{"pairs", "shards", "unscored", "done_before"}`, the last one in pairs.

    Raises `InputError` for input that cannot be read or scored, and for an output folder that belongs to another job;
    `ResourceError` for a full disk or another process at work in the folder. What is finished stays, and the same call
    goes on from there.
    """
    output = Path(job.output)
    with _own_folder(output):
        prepared = prepare(job, show)
        todo = prepared.unfinished()
        before = prepared.total - sum(shard.rows for shard in todo)
        hidden = None if show is None else not show
        with tqdm(
            total=prepared.total, initial=before, desc="scoring", unit="pair", smoothing=0, disable=hidden
        ) as bar:

            def done(shard: Shard) -> None:
                bar.update(shard.rows)

            if todo:
                (engine or LocalEngine(model))(prepared, todo, done)
        summary = {"pairs": prepared.total, "shards": len(prepared.shards), "unscored": _unscored(prepared)}
        _write_json(output / "summary.json", summary)
        shutil.rmtree(output / "sorted", ignore_errors=True)
    return {**summary, "done_before": before}


# ---- before the first score --------------------------------------------------------------------------


@contextmanager
def _own_folder(output: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; --output must be a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ResourceError(
            f"another process is scoring into {output}; wait for it or name another --output"
        ) from None
    except OSError as error:
        raise writing_error(error, output) from error
    try:
        yield
    finally:
        lock.release()


def prepare(job: BulkJob, show: bool | None = None) -> PreparedJob:
    """Looks at the input, plans the shards, sorts the pairs if asked, and claims the output folder for the job.

    Raises `InputError` if the folder holds the results of another job or the input is unfit.
    """
    if isinstance(job.shard_pairs, bool) or not isinstance(job.shard_pairs, int) or job.shard_pairs < 1:
        raise InputError(f"shard_pairs must be a positive number of pairs, got {job.shard_pairs!r}")
    paths = find_files(job.pairs)
    taken = {"row", "score"} & set(job.keep)
    if taken:
        raise InputError(f"the column {sorted(taken)[0]!r} cannot be kept: the output has one of its own by that name")
    files = PairFiles(paths, job.query, job.document, job.keep)
    shards = plan_shards(files, job.shard_pairs)
    settings = {
        "pairs": [{"name": Path(path).name, "fingerprint": _fingerprint(Path(path))} for path in paths],
        "columns": [job.query, job.document, *job.keep],
        "shard_pairs": job.shard_pairs,
        "by_document": job.by_document,
        "skip_bad_pairs": job.skip_bad_pairs,
        "total": sum(shard.rows for shard in shards),
    }
    if job.store is not None:  # rounded states change scores a little
        with open_store(job.store) as store:
            settings["document_states"] = store.dtype
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    _claim(Path(job.output), "manifest.json", settings, "made from other pairs or settings")
    if job.by_document:
        from .bulk_sorting import sort_by_document

        files = sort_by_document(files, shards, Path(job.output) / "sorted", job.shard_pairs, digest[:16], show)
        shards = plan_shards(files, job.shard_pairs)
    return PreparedJob(job, files, shards, digest)


def _fingerprint(path: Path) -> str:
    """SHA-256 over a file's size and evenly spread samples of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _claim(output: Path, name: str, value: Any, difference: str) -> None:
    """Writes a JSON file that says what the folder's results are, or checks the one that is there."""
    path = output / name
    if not path.exists():
        _write_json(path, value)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); delete it if the folder's results may be overwritten"
        ) from error
    if found != value:
        raise InputError(
            f"{output} holds scores {difference} ({name} differs); name another --output or empty this one"
        )


def claim_for_model(output: Path, model: Any) -> None:
    """Notes which model the scores come from. Raises `InputError` if they come from another one."""
    from .document_states import model_identity

    value = {"identity": model_identity(model), "class": type(model).__name__, "options": model.options.to_dict()}
    _claim(output, "model.json", json.loads(json.dumps(value)), "of another model, number format or ranking options")


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise writing_error(error, path.parent) from error
    finally:
        temporary.unlink(missing_ok=True)


# ---- one shard ---------------------------------------------------------------------------------------


def score_shard(prepared: PreparedJob, model: Any, shard: Shard, rows: PairRows) -> None:
    """Scores one shard and writes its file, whole or not at all.

    Raises `InputError` naming the pair for texts that cannot be scored, unless the job skips such.
    """
    pyarrow = arrow()
    pairs, places = [], []
    for i, (query, document) in enumerate(zip(rows.queries, rows.documents, strict=True)):
        place = f"pair {rows.numbers[i]} (counted from 0)"
        try:
            pairs.append(
                (clean_query(query, f"the query of {place}"), document_text(document, f"the document of {place}"))
            )
            places.append(i)
        except InputError:
            if not prepared.job.skip_bad_pairs:
                raise
    scores: list[float | None] = [None] * len(rows.numbers)
    if pairs:
        values = model.predict(pairs, batch_tokens=prepared.job.batch_tokens, show_progress=False)
        for i, score in zip(places, values.tolist(), strict=True):
            scores[i] = score
    table = pyarrow.table(
        {
            "row": pyarrow.array(rows.numbers, pyarrow.int64()),
            "score": pyarrow.array(scores, pyarrow.float32()),
            **rows.kept,
        }
    ).replace_schema_metadata({_DIGEST_KEY: prepared.digest})
    path = prepared.path(shard)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        pyarrow.parquet.write_table(table, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise writing_error(error, path.parent) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unscored(prepared: PreparedJob) -> int:
    pyarrow = arrow()
    return sum(
        pyarrow.parquet.read_table(prepared.path(shard), columns=["score"]).column(0).null_count
        for shard in prepared.shards
    )


class LocalEngine:
    """Does shards one after the other in this process."""

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def __call__(self, prepared: PreparedJob, todo: Sequence[Shard], done: Callable[[Shard], None]) -> None:
        if self.model is None:
            self.model = load_model(prepared.job)
        claim_for_model(Path(prepared.job.output), self.model)
        for shard, rows in read_shards(prepared.files, todo):
            score_shard(prepared, self.model, shard, rows)
            done(shard)


def load_model(job: BulkJob) -> Any:
    """The model that a job names, with its store."""
    from .loading import load_ranker

    model = load_ranker(**job.model)
    if job.store is not None:
        use_store(model, job.store)
    return model

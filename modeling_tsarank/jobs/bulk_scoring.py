"""Scoring pairs of any number: block by block in bounded memory, resumable with the same result.

The output folder has `scores-000000.parquet`, … (columns `row`, the pair's number in the input, `score`, and the
requested columns), `settings.json` with the settings of the job, `log.jsonl` with the SHA-256 of each finished file,
and at the end `summary.json`. The settings cover every byte of the input and of the model: a file of another job, or
an edited one, never counts as finished.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..cache.folder_store import open_store, use_store
from ..files.hashes import HashedFile, hash_file, hash_parts
from ..files.log_records import cuts_reported
from ..files.result_log import ResultLog, check_settings, claim_folder, exclusive
from ..files.writing import whole_file, write_json
from ..ranking_errors import InputError
from ..ranking_options import settle_whole_numbers
from ..ranking_text import clean_query, document_text
from .bulk_pairs import Block, PairFiles, arrow, count_pairs, find_files, read_blocks, text_columns
from .pools import Pool, lead


logger = logging.getLogger(__name__)

BLOCK_PAIRS = 4096
_CUTS = ("cut_documents", "cut_queries")


@dataclass(frozen=True)
class BulkJob:
    """The input and settings of a scoring job.

    Attributes:
        pairs: Parquet or JSON lines files, or folders of them.
        output: folder of the results.
        query, document: columns of the texts.
        keep: columns to copy to the output.
        shard_pairs: pairs of one output file, which are scored together.
        skip_bad_pairs: pairs without a query or with texts of a wrong type get no score (null) instead of an error.
        batch_tokens: token budget of a batch.
        model: arguments of `load_ranker`, the name as `name_or_path`.
        store: folder of cached document states, which the model uses and extends.
    """

    pairs: tuple[str, ...]
    output: str
    query: str = "query"
    document: str = "document"
    keep: tuple[str, ...] = ()
    shard_pairs: int = BLOCK_PAIRS
    skip_bad_pairs: bool = False
    batch_tokens: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    store: str | None = None

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "shard_pairs", "batch_tokens")
        for name in ("pairs", "keep"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def score_pairs(job: BulkJob, model: Any = None, pool: Pool | None = None) -> dict[str, int]:
    """Scores all pairs of a job that are not scored yet.

    Started by `accelerate launch` or torchrun, all processes call this and share the work.

    Args:
        job: The job.
        model: A ranking model; None loads `job.model`.
        pool: Runs a `PairWorker`; None uses this process and those started with it.

    Returns:
        `{"pairs", "shards", "unscored", "cut_documents", "cut_queries", "done_before"}`, the last one in pairs. A
        truncated text (`max_length`, `max_query_length`) counts once in each shard.

    Raises:
        InputError: input that cannot be read or scored, or an output folder that belongs to another job or process.
        ResourceError: the output cannot be written. Finished files stay, and the same call continues from there.
    """
    if pool is None:
        return lead(partial(_score, job), PairWorker(job, model))
    return _score(job, pool)


def _score(job: BulkJob, pool: Pool) -> dict[str, int]:
    output = Path(job.output)
    paths = find_files(job.pairs)
    files = PairFiles(paths, *text_columns(paths[0], job.query, job.document), job.keep)
    taken = {"row", "score"} & set(job.keep)
    if taken:
        raise InputError(f"cannot keep the column {sorted(taken)[0]!r}: the output has its own column of that name")
    with exclusive(output):
        counts, inputs = count_pairs(files), [_hashed(path) for path in files.paths]
        settings = _settings(job, files, inputs)
        check_settings(output, settings, complete=False)
        ((_, told),) = pool.map([(None, None)])
        settings |= {f"model_{name}": value for name, value in told.items()}
        claim_folder(output, settings)
        work = _Shards(job, output, files, counts, inputs, ResultLog(output / "log.jsonl", settings))
        before = work.score(pool, told)
        return {**work.finish(), "done_before": before}


def _hashed(path: str) -> HashedFile:
    with _reading(path):
        return HashedFile.of(path)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _settings(job: BulkJob, files: PairFiles, inputs: list[HashedFile]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "pairs": [{"name": Path(file.path).name, "sha256": file.sha256} for file in inputs],
        "columns": [files.query, files.document, *job.keep],
        "shard_pairs": job.shard_pairs,
        "skip_bad_pairs": job.skip_bad_pairs,
        "document_states": None,
    }
    if job.store is not None:  # quantized states change scores slightly
        with open_store(job.store) as store:
            settings["document_states"] = store.dtype
    return settings


@dataclass
class _Shards:
    """The output files of a job."""

    job: BulkJob
    output: Path
    files: PairFiles
    counts: list[int]
    inputs: list[HashedFile]
    log: ResultLog

    @property
    def total(self) -> int:
        """Pairs of all files."""
        return sum(self.counts)

    def place(self, number: int) -> str:
        """The place of a pair, by its number over all files."""
        for path, count in zip(self.files.paths, self.counts, strict=True):
            if number < count:
                return f"{path}, pair {number} (counted from 0)"
            number -= count
        raise IndexError(number)

    def path(self, index: int) -> Path:
        return self.output / f"scores-{index:06d}.parquet"

    def score(self, pool: Pool, told: Any) -> int:
        """Writes the files that the log does not list as finished; returns the number of pairs in finished ones."""
        done = {int(name) for name in self.log if self._is_whole(int(name))}
        before = sum(self.log[str(index)]["rows"] for index in done)
        with tqdm(total=self.total, initial=before, desc="scoring", unit="pair", smoothing=0, disable=None) as bar:
            tasks = self._tasks(lambda index: index not in done) if before < self.total else iter(())
            for (block, places), (scores, cuts, model) in pool.map(tasks):
                if model != told:
                    raise InputError(
                        f"the processes have loaded different models: {model} and {told}; use the same files in all"
                    )
                self._write(block, places, scores, cuts)
                bar.update(block.rows)
        return before

    def _is_whole(self, index: int) -> bool:
        path = self.path(index)
        if path.is_file() and hash_file(path) == self.log[str(index)]["sha256"]:
            return True
        logger.warning("%s is missing, damaged or edited, and is written again", path)
        return False

    def _tasks(self, wanted: Callable[[int], bool]) -> Iterator[tuple[Any, list[tuple[str, str]]]]:
        for block in read_blocks(self.files, self.job.shard_pairs, wanted):
            if wanted(block.index):
                places, pairs = self._clean(block)
                yield (block, places), pairs

    def _clean(self, block: Block) -> tuple[list[int], list[tuple[str, str]]]:
        """The valid pairs, and their positions in the block."""
        places, pairs = [], []
        for i, (query, document) in enumerate(zip(block.queries, block.documents, strict=True)):
            place = self.place(block.start + i)
            try:
                query = clean_query(query, f"{place}: {self.files.query!r}")
                pairs.append((query, document_text(document, f"{place}: {self.files.document!r}")))
                places.append(i)
            except InputError:
                if not self.job.skip_bad_pairs:
                    raise
        return places, pairs

    def _write(self, block: Block, places: list[int], values: list[float], cuts: dict[str, int]) -> None:
        pyarrow = arrow()
        scores: list[float | None] = [None] * block.rows
        for i, value in zip(places, values, strict=True):
            scores[i] = value
        columns = {"row": pyarrow.array(range(block.start, block.start + block.rows), pyarrow.int64())}
        columns["score"] = pyarrow.array(scores, pyarrow.float32())
        for file in self.inputs:
            with _reading(file.path):
                if file.has_changed():
                    raise InputError(
                        f"{file.path} was changed during scoring; restore it and run the command again, "
                        "or score the changed file into another --output"
                    )
        path = self.path(block.index)
        if path.is_symlink():  # never followed: it may refer to another file of the job
            path.unlink()
        with whole_file(path) as temporary, temporary.open("wb") as sink:
            pyarrow.parquet.write_table(pyarrow.table({**columns, **(block.kept or {})}), sink)
        unscored = block.rows - len(places)
        done = {"rows": block.rows, "unscored": unscored, **cuts, "sha256": hash_file(path)}
        self.log.add({str(block.index): done})

    def finish(self) -> dict[str, int]:
        """Writes the summary, and removes files beyond this job's last: readers use all files of the folder."""
        records = [self.log[name] for name in self.log]
        for path in self.output.glob("scores-*.parquet"):
            if re.fullmatch(r"scores-\d{6,}\.parquet", path.name) and str(int(path.stem[7:])) not in self.log:
                logger.warning("%s belongs to another job and is removed", path)
                path.unlink(missing_ok=True)
        sums = {name: sum(record.get(name, 0) for record in records) for name in ("unscored", *_CUTS)}
        summary = {"pairs": self.total, "shards": len(records), **sums}
        write_json(self.output / "summary.json", summary)
        return summary


class PairWorker:
    """Scores lists of (query, document) texts with a model that is loaded on the first call.

    Args:
        job: Its model and batch settings.
        model: An already loaded model.
    """

    def __init__(self, job: BulkJob, model: Any = None) -> None:
        self._job, self._model = job, model
        self._told: Any = None

    def __call__(self, pairs: list[tuple[str, str]] | None) -> Any:
        """(scores, counts of truncated texts, `describe_model`); with None instead of pairs only the last."""
        if self._model is None:
            from ..models.loading import load_ranker

            self._model = load_ranker(**self._job.model)
            if self._job.store is not None:
                use_store(self._model, self._job.store)
        if self._told is None:
            self._told = describe_model(self._model)
        if pairs is None:
            return self._told
        if not pairs:
            return [], {}, self._told
        with cuts_reported():
            scores = self._model.predict(pairs, batch_tokens=self._job.batch_tokens, show_progress=False)
        stats = getattr(self._model, "last_stats", {})
        return scores.tolist(), {name: stats.get(name, 0) for name in _CUTS}, self._told


def describe_model(model: Any) -> dict[str, Any]:
    """The identity of a loaded model, as JSON values; it differs for all models with other scores."""
    from ..engine.state_keys import model_identity

    return {
        "class": type(model).__name__,
        "weights": model_identity(model.backbone),
        "options": json.loads(json.dumps(model.options.to_dict())),
        "tokenizer": tokenizer_identity(model.tokenizer),
    }


def tokenizer_identity(tokenizer: Any) -> str:
    """32 hexadecimal digits that are equal only for tokenizers with the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"vocabulary": tokenizer.get_vocab(), "added": sorted(map(str, tokenizer.get_added_vocab()))}
    else:
        content = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # state of the last call
            content.pop(name, None)
    # Their ids are added to texts and compared; the tokenizer's own file does not contain them.
    named = json.dumps([tokenizer.bos_token, tokenizer.unk_token])
    return hash_parts([type(tokenizer).__name__, json.dumps(content, sort_keys=True), named])[:32]

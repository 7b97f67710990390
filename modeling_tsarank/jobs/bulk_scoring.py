"""Scoring pairs of any number: shard by shard in bounded memory, resumable with the same result.

The output folder holds `scores-000000.parquet`, … (columns `row`, the pair's number in the input, `score`, and the
columns that were asked for), `manifest.json` and `model.json`, which say what they were made from, and at the end
`summary.json`. Each Parquet file holds a digest of its job, which covers every byte of the input, the settings and the
model, and a hash of its own data: a file of another job, or one that was edited, is never taken for a finished one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..cache.folder_store import open_store, use_store
from ..files.hashes import HashedFile, hash_parts
from ..files.reading import read_json
from ..files.writing import replacement
from ..ranking_errors import InputError, ResourceError, TSARankError
from ..ranking_options import settle_whole_numbers
from ..ranking_text import clean_query, cuts_reported, document_text
from .bulk_output import hashed_parquet, is_output_of
from .bulk_pairs import PairFiles, PairRows, Shard, arrow, find_files, plan_shards, read_shards, writing_error


logger = logging.getLogger(__name__)

SHARD_PAIRS = 4096
_CUT_KEY = "tsarank.cut_documents"
_MANIFEST, _MODEL = "manifest.json", "model.json"


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

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "shard_pairs", "batch_tokens")


@dataclass(frozen=True)
class PreparedJob:
    """A job whose input has been looked at.

    Attributes:
        job: the job.
        files: what the shards are read from: the input, or the input sorted by document.
        shards: all shards.
        digest: of the input and of everything but the model that changes the output.
        inputs: the files that are read for the scores; they must stay as they are until the job is done.
    """

    job: BulkJob
    files: PairFiles
    shards: list[Shard]
    digest: str
    inputs: tuple[HashedFile, ...]

    @property
    def total(self) -> int:
        """Number of pairs."""
        return sum(shard.rows for shard in self.shards)

    def path(self, shard: Shard) -> Path:
        """The output file of a shard."""
        return Path(self.job.output) / f"scores-{shard.index:06d}.parquet"

    def shard_digest(self, model: Any) -> str:
        """Digest of everything that changes the output: this job, and what `model.json` says of the model."""
        return hash_parts([self.digest, json.dumps(model, sort_keys=True)])

    def file_digest(self, digest: str, shard: Shard) -> str:
        """What a shard's file holds of `shard_digest`: a copy of another shard's file is not taken for it."""
        return hash_parts([digest, str(shard.index)])

    def unfinished(self) -> list[Shard]:
        """Shards whose output is not there whole, or was made by another job or model."""
        try:
            model = read_json(Path(self.job.output) / _MODEL)
        except TSARankError:  # nobody knows what the scores come from
            return list(self.shards)
        digest, columns = self.shard_digest(model), ["row", "score", *self.job.keep]
        return [s for s in self.shards if not is_output_of(self.path(s), self.file_digest(digest, s), columns, s.rows)]

    def check_inputs(self) -> None:
        """Raises `InputError` if an input file is no longer what the job began with."""
        for file in self.inputs:
            with _reading(file.path):
                if file.has_changed():
                    raise InputError(
                        f"{file.path} was changed while it was scored; put it back as it was and run the command "
                        "again, or score what it holds now into another --output"
                    )


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

    Returns `{"pairs", "shards", "unscored", "cut_documents", "done_before"}`, the last one in pairs. A document that
    was cut to keep `max_length` counts once in each shard.

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

            # Called even where nothing is left to do: it checks that the scores are this model's.
            (engine or LocalEngine(model))(prepared, todo, done)
        _drop_other_shards(prepared)
        summary = {"pairs": prepared.total, "shards": len(prepared.shards), "unscored": _unscored(prepared)}
        summary["cut_documents"] = _cut_documents(prepared)
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
    paths = find_files(job.pairs)
    taken = {"row", "score"} & set(job.keep)
    if taken:
        raise InputError(f"the column {sorted(taken)[0]!r} cannot be kept: the output has one of its own by that name")
    files = PairFiles(paths, job.query, job.document, job.keep)
    inputs = []
    for path in paths:
        with _reading(path):
            inputs.append(HashedFile.of(path))
    shards = plan_shards(files, job.shard_pairs)
    settings = {
        "pairs": [{"name": Path(file.path).name, "sha256": file.sha256} for file in inputs],
        "columns": [job.query, job.document, *job.keep],
        "shard_pairs": job.shard_pairs,
        "by_document": job.by_document,
        "skip_bad_pairs": job.skip_bad_pairs,
        "total": sum(shard.rows for shard in shards),
    }
    if job.store is not None:  # rounded states change scores a little
        with open_store(job.store) as store:
            settings["document_states"] = store.dtype
    digest = hash_parts([json.dumps(settings, sort_keys=True)])
    _claim(Path(job.output), _MANIFEST, settings, "made from other pairs or settings")
    prepared = PreparedJob(job, files, shards, digest, tuple(inputs))
    if job.by_document:
        from .bulk_sorting import sort_by_document

        check = prepared.check_inputs
        files = sort_by_document(files, shards, Path(job.output) / "sorted", job.shard_pairs, digest, show, check)
        return PreparedJob(job, files, plan_shards(files, job.shard_pairs), digest, ())
    return prepared


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _drop_other_shards(prepared: PreparedJob) -> None:
    """Removes what an earlier job left beyond this one's last shard: readers take all files of the folder."""
    own = {prepared.path(shard).name for shard in prepared.shards}
    for path in Path(prepared.job.output).glob("scores-*.parquet"):
        if path.name not in own and re.fullmatch(r"scores-\d{6,}\.parquet", path.name):
            logger.warning("%s belongs to another job and is removed", path)
            path.unlink(missing_ok=True)


def _claim(output: Path, name: str, value: Any, difference: str) -> None:
    """Writes a JSON file that says what the folder's results are, or checks the one that is there."""
    path = output / name
    if not path.exists():
        _write_json(path, value)
    try:
        found = read_json(path)
    except TSARankError as error:
        raise InputError(f"{error}; delete the file if the folder's results may be overwritten") from error
    if found != value:
        raise InputError(
            f"{output} holds scores {difference} ({name} differs); name another --output or empty this one"
        )


def claim_for_model(prepared: PreparedJob, model: Any) -> str:
    """Notes which model the scores come from, and returns the digest of the job's shards.

    Raises `InputError` if the scores that are there come from another one.
    """
    from ..document_states import model_identity

    value = {
        "identity": model_identity(model),
        "class": type(model).__name__,
        "options": model.options.to_dict(),
        "tokenizer": tokenizer_identity(model.tokenizer),
    }
    value = json.loads(json.dumps(value))
    difference = "of another model, number format, tokenizer or ranking options"
    _claim(Path(prepared.job.output), _MODEL, value, difference)
    return prepared.shard_digest(value)


def tokenizer_identity(tokenizer: Any) -> str:
    """32 hexadecimal digits that are equal only for tokenizers that give the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"vocabulary": tokenizer.get_vocab(), "added": sorted(map(str, tokenizer.get_added_vocab()))}
    else:
        content = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # of the last call, whatever that was
            content.pop(name, None)
    # Their ids are put in front of texts and compared with; the tokenizer's own file does not name them.
    named = json.dumps([tokenizer.bos_token, tokenizer.unk_token])
    return hash_parts([type(tokenizer).__name__, json.dumps(content, sort_keys=True), named])[:32]


def _write_json(path: Path, value: Any) -> None:
    try:
        with replacement(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise writing_error(error, path.parent) from error


# ---- one shard ---------------------------------------------------------------------------------------


def score_shard(prepared: PreparedJob, model: Any, shard: Shard, rows: PairRows, digest: str) -> None:
    """Scores one shard and writes its file with the `digest` of `claim_for_model`, whole or not at all.

    Raises `InputError` naming the pair for texts that cannot be scored, unless the job skips such, and for input that
    was changed meanwhile.
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
        with cuts_reported():
            values = model.predict(pairs, batch_tokens=prepared.job.batch_tokens, show_progress=False)
        for i, score in zip(places, values.tolist(), strict=True):
            scores[i] = score
    table = pyarrow.table(
        {
            "row": pyarrow.array(rows.numbers, pyarrow.int64()),
            "score": pyarrow.array(scores, pyarrow.float32()),
            **rows.kept,
        }
    )
    prepared.check_inputs()
    path = prepared.path(shard)
    try:
        with hashed_parquet(path, table.schema, prepared.file_digest(digest, shard)) as writer:
            writer.write_table(table)
            cut = getattr(model, "last_stats", {}).get("cut_documents", 0) if pairs else 0
            writer.add_key_value_metadata({_CUT_KEY: str(cut)})
    except OSError as error:
        raise writing_error(error, path.parent) from error


def _unscored(prepared: PreparedJob) -> int:
    pyarrow = arrow()
    return sum(
        pyarrow.parquet.read_table(prepared.path(shard), columns=["score"]).column(0).null_count
        for shard in prepared.shards
    )


def _cut_documents(prepared: PreparedJob) -> int:
    read = arrow().parquet.read_metadata
    return sum(int(read(prepared.path(shard)).metadata.get(_CUT_KEY.encode(), 0)) for shard in prepared.shards)


class LocalEngine:
    """Does shards one after the other in this process."""

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def __call__(self, prepared: PreparedJob, todo: Sequence[Shard], done: Callable[[Shard], None]) -> None:
        if self.model is None:
            self.model = load_model(prepared.job)
        digest = claim_for_model(prepared, self.model)
        for shard, rows in read_shards(prepared.files, todo):
            score_shard(prepared, self.model, shard, rows, digest)
            done(shard)


def load_model(job: BulkJob) -> Any:
    """The model that a job names, with its store."""
    from ..models.loading import load_ranker

    model = load_ranker(**job.model)
    if job.store is not None:
        use_store(model, job.store)
    return model

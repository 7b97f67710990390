"""The log of scored blocks that lets an evaluation resume after being killed at any moment.

A block is a fixed group of pairs: whole documents with the queries that retrieved them. It is logged as one line once
all of it is scored, so a block is either in the log or not; a resumed evaluation scores the missing blocks with
exactly the batches that an undisturbed one would have used, which makes the two end with the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.files.reading import parse_json_object, read_json
from modeling_tsarank.files.writing import write_errors, write_json
from modeling_tsarank.ranking_errors import InputError, ResourceError


logger = logging.getLogger(__name__)

_SETTINGS_FILE = "settings.json"
_PART_PATTERN = "scores.*.jsonl"


@dataclass(frozen=True)
class BlockRecord:
    """One scored block.

    Attributes:
        settings: Digest of the settings that it was scored under.
        block: Index of the block in the evaluation's fixed division into blocks.
        scores: One score for each pair of the block, in the block's order.
        seconds: Time that scoring took.
        tokens: Tokens that the model read and wrote, where it tells.
        device: Where it was scored.
        dtype: Number format that it was scored in.
        cut_documents: Documents that were cut to the model's length, where it tells.
        calls: Calls of the model, where a ranker of lists tells.
        unusable: Answers of the model that could not be used, where a ranker of lists tells.
    """

    settings: str
    block: int
    scores: list[float]
    seconds: float
    tokens: int | None = None
    device: str = "unknown"
    dtype: str = "unknown"
    cut_documents: int | None = None
    calls: int | None = None
    unusable: int | None = None


@dataclass
class ScoreLog:
    """Append-only score files in one folder, one file per writing process.

    Args:
        folder: The folder of `settings.json` and `scores.<process>.jsonl`.
        settings: Everything that changes the scores; a log of other settings is refused.
        process: Index of the process that writes through this object.
    """

    folder: Path
    settings: Mapping[str, Any]
    process: int = 0
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        self.digest = hash_parts([json.dumps(self.settings, sort_keys=True)])[:16]

    @property
    def part(self) -> Path:
        """The file that this process appends to."""
        return self.folder / f"scores.{self.process:05d}.jsonl"

    def prepare(self) -> None:
        """Checks or writes the settings and cuts torn last lines off; call it in one process, before any append.

        Raises:
            InputError: the folder holds scores made with other settings.
        """
        check_settings(self.folder, self.settings, complete=True)
        write_json(self.folder / _SETTINGS_FILE, dict(self.settings))
        for part in sorted(self.folder.glob(_PART_PATTERN)):
            _cut_torn_line(part)

    def read(self) -> dict[int, BlockRecord]:
        """All blocks logged so far by any process, by block index; a later record of a block replaces an earlier."""
        records: dict[int, BlockRecord] = {}
        for part in sorted(self.folder.glob(_PART_PATTERN)):
            for number, line in enumerate(part.read_bytes().splitlines(keepends=True), start=1):
                record = _parse_line(line)
                if record is None or record.settings != self.digest:
                    logger.warning("%s, line %d is no record of this evaluation; its block is rescored", part, number)
                else:
                    records[record.block] = record
        return records

    def append(self, record: BlockRecord) -> None:
        """Writes one block and waits until it is on the disk.

        Raises:
            ResourceError: the file cannot be written.
        """
        values = asdict(record)
        line = json.dumps({**values, "sha256": _record_hash(values)}, allow_nan=False) + "\n"
        try:
            with self.part.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ResourceError(
                f"cannot append scores to {self.part}: {error.strerror or error}; "
                "free some space and run the same command again, scored blocks are kept"
            ) from error


def check_settings(folder: Path, settings: Mapping[str, Any], complete: bool = False) -> None:
    """Compares `settings` with those that the folder's scores were made with.

    Args:
        folder: A dataset's output folder; one without recorded settings passes.
        settings: The settings of this evaluation, values that JSON can hold.
        complete: True to compare all keys, False to compare those in `settings` (before the costly ones are known).

    Raises:
        InputError: at least one differs; the message names each with its old and its new value.
    """
    path = folder / _SETTINGS_FILE
    if not path.exists():
        return
    recorded = read_json(path)
    if not isinstance(recorded, dict):
        raise InputError(f"{path} does not hold the settings of an evaluation; choose another --output")
    current = json.loads(json.dumps(dict(settings)))
    keys = sorted(current.keys() | recorded.keys()) if complete else list(current)
    changed = [
        f"{key} was {recorded.get(key)!r} and is now {current.get(key)!r}"
        for key in keys
        if recorded.get(key) != current.get(key)
    ]
    if changed:
        raise InputError(
            f"{folder} holds scores of another evaluation ({'; '.join(changed)}): "
            "choose another --output, or --overwrite to throw those scores away"
        )


def has_settings(folder: Path) -> bool:
    """Whether an evaluation got as far as recording its settings, which it does once its candidates are fixed."""
    return (folder / _SETTINGS_FILE).is_file()


def clear(folder: Path) -> None:
    """Removes the settings and scores of an earlier evaluation, the settings last: a kill leaves no mixture."""
    for part in sorted(folder.glob(_PART_PATTERN)):
        part.unlink(missing_ok=True)
    (folder / _SETTINGS_FILE).unlink(missing_ok=True)


def split_blocks(group_sizes: Sequence[int], block_pairs: int) -> list[range]:
    """Divides pairs, which come in groups, into blocks of consecutive whole groups with about `block_pairs` pairs.

    Args:
        group_sizes: The number of pairs of each group, in order.
        block_pairs: A block is closed once it has at least this many pairs.

    Returns:
        Ranges of pair positions, which together cover every pair once.
    """
    blocks: list[range] = []
    start = end = 0
    for size in group_sizes:
        end += size
        if end - start >= block_pairs:
            blocks.append(range(start, end))
            start = end
    if start < end:
        blocks.append(range(start, end))
    return blocks


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a lock on the folder that ends with the process, however it ends; without effect where locks do not exist.

    Raises:
        InputError: another running evaluation holds it.
        ResourceError: the folder cannot be made or written.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another evaluation is writing to {folder}; wait for it, or choose another --output"
            ) from error
        except OSError:
            logger.debug("%s is on a file system without locks", folder)
        yield


def _parse_line(line: bytes) -> BlockRecord | None:
    """The record of a line, `None` where it is not whole or was edited."""
    if not line.endswith(b"\n"):
        return None
    with suppress(InputError, TypeError, KeyError):
        values = parse_json_object(line, "")
        if values.pop("sha256") == _record_hash(values):
            return BlockRecord(**values)
    return None


def _record_hash(values: Mapping[str, Any]) -> str:
    return hash_parts([json.dumps(values, sort_keys=True)])[:16]


def _cut_torn_line(part: Path) -> None:
    """Cuts what follows the last line break: the line that was being written when the process died."""
    content = part.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.info("%s ends in a torn line, which is dropped; its block is scored again", part)
        with part.open("r+b") as stream:
            stream.truncate(whole)

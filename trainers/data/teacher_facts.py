"""What is known of a teacher beyond its scores: its name, and what it was trained on itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modeling_tsarank.eval.checkpoint_sources import display_name
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.models.embedded_models import RECORD_FILE, releases
from modeling_tsarank.models.resolver import resolve
from modeling_tsarank.ranking_errors import InputError


_CARD = "README.md"


def teacher_facts(
    given: Sequence[str], trained_on: Sequence[str] | None = None, here: bool = True
) -> list[dict[str, str | None]]:
    """`{"name", "trained_on"}` of each teacher; `trained_on` is None where nobody said and nothing is recorded.

    Args:
        given: Teachers as the user names them, see `load_scorer`.
        trained_on: What the user says, one text a teacher.
        here: Whether they run on this machine, not behind an address.

    Raises:
        InputError: not one text for each teacher.
    """
    if trained_on is not None and len(trained_on) != len(given):
        raise InputError(
            f"--teacher-trained-on takes one text a teacher: {len(given)} teachers, {len(trained_on)} texts"
        )
    known: Sequence[str | None] = trained_on or [
        recorded_training_data(resolve(name).name) if here else None for name in given
    ]
    return [{"name": display_name(name), "trained_on": text or None} for name, text in zip(given, known, strict=True)]


def recorded_training_data(source: str) -> str | None:
    """What a model was trained on, by the record of its training here or by its own card's metadata."""
    release = releases().get(source)
    folder = Path(source) if release is None else release.folder
    if release is None and not folder.is_dir():
        return _of_card(_cached_card(source))
    if (folder / RECORD_FILE).is_file():
        return _of_record(folder / RECORD_FILE)
    return _of_card(folder / _CARD)


def _of_record(path: Path) -> str | None:
    names: list[str] = []
    record = read_json(path)
    while isinstance(record, dict):
        data = record.get("data") or {}
        names += [
            str(name) for name in (data.get("name"), *(one["name"] for one in data.get("teachers") or [])) if name
        ]
        record = (record.get("started_from") or {}).get("training")
    return ", ".join(dict.fromkeys(reversed(names))) or None


def _of_card(path: Path | None) -> str | None:
    from huggingface_hub.repocard import metadata_load

    if path is None or not path.is_file():
        return None
    try:
        datasets = (metadata_load(path) or {}).get("datasets")
    except Exception:  # a card is written by anyone, and what it says is only of use where it can be read
        return None
    names = [datasets] if isinstance(datasets, str) else datasets if isinstance(datasets, list) else []
    return ", ".join(dict.fromkeys(str(name) for name in names)) or None


def _cached_card(name: str) -> Path | None:
    """The card of a model of the Hub, if the Hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, _CARD)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None

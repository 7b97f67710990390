"""The publisher of trainings (`trainers.publishing`): `push_to_hub=True` produces the same card and commit."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import write_text
from modeling_tsarank.hub_cards.model_cards import render_model_card
from modeling_tsarank.hub_cards.model_facts import RECORD_NAME, read_model
from modeling_tsarank.hub_cards.model_publishing import ModelOptions, prepare_model
from modeling_tsarank.hub_cards.uploading import CARD_NAME, UNKNOWN_LICENSE
from modeling_tsarank.ranking_errors import InputError


logger = logging.getLogger(__name__)


def write_card(trainer: Any) -> None:
    """Writes the card of a finished training into its `output_dir`, unless no model has been saved."""
    folder = Path(trainer.args.output_dir)
    if not (folder / "config.json").is_file() or not (folder / RECORD_NAME).is_file():
        logger.info("no model card is written to %s before the model is saved", folder)
        return
    facts = read_model(folder)
    license_id = (facts.base.license if facts.base else None) or UNKNOWN_LICENSE
    card = render_model_card(facts, _repo_id(trainer), _tag(folder), license_id)
    write_text(folder / CARD_NAME, card)


def push(trainer: Any, message: str | None = None, token: str | None = None) -> str:
    """Publishes the saved model of a training; returns the commit's URL.

    The tag is the end time of the training. A licence that is not recorded is published as unknown.
    """
    args = trainer.args
    folder = Path(args.output_dir)
    options = ModelOptions(
        tag=_tag(folder),
        private=args.hub_private_repo,
        message=message,
        token=token or args.hub_token,
        adapter_only=not (folder / "config.json").is_file(),
        unknown_license=True,
    )
    published = prepare_model(folder, _repo_id(trainer), options).carry_out()
    return f"{published.url}/commit/{published.commit}"


def _repo_id(trainer: Any) -> str:
    """The trainer's repository id; a name without its owner until the Hub has been queried."""
    return trainer.hub_model_id or trainer.args.hub_model_id or Path(trainer.args.output_dir).resolve().name


def _tag(folder: Path) -> str:
    finished = read_json_object(folder / RECORD_NAME, allow_nan=True).get("finished")
    if not isinstance(finished, str):
        raise InputError(f"{folder / RECORD_NAME} has no end time of the training")
    return "run-" + re.sub(r"[^0-9T]", "", finished).replace("T", "-")

"""Rerankers that sentence-transformers saves with a chat template and LogitScore, against its CrossEncoder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank import ModelError, TwolarModel, load_ranker
from modeling_tsarank.models.resolver import Kind, resolve


sentence_transformers = pytest.importorskip("sentence_transformers")

# A default instruction in place of a system message, as the chat templates of rerankers have it.
HEAD = (
    "{%- set ns = namespace(told='Find passages.') -%}{%- for m in messages if m.role == 'system' -%}"
    "{%- set ns.told = CONTENT(m) -%}{%- endfor -%}"
    "{{ '<|im_start|>user\n<Instruct>: ' + ns.told + '\n<Query>: ' }}"
)
BODY = (
    "{%- for m in messages if m.role == 'query' -%}{{ CONTENT(m) }}{%- endfor -%}{{ '\n<Document>: ' }}"
    "{%- for m in messages if m.role == 'document' -%}{{ CONTENT(m) }}{%- endfor -%}{{ '<|im_end|>\n' }}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
PAIRS = [
    ("who guides a ship", document)
    for document in ("The pilot.", "Grüße aus Köln: 42 % naïve text.", "", "bread " * 9 + "rises")
]


@pytest.fixture
def save(tmp_path: Path, chat_tokenizer: Any, make_chat_model: Any) -> Callable[..., Path]:
    return partial(_save, tmp_path, chat_tokenizer, make_chat_model)


def _save(
    folder: Path, base: Any, make: Any, template: str = HEAD + BODY, structured: bool = False, **more: Any
) -> Path:
    """A CrossEncoder of a tiny Qwen3, saved by sentence-transformers."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = template.replace("CONTENT(m)", "m.content[0].text" if structured else "m.content")
    model = make(300)
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    reader = Transformer(
        str(folder / "plain"),
        transformer_task="text-generation",
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
    )
    answers = tokenizer.convert_tokens_to_ids(["yes", "no"])
    answers = answers[: more.pop("answers", 2)]
    saved = folder / "saved"
    sentence_transformers.CrossEncoder(modules=[reader, LogitScore(*answers)], **more).save_pretrained(str(saved))
    return saved


def by_cross_encoder(folder: Path, **options: Any) -> np.ndarray:
    return sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity(), **options
    )


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("answers", [1, 2])
def test_scores_equal_the_cross_encoders(save: Any, structured: bool, answers: int) -> None:
    folder = save(structured=structured, answers=answers)
    assert resolve(folder).kind is Kind.FOLDER
    ranker = load_ranker(folder, dtype="float32")
    assert isinstance(ranker, TwolarModel)
    expected = by_cross_encoder(folder)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(ranker.predict(PAIRS), expected, atol=1e-5)
    assert ranker.options.instruction == "Find passages."
    told = by_cross_encoder(folder, prompt="Find ports.")
    assert np.abs(told - expected).max() > 1e-3
    np.testing.assert_allclose(ranker.predict(PAIRS, instruction="Find ports."), told, atol=1e-5)


def test_the_default_prompt_of_the_repository_is_its_instruction(save: Any) -> None:
    folder = save(prompts={"web": "Find ports.", "other": "x"}, default_prompt_name="web")
    ranker = load_ranker(folder, dtype="float32")
    assert ranker.options.instruction == "Find ports."
    np.testing.assert_allclose(ranker.predict(PAIRS), by_cross_encoder(folder), atol=1e-5)


def test_a_chat_template_without_an_instruction_has_no_place_for_one(save: Any) -> None:
    folder = save(template="{{ '<|im_start|>user\n' }}" + BODY)
    ranker = load_ranker(folder, dtype="float32")
    assert "{instruction}" not in ranker.options.template
    np.testing.assert_allclose(ranker.predict(PAIRS), by_cross_encoder(folder), atol=1e-5)


def test_a_long_document_leaves_the_answers_place(save: Any) -> None:
    """The document is cut, not the chat template behind it."""
    ranker = load_ranker(save(), dtype="float32")
    assert ranker.options.max_length == 300
    ids = ranker.encoder.pairs([("who guides a ship", "bread " * 900)])[0].prompt
    assert len(ids) == 300
    assert ranker.tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_what_is_unusable_is_refused_in_one_line(save: Any) -> None:
    folder = save()
    settings = json.loads((folder / "1_LogitScore" / "config.json").read_text())
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("m.role == 'document'", "m.role == 'user'"))
    with pytest.raises(ModelError, match=r"must contain \{document\} once") as caught:
        load_ranker(folder)
    assert "\n" not in str(caught.value)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no\nsuch role') }}")
    with pytest.raises(ModelError, match="chat template cannot be used") as caught:
        load_ranker(folder)
    assert "\n" not in str(caught.value)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps({**settings, "true_token_id": "yes"}))
    with pytest.raises(ModelError, match="true_token_id"):
        load_ranker(folder)

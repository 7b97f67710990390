"""A true/false ranker as a sequence-classification model with one label, for what serves only those."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification

from ..files.log_records import unwarned
from ..modeling_cross_encoder import CrossEncoderModel
from ..ranking_errors import ModelError
from ..ranking_options import CONFIG_KEY


# Scores of these are compared before anything is given away; the last document is cut.
_QUERIES = ("how long does a flea live", "5 ships?")
_DOCUMENTS = (
    "Fleas jump far.",
    "An adult flea lives for two to three months, cats more. " * 3,
    "",
    "One word more. " * 999,
)
PAIRS = [(query, document) for query in _QUERIES for document in _DOCUMENTS]
# The templates of vLLM's and sentence-transformers' rerankers get messages with these roles.
_MESSAGE = "{{ (messages | selectattr('role', 'equalto', '%s') | first).content }}"


@torch.inference_mode()
def to_sequence_classification(ranker: Any) -> CrossEncoderModel:
    """The same scores from a `…ForSequenceClassification` model whose head is lm_head[true] − lm_head[false].

    The tokenizer joins two texts to the ranker's prompt; its chat template has the roles `query` and `document`.

    Args:
        ranker: A decoder-only ranker that scores by the difference of two answers' logits. It is left as it is.

    Raises:
        ModelError: it scores in another way, or the result would score otherwise.
    """
    backbone, options, answers = ranker.backbone, ranker.options, list(ranker.answer_tokens().values())
    if ranker.config.is_encoder_decoder or getattr(options, "strategy", "") != "difference" or len(answers) != 2:
        raise ModelError(
            "only a decoder-only ranker that scores by the difference of two answers' logits can be exported as a "
            "sequence-classification model"
        )
    if len(options.pieces) > 1 or "{instruction}" in options.whole_template:
        raise ModelError(
            "a template of several pieces, or with an instruction, cannot be exported: a pair has two texts"
        )
    fields = sorted(("{query}", "{document}"), key=options.whole_template.index)
    border = options.whole_template.index(fields[0]) + len(fields[0])
    templates = options.whole_template[:border], options.whole_template[border:]
    model = _with_head(backbone, ranker.pad_id, *answers)
    tokenizer = _joining(ranker)
    texts = [
        template.replace(field, _MESSAGE % field[1:-1]) for template, field in zip(templates, fields, strict=True)
    ]
    tokenizer.chat_template = "".join(texts)
    made: CrossEncoderModel = CrossEncoderModel.from_backbone(
        model,
        tokenizer=tokenizer,
        order="query_first" if fields[0] == "{query}" else "document_first",
        **{f"{field[1:-1]}_template": template for field, template in zip(fields, templates, strict=True)},
        max_length=options.max_length,
        max_query_length=options.max_query_length,
    )
    with unwarned():
        expected, found = ranker.predict(PAIRS, show_progress=False), made.predict(PAIRS, show_progress=False)
    tolerance = 1e-4 if ranker.dtype == torch.float32 else 0.1
    worst = float(abs(expected - found).max())
    if worst > tolerance * max(1.0, float(abs(expected).max())):
        raise ModelError(f"the exported model would score otherwise: scores differ by up to {worst:.3g}")
    return made


def _with_head(backbone: Any, pad_id: int, true_id: int, false_id: int) -> Any:
    head = backbone.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if bias is not None and bias[true_id] != bias[false_id]:
        raise ModelError("the model's head has a bias, which a classification head of one label has no place for")
    config = copy.deepcopy(backbone.config)
    for name in (CONFIG_KEY, "auto_map", "custom_pipelines"):
        vars(config).pop(name, None)
    config.num_labels, config.pad_token_id = 1, pad_id
    model = AutoModelForSequenceClassification.from_config(config, dtype=backbone.dtype)
    try:
        model.base_model.load_state_dict(backbone.base_model.state_dict())
        weight = head.weight[true_id].float() - head.weight[false_id].float()
        model.score.weight.copy_(weight[None])
    except (AttributeError, RuntimeError) as error:
        raise ModelError(f"{type(model).__name__} does not take the weights of {type(backbone).__name__}") from error
    return model.to(backbone.device).eval()


def _joining(ranker: Any) -> Any:
    """A copy of the tokenizer that joins two texts without anything in between."""
    tokenizer = copy.deepcopy(ranker.tokenizer)
    encoder = ranker.encoder
    around = [tokenizer.convert_ids_to_tokens(list(ids)) for ids in (encoder.leading, encoder.trailing)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*around[0], "$A:0", *around[1]],
        pair=[*around[0], "$A:0", "$B:0", *around[1]],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in {*around[0], *around[1]}],
    )
    return tokenizer

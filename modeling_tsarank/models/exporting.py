"""Exports of a true/false ranker or a cross-encoder: as a sequence-classification model, and as a graph.

A graph, for ONNX Runtime or OpenVINO, is written where sentence-transformers' CrossEncoder expects it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification

from ..files.extras import require
from ..files.log_records import unwarned
from ..modeling_cross_encoder import CrossEncoderModel, pair_logits
from ..ranking_errors import ModelError
from ..ranking_options import CONFIG_KEY
from ..ranking_scoring import pad_right
from ..ranking_text import clean_pairs


# Exports are checked by their scores of these texts; the last document is truncated.
_QUERIES = ("how long does a flea live", "5 ships?")
_DOCUMENTS = (
    "Fleas jump far.",
    "An adult flea lives for two to three months, cats more. " * 3,
    "",
    "One word more. " * 999,
)
PAIRS = [(query, document) for query in _QUERIES for document in _DOCUMENTS]
# The templates of vLLM's and sentence-transformers' rerankers expect messages with these roles.
_MESSAGE = "{{ (messages | selectattr('role', 'equalto', '%s') | first).content }}"
INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4
GRAPHS = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
"""The file of each kind in a model's folder; its weights are next to it."""


@torch.inference_mode()
def to_sequence_classification(ranker: Any) -> CrossEncoderModel:
    """A model with the same scores: a `…ForSequenceClassification` model whose head is lm_head[true] − lm_head[false].

    The tokenizer's pair template is the ranker's prompt; its chat template has the roles `query` and `document`.

    Args:
        ranker: A decoder-only ranker that scores by the difference of two answers' logits. It is not changed.

    Raises:
        ModelError: the ranker scores in another way, or the exported scores differ.
    """
    backbone, options, answers = ranker.backbone, ranker.options, list(ranker.answer_tokens().values())
    if ranker.config.is_encoder_decoder or getattr(options, "strategy", "") != "difference" or len(answers) != 2:
        raise ModelError(
            "only a decoder-only ranker that scores by the difference of two answers' logits can be exported as a "
            "sequence-classification model"
        )
    if len(options.pieces) > 1 or "{instruction}" in options.whole_template:
        raise ModelError("cannot export a template with several pieces or an instruction: a pair has only two texts")
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
        raise ModelError(f"the exported model's scores differ by up to {worst:.3g}")
    return made


def _with_head(backbone: Any, pad_id: int, true_id: int, false_id: int) -> Any:
    head = backbone.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if bias is not None and bias[true_id] != bias[false_id]:
        raise ModelError("cannot export a head with a bias: a one-label classification head has none")
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
        raise ModelError(f"{type(model).__name__} cannot load the weights of {type(backbone).__name__}") from error
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


class _Logits(torch.nn.Module):
    """`(rows, labels)` of padded ids; token types are created inside, so that a graph has only two inputs."""

    def __init__(self, model: CrossEncoderModel) -> None:
        super().__init__()
        self.backbone, self._separator = model.backbone, model.encoder.separator or []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return pair_logits(self.backbone, input_ids, attention_mask, self._separator)


@torch.inference_mode()
def save_graph(model: CrossEncoderModel, folder: Path, kind: str) -> float:
    """Writes a model's graph to its folder, compares the scores, and returns their largest difference.

    Args:
        model: In float32 on a CPU.
        folder: Exists; the model's own files may be there.
        kind: One of `GRAPHS`.

    Raises:
        ResourceError: a package of the extra `export` is missing.
        ModelError: the model cannot be converted, or the graph's scores differ by more than 1e-4.
    """
    for name in ("onnxscript", "onnxruntime") if kind == "onnx" else ("openvino",):
        require(name, "export", f"--to {kind}")
    path = folder / GRAPHS[kind]
    path.parent.mkdir()
    with unwarned():
        expected = model.predict(PAIRS, show_progress=False)
        encoded = [pair.prompt for pair in model.encoder.pairs(clean_pairs(PAIRS))]
    batches = [pad_right(rows, model.pad_id, torch.device("cpu")) for rows in (encoded[:3], encoded[3:])]
    try:
        with _converting(model):
            (_write_onnx if kind == "onnx" else _write_openvino)(_Logits(model.eval()), path, batches[0])
            run = load_graph(folder, kind)
            found = [run(ids.numpy(), mask.numpy()) for ids, mask in batches]
    except Exception as error:  # a converter may fail in any way on an architecture
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{type(model.backbone).__name__} cannot be converted to {kind}: {reason:.300}") from error
    scores = model.pool(torch.from_numpy(np.concatenate(found))).numpy()
    worst = float(np.abs(scores - expected).max())
    if not worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(f"the scores of the {kind} graph differ by up to {worst:.3g}")
    return worst


def load_graph(folder: Path, kind: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function from ids and mask, `(pairs, tokens)` int64, to logits `(pairs, labels)` on the CPU."""
    path = folder / GRAPHS[kind]
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda *batch: session.run(["logits"], dict(zip(INPUTS, batch, strict=True)))[0]
    import openvino

    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *batch: compiled(dict(zip(INPUTS, batch, strict=True)))["logits"]


def _write_onnx(model: _Logits, path: Path, example: tuple[torch.Tensor, ...]) -> None:
    sizes = {0: torch.export.Dim("pairs"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        model,
        example,
        path,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamo=True,
        verbose=False,
        dynamic_shapes=(sizes, sizes),
    )


def _write_openvino(model: _Logits, path: Path, example: tuple[torch.Tensor, ...]) -> None:
    import openvino

    graph = openvino.convert_model(model, example_input=dict(zip(INPUTS, example, strict=True)))
    graph.output(0).get_tensor().set_names({"logits"})
    openvino.save_model(graph, path, compress_to_fp16=False)


@contextlib.contextmanager
def _converting(model: CrossEncoderModel) -> Iterator[None]:
    """Disables the KV cache, and converters' warnings about the code of transformers."""
    config = model.backbone.config.get_text_config()
    cached, disabled = getattr(config, "use_cache", None), logging.root.manager.disable
    config.use_cache = False
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.use_cache = cached
        logging.disable(disabled)

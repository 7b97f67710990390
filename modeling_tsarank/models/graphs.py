"""A sequence-classification model as a graph for ONNX Runtime or OpenVINO.

It is written where sentence-transformers' CrossEncoder looks for one.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ..files.extras import require
from ..files.log_records import unwarned
from ..modeling_cross_encoder import CrossEncoderModel, pair_logits
from ..ranking_errors import ModelError
from ..ranking_scoring import pad_right
from ..ranking_text import clean_pairs
from .exporting import PAIRS


INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4
GRAPHS = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
"""The file of each kind in a model's folder; its weights are in the same place."""


class _Logits(torch.nn.Module):
    """`(rows, labels)` of padded ids; token types are made within, so that a graph has the two inputs alone."""

    def __init__(self, model: CrossEncoderModel) -> None:
        super().__init__()
        self.backbone, self._separator = model.backbone, model.encoder.separator or []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return pair_logits(self.backbone, input_ids, attention_mask, self._separator)


@torch.inference_mode()
def save_graph(model: CrossEncoderModel, folder: Path, kind: str) -> float:
    """Writes the graph of a model into its folder, compares scores, and returns their largest difference.

    Args:
        model: In float32 on a CPU.
        folder: Exists; the model's own files may be there.
        kind: One of `GRAPHS`.

    Raises:
        ResourceError: a package of the extra `export` is missing.
        ModelError: the model cannot be written so, or the graph scores otherwise by more than 1e-4.
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
    except Exception as error:  # whatever a converter makes of an architecture
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{type(model.backbone).__name__} cannot be written for {kind}: {reason:.300}") from error
    scores = model.pool(torch.from_numpy(np.concatenate(found))).numpy()
    worst = float(np.abs(scores - expected).max())
    if not worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(f"the graph for {kind} would score otherwise: scores differ by up to {worst:.3g}")
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
    """Within it, the model gives no cache, and converters do not tell what they think of the code of transformers."""
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

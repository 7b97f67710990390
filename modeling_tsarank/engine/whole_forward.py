"""Forward passes in torch of models that encode query and document together: encoder-decoders and encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling_cross_encoder import pair_logits
from ..ranking_errors import ModelError
from ..ranking_scoring import AnswerHead, first_step_logits, has_plain_rows, pad_right
from .forward import Forward
from .private_view import hooked, private_view
from .read_outs import AnswerLogits, PairLogits, ReadOut
from .tasks import Task


class WholeForward(Forward):
    """No prefix sharing: in such a model each token's states depend on all other tokens.

    Args:
        backbone, pad_id: See `TorchForward`.
        read_out: Answer logits at an encoder-decoder's first step, or those of a sequence-classification model.
    """

    def __init__(self, backbone: PreTrainedModel, read_out: ReadOut, pad_id: int) -> None:
        self.device, self.dtype = backbone.device, backbone.dtype
        self._backbone, self._read_out, self._pad_id = backbone, read_out, pad_id
        if isinstance(read_out, PairLogits):
            self._backbone = _with_exact_head(backbone)
        elif not isinstance(read_out, AnswerLogits):
            raise ModelError(f"{backbone.config.model_type} is an encoder-decoder, which supports answer logits only")

    def read(self, tasks: Sequence[Task]) -> list[torch.Tensor]:
        """Tasks in one padded batch; each gets one row of values, whatever positions it names."""
        ids, mask = pad_right([task.ids for task in tasks], self._pad_id, self.device)
        if isinstance(self._read_out, PairLogits):
            values = pair_logits(self._backbone, ids, mask, self._read_out.separator)
        else:
            assert isinstance(self._read_out, AnswerLogits)
            values = first_step_logits(self._backbone, ids, mask, self._read_out.tokens)
        return list(values.cpu()[:, None])

    def describe(self, longest: int) -> str:
        """An encoder attends to the whole text."""
        kind = "encoder-decoder" if self._backbone.config.is_encoder_decoder else "encoder"
        return f"an {kind} encodes query and document together"


def _with_exact_head(backbone: Any) -> Any:
    """The model with its last layer, which computes the labels' logits, in float32 or higher; see `AnswerHead`."""
    view = private_view(backbone)
    labels = backbone.config.num_labels
    layers = [] if view is None else list(view.named_modules())
    inner = set() if view is None else set(view.base_model.modules())
    for name, layer in reversed(layers):
        if isinstance(layer, torch.nn.Linear) and layer.out_features == labels and layer not in inner:
            if has_plain_rows(layer) and not hooked(layer):
                owner, _, part = name.rpartition(".")
                view.get_submodule(owner)._modules[part] = AnswerHead(layer, range(labels))
            return view
    return backbone

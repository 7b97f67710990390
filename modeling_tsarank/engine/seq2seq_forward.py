"""An encoder-decoder's forward passes in torch: the encoder reads query and document, the decoder takes one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..ranking_errors import ModelError
from ..ranking_scoring import first_step_logits, pad_right
from .forward import Forward
from .read_outs import AnswerLogits, ReadOut
from .tasks import Task


class Seq2SeqForward(Forward):
    """Shares nothing: what the encoder makes of a token depends on all others.

    Args:
        backbone, read_out, pad_id: As of `TorchForward`; only answer logits can be read off.
    """

    def __init__(self, backbone: PreTrainedModel, read_out: ReadOut, pad_id: int) -> None:
        if not isinstance(read_out, AnswerLogits):
            raise ModelError(f"{backbone.config.model_type} is an encoder-decoder: only answers can be read off it")
        self.device, self.dtype = backbone.device, backbone.dtype
        self._backbone, self._tokens, self._pad_id = backbone, read_out.tokens, pad_id

    def read(self, tasks: Sequence[Task]) -> list[torch.Tensor]:
        """Tasks in one padded batch; whatever positions they name, the decoder's first step is read."""
        ids, mask = pad_right([task.ids for task in tasks], self._pad_id, self.device)
        return list(first_step_logits(self._backbone, ids, mask, self._tokens).cpu()[:, None])

    def describe(self, longest: int) -> str:
        """An encoder sees all at once."""
        return "an encoder-decoder reads query and document at once"

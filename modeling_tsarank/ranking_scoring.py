"""Helpers for scoring with and without the engine: batches under a token budget, heads, scores."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from .ranking_errors import ModelError, NonFiniteScoreError
from .ranking_options import whole_number


# Measured on two CPU cores: larger batches gain nothing and cost memory. An accelerator needs more work at a time.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 32768
# Rows whose numbers of new tokens differ by less are treated as equal.
SAME_READ = 8


class RankingCancelled(Exception):  # noqa: N818 - a fulfilled request, not an error
    """The caller's `stop` returned true; no scores are returned, the model stays usable."""


def check_batch_tokens(batch_tokens: int | None, device: torch.device) -> int:
    """The given token budget of one batch, or the default. Raises `InputError` unless it is a positive integer."""
    default = CPU_BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    return default if batch_tokens is None else whole_number(batch_tokens, "batch_tokens")


def plan_batches(lengths: Sequence[int], batch_tokens: int, read: Sequence[int] | None = None) -> list[list[int]]:
    """Indexes grouped into batches whose rows × longest row is at most `batch_tokens` (or a single longer row).

    Rows are sorted by length to minimize padding, longest first, so that a machine that is too small fails at once and
    not at the end. If a length also counts cached states, `read` has the tokens that each row processes: rows with
    similar numbers of these are then batched, and sorted by length only among them.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-(read[i] // SAME_READ) if read else 0, -lengths[i], i))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def pad_right(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `(rows, longest)` right-padded with `value`, and their 0/1 mask."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def align_left(attention_mask: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each `(rows, length)` tensor with the unmasked positions moved to the front, in order.

    This converts any padding to right padding. Left padding with a mask would require every backbone to handle rows
    that attend to nothing, for which some (BLOOM, Gemma 2 in float64) return NaN.
    """
    order = torch.argsort((attention_mask == 0).to(torch.uint8), dim=1, stable=True)
    return tuple(row.gather(1, order) for row in rows)


def check_finite(scores: Sequence[float], describe: Callable[[int], str]) -> None:
    """Raises `NonFiniteScoreError` naming the first task whose score is NaN or infinite."""
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            bad = sum(not math.isfinite(s) for s in scores)
            raise NonFiniteScoreError(
                f"the model gave the score {score} for {describe(i)} ({bad} of {len(scores)} scores are not finite); "
                "use dtype float32, or check the checkpoint for NaN weights"
            )


def gathered_log_probs(logits: torch.Tensor, targets: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
    """log p(target) at each position, float32: logits `(positions, vocabulary)`, targets `(positions,)`.

    Chunked, so that no float32 copy of all positions × vocabulary exists; the normalizer is summed in float32 for any
    dtype of the logits. On a CPU a chunk of 16 rows stays in the cache between the passes over it; an accelerator
    needs few and large ones. A row's result does not depend on the others.
    """
    chunk = chunk or (16 if logits.device.type == "cpu" else 2048)
    parts = []
    for start in range(0, len(targets), chunk):
        rows = logits[start : start + chunk].float()
        picked = rows.gather(-1, targets[start : start + chunk, None]).squeeze(-1)
        # The sum of a single row is split between CPU threads, that of one row among several is not.
        whole = torch.cat([rows, rows]) if len(rows) == 1 and rows.device.type == "cpu" else rows
        parts.append(picked - whole.logsumexp(-1)[: len(rows)])
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter `name`."""
    return name in inspect.signature(function).parameters


# ---- scores ---------------------------------------------------------------------------------------------------------


@dataclass
class RankingOutput(ModelOutput):
    """Output of a ranking model's `forward`.

    Attributes:
        scores: `(pairs,)` float32, higher is more relevant.
        token_log_probs: `(query tokens,)` float32, row by row (`TSARankModel` only).
    """

    scores: torch.Tensor | None = None
    token_log_probs: torch.Tensor | None = None


# ---- heads ---------------------------------------------------------------------------------------------------------


def head_place(model: Any) -> str | None:
    """The name of the output head among a model's own modules."""
    head = model.get_output_embeddings()
    return next((name for name, part in model.named_children() if part is head), None)


def has_plain_rows(head: torch.nn.Module) -> bool:
    """Whether a token's logit is the product of the hidden state with its row of the head's weight."""
    weight = getattr(head, "weight", None)
    plain = isinstance(head, torch.nn.Linear) and type(weight) is torch.nn.Parameter and not weight.is_meta
    return plain and "forward" not in vars(head) and weight.is_floating_point()  # type: ignore[union-attr]


class AnswerHead(torch.nn.Module):
    """Computes the logits of a few tokens only, in float32 or higher.

    Between 8 and 16, bfloat16 numbers are 1/16 apart, so a hundred documents' logits, and differences of two of them,
    would have a few dozen values and half of the documents would tie. The hidden states have the model's precision;
    only this product is exact.
    """

    def __init__(self, head: Any, tokens: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bias, self._tokens = head.weight, head.bias, list(tokens)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(…, in)` to `(…, tokens)`."""
        rows = torch.tensor(self._tokens, device=self.weight.device)
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight = self.weight.index_select(0, rows).to(dtype)
        # No matrix product: its kernel, and so its last digits, depend on the number of positions.
        logits = (hidden.to(dtype)[..., None, :] * weight).sum(-1)
        return logits if self.bias is None else logits + self.bias.index_select(0, rows).to(dtype)


def with_answer_head(backbone: Any, tokens: Sequence[int]) -> Any:
    """The backbone's modules with another head, or `None` if its logits cannot be computed so.

    A separate module, so that the backbone is not changed. Elementwise scaling or capping of logits by the model
    applies to these too.
    """
    place, head = head_place(backbone), backbone.get_output_embeddings()
    if place is None or not has_plain_rows(head) or "forward" in vars(backbone):
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in (backbone, head)):
        return None
    made = object.__new__(type(backbone))
    made.__dict__.update(vars(backbone))
    made.__dict__["_modules"] = {**backbone._modules, place: AnswerHead(head, tokens)}
    # BART-like models add a bias to all logits.
    for name, bias in backbone._buffers.items():
        if bias is not None and bias.shape[-1:] == head.weight.shape[:1]:
            made.__dict__["_buffers"] = {**made._buffers, name: bias[..., list(tokens)]}
    return made


def decoder_start(backbone: Any) -> int:
    """The decoder start token of an encoder-decoder. Raises `ModelError` if no configuration has it."""
    for config in (backbone.config, getattr(backbone, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ModelError(f"this {backbone.config.model_type} has no decoder_start_token_id in config.json")


def first_step_logits(
    backbone: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, tokens: Sequence[int]
) -> torch.Tensor:
    """Logits `(rows, tokens)` of a few tokens at the decoder's first step of an encoder-decoder."""
    check_attention(backbone)
    reading = with_answer_head(backbone, tokens)
    decoder = torch.full((len(input_ids), 1), decoder_start(backbone), dtype=torch.long, device=input_ids.device)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder}
    logits: torch.Tensor = (reading or backbone)(**inputs, use_cache=False).logits[:, 0, :]
    return logits if reading else logits[:, list(tokens)]


# ---- attention -----------------------------------------------------------------------------------------------------


def refuse_attention(*names: Any) -> None:
    """Raises `ModelError` if one of these implementations of attention is `flex_attention` or a paged one.

    The first has masks of its own: pairs that follow a shared document would attend to other positions than alone.
    The others need the cache of transformers' continuous batching.
    """
    for name in names:
        for refused, called in (("flex_attention", "flex_attention"), ("paged|", "paged attention")):
            if refused in str(name):
                raise ModelError(f"{called} cannot be used for ranking; choose sdpa, eager or flash_attention_2")


def check_attention(backbone: Any) -> None:
    """`refuse_attention` for the implementation that a model would use, however it was set."""
    config = backbone.config
    refuse_attention(config._attn_implementation, config.get_text_config()._attn_implementation)


def attention_choice(auto_class: Any, config: Any, requested: str | None) -> dict[str, str]:
    """The wrapper's attention choice for the backbone, if the backbone supports it."""
    if requested in (None, "eager"):
        return {} if requested is None else {"attn_implementation": "eager"}
    model_class = auto_class._model_mapping.get(type(config), None)
    model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
    if requested == "sdpa" and not getattr(model_class, "_supports_sdpa", False):
        return {}
    return {"attn_implementation": requested}

"""What scoring needs with and without the engine: batches under a token budget, heads, scores."""

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


# Measured on two CPU cores: larger batches gain nothing and cost memory. An accelerator wants more work at a time.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 32768
# Rows whose numbers of read tokens differ by less count as reading the same.
SAME_READ = 8


class RankingCancelled(Exception):  # noqa: N818 - a request that was granted, not an error
    """The caller's `stop` returned true; no scores are returned, the model stays usable."""


def check_batch_tokens(batch_tokens: int | None, device: torch.device) -> int:
    """The given token budget of one batch, or the default. Raises `InputError` unless it is a positive integer."""
    default = CPU_BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    return default if batch_tokens is None else whole_number(batch_tokens, "batch_tokens")


def plan_batches(lengths: Sequence[int], batch_tokens: int, read: Sequence[int] | None = None) -> list[list[int]]:
    """Indexes grouped into batches whose rows × longest row is at most `batch_tokens` (or a single longer row).

    Rows are sorted by length, so hardly anything is padded; the longest come first, so a machine too small for the
    work says so at once and not at the end. Where a length counts more than the tokens that its row reads, `read`
    gives these: rows that read about as many then come together, and by length only among them.
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
    """Token ids `(rows, longest)` filled up on the right with `value`, and their 0/1 mask."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def align_left(attention_mask: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each `(rows, length)` tensor with the positions that the mask keeps moved to the front, order kept.

    However a batch was padded, this makes it padded on the right. Left padding with a mask would ask every backbone to
    cope with rows that attend to nothing, which some (BLOOM, Gemma 2 in float64) answer with NaN.
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

    Chunked, so that no float32 copy of all positions × vocabulary is ever made; the normaliser is summed in float32
    whatever the dtype of the logits. On a CPU a chunk of 16 rows stays in the cache between the passes over it;
    an accelerator wants few and large ones. A row's result does not depend on the others.
    """
    chunk = chunk or (16 if logits.device.type == "cpu" else 2048)
    parts = []
    for start in range(0, len(targets), chunk):
        rows = logits[start : start + chunk].float()
        picked = rows.gather(-1, targets[start : start + chunk, None]).squeeze(-1)
        # The sum of a single row is split between a CPU's threads, that of one among several is not.
        whole = torch.cat([rows, rows]) if len(rows) == 1 and rows.device.type == "cpu" else rows
        parts.append(picked - whole.logsumexp(-1)[: len(rows)])
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument called `name`."""
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
    """The name of the output head among a model's own parts."""
    head = model.get_output_embeddings()
    return next((name for name, part in model.named_children() if part is head), None)


def has_plain_rows(head: torch.nn.Module) -> bool:
    """Whether a token's logit is the product with its row of the head's weight."""
    weight = getattr(head, "weight", None)
    plain = isinstance(head, torch.nn.Linear) and type(weight) is torch.nn.Parameter and not weight.is_meta
    return plain and "forward" not in vars(head) and weight.is_floating_point()  # type: ignore[union-attr]


class AnswerHead(torch.nn.Module):
    """Gives the logits of a few tokens alone, in float32 at least, in the place of those of all.

    Between 8 and 16 the numbers of bfloat16 are 1/16 apart, so a hundred documents' logits, and the differences of two
    of them, would fall on a few dozen values and half of the documents would tie. The hidden states are as exact as
    the model computes them; only this product is made exactly.
    """

    def __init__(self, head: Any, tokens: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bias, self._tokens = head.weight, head.bias, list(tokens)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(…, in)` to `(…, tokens)`."""
        rows = torch.tensor(self._tokens, device=self.weight.device)
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight = self.weight.index_select(0, rows).to(dtype)
        # No matrix product: which kernel that takes, and so its last digits, depends on how many positions there are.
        logits = (hidden.to(dtype)[..., None, :] * weight).sum(-1)
        return logits if self.bias is None else logits + self.bias.index_select(0, rows).to(dtype)


def with_answer_head(backbone: Any, tokens: Sequence[int]) -> Any:
    """The backbone's own parts under another head, or `None` where its logits may not be read so.

    A module of its own, so that the backbone stays as it is. What it does to its logits one by one (scaling, capping)
    it does to these too.
    """
    place, head = head_place(backbone), backbone.get_output_embeddings()
    if place is None or not has_plain_rows(head) or "forward" in vars(backbone):
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in (backbone, head)):
        return None
    made = object.__new__(type(backbone))
    made.__dict__.update(vars(backbone))
    made.__dict__["_modules"] = {**backbone._modules, place: AnswerHead(head, tokens)}
    # BART and its kin add a bias to all logits.
    for name, bias in backbone._buffers.items():
        if bias is not None and bias.shape[-1:] == head.weight.shape[:1]:
            made.__dict__["_buffers"] = {**made._buffers, name: bias[..., list(tokens)]}
    return made


def decoder_start(backbone: Any) -> int:
    """The token that an encoder-decoder's answer begins behind. Raises `ModelError` if no configuration names it."""
    for config in (backbone.config, getattr(backbone, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ModelError(f"this {backbone.config.model_type} names no decoder_start_token_id in config.json")


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

    The first takes masks of its own: pairs behind a shared document would see other positions than alone. The others
    need the cache of transformers' continuous batching.
    """
    for name in names:
        for refused, called in (("flex_attention", "flex_attention"), ("paged|", "paged attention")):
            if refused in str(name):
                raise ModelError(f"{called} cannot be used for ranking; choose sdpa, eager or flash_attention_2")


def check_attention(backbone: Any) -> None:
    """`refuse_attention` for what a model would use, whoever has set it and whenever."""
    config = backbone.config
    refuse_attention(config._attn_implementation, config.get_text_config()._attn_implementation)


def attention_choice(auto_class: Any, config: Any, requested: str | None) -> dict[str, str]:
    """The wrapper's attention choice for the backbone, where the backbone supports it."""
    if requested in (None, "eager"):
        return {} if requested is None else {"attn_implementation": "eager"}
    model_class = auto_class._model_mapping.get(type(config), None)
    model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
    if requested == "sdpa" and not getattr(model_class, "_supports_sdpa", False):
        return {}
    return {"attn_implementation": requested}

"""What scoring needs without the engine: batches under a token budget, progress, one plain forward pass."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import ModelOutput

from .ranking_errors import InputError, ModelError, NonFiniteScoreError, ResourceError
from .ranking_options import whole_number


# Measured on two CPU cores: larger batches gain nothing and cost memory. An accelerator wants more work at a time.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 32768
# Rows whose numbers of read tokens differ by less count as reading the same.
SAME_READ = 8
# A bar is shown only when it would stay on screen for a while.
_PROGRESS_FROM = 64


class RankingCancelled(Exception):  # noqa: N818 - a request that was granted, not an error
    """The caller's `stop` returned true; no scores are returned, the model stays usable."""


def default_batch_tokens(device: torch.device) -> int:
    """Token budget of one batch where the user named none."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_BATCH_TOKENS


def check_batch_tokens(batch_tokens: int | None, device: torch.device) -> int:
    """The given budget or the default. Raises `InputError` unless it is a positive integer."""
    if batch_tokens is None:
        return default_batch_tokens(device)
    return whole_number(batch_tokens, "batch_tokens")


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, padded: bool = True, read: Sequence[int] | None = None
) -> list[list[int]]:
    """Indexes grouped into batches whose rows × longest row is at most `batch_tokens` (or a single longer row).

    Rows are sorted by length, so hardly anything is padded; the longest come first, so a machine too small for the
    work says so at once and not at the end. With `padded=False` the budget bounds the sum of a batch's lengths.
    Where a length counts more than the tokens that its row reads, `read` gives these: rows that read about as many
    then come together, and by length only among them.
    """
    order = sorted(
        range(len(lengths)), key=lambda i: (-(read[i] // SAME_READ) if read is not None else 0, -lengths[i], i)
    )
    batches: list[list[int]] = []
    total = longest = 0
    for index in order:
        total += lengths[index]
        longest = max(longest, lengths[index])
        if batches and (total if not padded else (len(batches[-1]) + 1) * longest) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            total = longest = lengths[index]
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


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator has no exception class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def memory_errors(batch_tokens: int, longest: int) -> Iterator[None]:
    """Turns running out of memory, and tokens that the model does not know, into one line that says what to change."""
    try:
        yield
    except IndexError as error:
        if "index out of range in self" not in str(error):  # what torch says of an embedding
            raise
        raise ModelError(
            "the tokenizer gives a token that the model has no embedding of; are both of one model?"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        advice = (
            f"lower batch_tokens (now {batch_tokens})"
            if batch_tokens > longest
            else "lower max_length or use a smaller model or dtype"
        )
        message = f"out of memory on a batch whose longest sequence has {longest} tokens; {advice}"
        raise ResourceError(message) from error


class Progress:
    """A progress bar, and the question before every batch whether to stop.

    Parameters:
        total: what there is to do, in pairs.
        show_progress: `None` shows the bar on a terminal when there is enough to do.
        stop: asked by `check`.
    """

    def __init__(self, total: int, show_progress: bool | None = None, stop: Callable[[], bool] | None = None) -> None:
        shown = show_progress if show_progress is not None else (total >= _PROGRESS_FROM and sys.stderr.isatty())
        self._bar = tqdm(total=total, desc="scoring", unit="pair", disable=not shown, smoothing=0.1)
        self._stop = stop

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def check(self) -> None:
        """Raises `RankingCancelled` if the caller wants to stop."""
        if self._stop is not None and self._stop():
            raise RankingCancelled("scoring was cancelled")

    def add(self, count: int) -> None:
        """So many more pairs are done."""
        self._bar.update(count)


def run_batches(
    lengths: Sequence[int], batch_tokens: int, run: Callable[[Sequence[int]], None], progress: Progress
) -> None:
    """Calls `run` on every planned batch of task indexes, which keeps their results.

    Parameters:
        lengths: tokens of each task, the measure of the budget.

    Raises `ResourceError` when memory runs out.
    """
    for batch in plan_batches(lengths, batch_tokens):
        progress.check()
        with memory_errors(batch_tokens, lengths[batch[0]]):
            run(batch)
        progress.add(len(batch))


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


# ---- the plain forward pass ----------------------------------------------------------------------------------------


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument called `name`."""
    return name in inspect.signature(function).parameters


def logits_at(backbone: Any, input_ids: torch.Tensor, keep: torch.Tensor, behind: int = 0) -> torch.Tensor:
    """A decoder's logits `(kept positions, vocabulary)`; the output head runs on these positions only, where it can.

    Padding must stand on the right, where causal attention never looks: no mask is needed, and the fastest attention
    kernel applies.

    Args:
        input_ids: `(rows, length)`.
        keep: Boolean `(rows, length)`, the positions wanted.
        behind: Tokens of a text behind the last of them.
    """
    check_attention(backbone)
    if has_rope_limits(backbone.config.get_text_config()):
        return _rows_alone(backbone, input_ids, keep, behind)
    return _logits_at(backbone, input_ids, keep)


def _logits_at(backbone: Any, input_ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    if accepts(backbone.forward, "logits_to_keep"):
        kept: torch.Tensor = backbone(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits
        return kept
    logits: torch.Tensor = backbone(input_ids=input_ids, use_cache=False).logits[keep]
    return logits


def _rows_alone(backbone: Any, input_ids: torch.Tensor, keep: torch.Tensor, behind: int) -> torch.Tensor:
    """Row by row: transformers would turn the keys of all rows as the longest one's length says."""
    parts = []
    for row, wanted in zip(input_ids, keep, strict=True):
        for _, module in rotary_modules(backbone):
            if hasattr(module, "original_max_seq_len"):  # or the longest text so far would count
                module.inv_freq = getattr(module, ORIGINAL_FREQUENCIES).clone()
                module.max_seq_len_cached = module.original_max_seq_len
        end = min(int(wanted.nonzero().max()) + 1 + behind, len(row))
        parts.append(_logits_at(backbone, row[None, :end], wanted[None, :end]))
    return torch.cat(parts)


# ---- scores ---------------------------------------------------------------------------------------------------------


@dataclass
class RankingOutput(ModelOutput):
    """Output of a ranking model's `forward`.

    Attributes:
        loss: scalar, listwise softmax cross-entropy over `scores`; only where `labels` were given.
        scores: `(pairs,)` float32, higher is more relevant.
        token_log_probs: `(query tokens,)` float32, row by row (`TSARankModel` only).
    """

    loss: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    token_log_probs: torch.Tensor | None = None


def group_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of groups of equal size: scores `(groups × size,)`, labels `(groups,)` the index of the
    relevant document in each group (TSARankLLM, Eq. 3 with S = score and tau = 1)."""
    if labels.ndim != 1 or scores.numel() % max(labels.numel(), 1):
        raise InputError(
            f"{scores.numel()} scores cannot be split into {labels.numel()} groups of equal size; labels must "
            "hold one index of the relevant document per group"
        )
    return torch.nn.functional.cross_entropy(scores.view(labels.numel(), -1), labels)


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
    return made


# ---- rotary embeddings whose frequencies depend on the length -------------------------------------------------------

ORIGINAL_FREQUENCIES = "original_inv_freq"


def rope_limit(config: Any, parameters: dict[str, Any]) -> tuple[int, bool] | None:
    """Up to which length the frequencies stay the same, and whether they depend on the length beyond; if they do."""
    kind = parameters.get("rope_type") or ""
    if kind == "longrope":
        return parameters["original_max_position_embeddings"], False
    return (config.max_position_embeddings, True) if "dynamic" in kind else None


def rope_limits(config: Any) -> list[tuple[int, bool]]:
    """`rope_limit` of each kind of layer, where there are any."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    return [limit for part in parts if (limit := rope_limit(config, part)) is not None]


def has_rope_limits(config: Any) -> bool:
    """Whether a model (by the configuration of its decoder) has frequencies that depend on the length of a text."""
    return bool(rope_limits(config))


def rotary_modules(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of the rotary embeddings of transformers that `rope_limits` is about."""
    config: Any = model.config
    if not has_rope_limits(config.get_text_config()):
        return []
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "rope_type")
        and any(buffer.endswith(ORIGINAL_FREQUENCIES) for buffer, _ in module.named_buffers())
    ]


def readable_length(backbone: Any) -> int | None:
    """How many tokens a text may have, `None` if the configuration does not say.

    Where a model's own code turns keys in a way that is not known here, no longer ones than are right in every batch.
    """
    config = backbone.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    context = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    if not has_rope_limits(config) or rotary_modules(backbone):
        return context
    return min(limit for limit, _ in rope_limits(config))


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


def refuse_encoder(backbone: Any) -> None:
    """Raises `ModelError` for a decoder's place taken by an encoder, such as a masked language model."""
    config = backbone.config.get_text_config()
    sees_ahead = (
        getattr(config, "is_causal", None) is False
        or getattr(config, "use_bidirectional_attention", None) is True
        or (
            config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
            and not getattr(config, "is_decoder", False)
            and not getattr(config, "causal", False)  # XLM's word for it
        )
        or (
            getattr(config, "is_decoder", None) is False  # GPT-NeoX says so too
            and any(getattr(module, "is_causal", None) is False for module in backbone.modules())
        )
    )
    if sees_ahead and not backbone.config.is_encoder_decoder:
        raise ModelError(
            f"this {config.model_type} model is an encoder, in which every token sees those behind it; a ranker is "
            "made of a decoder-only model or an encoder-decoder"
        )


def attention_choice(auto_class: Any, config: Any, requested: str | None) -> dict[str, str]:
    """The wrapper's attention choice for the backbone, where the backbone supports it."""
    if requested in (None, "eager"):
        return {} if requested is None else {"attn_implementation": "eager"}
    model_class = auto_class._model_mapping.get(type(config), None)
    model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
    if requested == "sdpa" and not getattr(model_class, "_supports_sdpa", False):
        return {}
    return {"attn_implementation": requested}

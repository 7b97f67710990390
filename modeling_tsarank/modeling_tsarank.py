"""TSARankLLM: a decoder-only language model as a reranker, scored by the likelihood of the query given a document."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from .document_blocks import GROUPED
from .document_states import common_length
from .modeling_ranker import RankerModel, RankingOutput, accepts, group_loss
from .ranking_engine import align_left, gathered_log_probs, pad_right, plan_batches, run_batches
from .ranking_errors import InputError, ModelError
from .ranking_options import QueryLikelihoodOptions
from .ranking_states import KeptStates, longest_prompt, partial_attention, suffix
from .ranking_text import EncodedPair, QueryLikelihoodEncoder, clean_query, document_text


# Query tokens of one packed row: enough to keep matrix multiplications busy, few enough that the pairs of tokens which
# the mask hides cost little.
PACKED_TOKENS = 384


class TSARankModel(KeptStates, RankerModel):
    """Query likelihood on any decoder-only backbone (TSARankLLM, Eq. 1).

    score(q, d) = mean or sum over j of log p(q_j | P(d), q_<j), with P(d) = "Document: {d} Query:".

    Because the document is read before the query, what it costs depends on the document alone: pairs that share a
    document are scored together, and the document is read once.
    """

    options_class = QueryLikelihoodOptions
    options: QueryLikelihoodOptions

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"TSARankModel needs a decoder-only model, but {config.model_type} is an encoder-decoder; "
                "use TwolarModel"
            )
        return AutoModelForCausalLM

    def _make_encoder(self) -> QueryLikelihoodEncoder:
        context = getattr(self.config, "max_position_embeddings", None)
        return QueryLikelihoodEncoder(self.tokenizer, self.options, context)

    # ---- tensors in, scores out: what training calls ---------------------------------------------

    def query_logits(
        self,
        input_ids: torch.Tensor,
        query_mask: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Logits that predict the query's tokens, and no others.

        Parameters:
            input_ids: `(pairs, length)` prompt and query, padded on either side.
            query_mask: `(pairs, length)`, true at the query's tokens. A query never begins at position 0.
            attention_mask: `(pairs, length)`, 1 at real tokens; `None` where nothing is padded on the left.

        Returns:
            `(query tokens, vocabulary)`, row by row; entry k predicts `input_ids[query_mask][k]`.
        """
        query_mask = query_mask.bool()
        if bool(query_mask[:, 0].any()):
            raise InputError("a query token stands at position 0, where no token before it could predict it")
        if attention_mask is not None:
            input_ids, query_mask = align_left(attention_mask, input_ids, query_mask)
        keep = torch.zeros_like(query_mask)
        keep[:, :-1] = query_mask[:, 1:]
        return self._logits_at(input_ids, keep, **kwargs)

    def _logits_at(self, input_ids: torch.Tensor, keep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The backbone's logits `(kept positions, vocabulary)`; the output head runs on the kept positions only.

        Padding must stand on the right, where causal attention never looks: no mask is needed, and the fastest
        attention kernel applies.
        """
        inputs: dict[str, Any] = {"use_cache": False, **kwargs, "input_ids": input_ids}
        if accepts(self.backbone.forward, "logits_to_keep"):
            return self.backbone(**inputs, logits_to_keep=keep).logits
        return self.backbone(**inputs).logits[keep]

    def pool(self, token_log_probs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Scores `(pairs,)` from the query tokens' log-probabilities, row by row; `counts` `(pairs,)` tokens each."""
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        total = torch.zeros(len(counts), dtype=token_log_probs.dtype, device=token_log_probs.device)
        total = total.index_add(0, rows, token_log_probs)
        return total / counts if self.options.aggregation == "mean" else total

    def forward(
        self,
        input_ids: torch.Tensor,
        query_mask: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RankingOutput:
        """Scores of tokenized pairs.

        Parameters:
            input_ids, query_mask, attention_mask: as in `query_logits`; left and right padding give the same scores.
            labels: `(groups,)`, the index of the relevant document within each group of equal size.

        Returns:
            `RankingOutput` with `scores` `(pairs,)` float32, `token_log_probs` and, given labels, `loss`.
        """
        logits = self.query_logits(input_ids, query_mask, attention_mask, **kwargs)
        mask = query_mask.bool()
        token_log_probs = gathered_log_probs(logits, input_ids[mask])
        scores = self.pool(token_log_probs, mask.sum(-1))
        loss = None if labels is None else group_loss(scores, labels)
        return RankingOutput(loss=loss, scores=scores, token_log_probs=token_log_probs)

    # ---- text in, scores out ---------------------------------------------------------------------

    def token_log_probs(self, query: str, document: Any) -> list[tuple[str, float]]:
        """Why a document got its score: each query token and log p(token | document, tokens before it)."""
        pair = self.encoder.pairs([(clean_query(query), document_text(document))])[0]
        with torch.inference_mode():
            values = self._cold_batch([pair])[0]
        return list(zip(self.tokenizer.batch_decode([[i] for i in pair.query]), values.tolist(), strict=True))

    def _score_pairs(
        self,
        pairs: Sequence[EncodedPair],
        batch_tokens: int,
        show: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[float]:
        """Documents asked once go through in padded batches; the others are read once, their queries behind them."""
        if self.document_store is not None:
            found = self._score_from_states(pairs, batch_tokens, show, stop)
            return [self._pool_one(values) for values in found]
        packed = self._packs_queries()
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            # A long document is cut for each query's length: a packed row reads its longest cut for all of them.
            groups[pair.source if packed and len(pair.source) else pair.prompt].append(i)
        tasks = list(groups.values())
        scores = [math.nan] * len(pairs)

        def keep(indexes: Sequence[int], token_log_probs: Sequence[torch.Tensor]) -> None:
            for i, values in zip(indexes, token_log_probs, strict=True):
                scores[i] = self._pool_one(values)

        def run(batch: Sequence[int]) -> None:
            single = [tasks[t][0] for t in batch if len(tasks[t]) == 1]
            if single:
                keep(single, self._cold_batch([pairs[i] for i in single]))
            for t in batch:
                if len(tasks[t]) > 1:
                    keep(tasks[t], self._shared_document([pairs[i] for i in tasks[t]], batch_tokens))

        lengths = [_task_tokens([pairs[i] for i in task]) for task in tasks]
        self.last_stats["tokens"] = sum(lengths)
        run_batches(lengths, batch_tokens, run, [len(task) for task in tasks], show, stop)
        return scores

    def _pool_one(self, token_log_probs: torch.Tensor) -> float:
        total = token_log_probs.double().sum().item()
        return total / len(token_log_probs) if self.options.aggregation == "mean" else total

    def _cold_batch(self, pairs: Sequence[EncodedPair]) -> list[torch.Tensor]:
        """Log-probabilities of each pair's query tokens, prompt and query read together in one padded batch.

        The last query token predicts nothing and is not read.
        """
        ids, _ = pad_right([pair.prompt + pair.query[:-1] for pair in pairs], self.pad_id, self.device)
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for row, pair in enumerate(pairs):
            keep[row, len(pair.prompt) - 1 : _input_length(pair)] = True
        return self._split(self._logits_at(ids, keep.to(self.device)), pairs)

    def _shared_document(self, pairs: Sequence[EncodedPair], batch_tokens: int) -> list[torch.Tensor]:
        """The same for pairs of one document: its keys and values are computed once and read by every query."""
        read = longest_prompt(pairs)[:-1]
        ids = torch.tensor([read], device=self.device)
        cache = DynamicCache(config=self.backbone.config)
        if read:
            # The head runs on one position, not on the document: its logits are not wanted.
            keep = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
            keep[:, -1] = True
            self._logits_at(ids, keep, past_key_values=cache, use_cache=True)
        return self._shared_states(pairs, cache, [common_length(read, pair.prompt) for pair in pairs], batch_tokens)

    def _shared_states(
        self, pairs: Sequence[EncodedPair], cache: DynamicCache, seen: Sequence[int], batch_tokens: int
    ) -> list[torch.Tensor]:
        """All queries behind the states of their document, of which each pair uses those of the first `seen` tokens.

        Where queries are not packed, `seen` must be the same for all of them.
        """
        packed = self._packs_queries()
        lengths = [len(suffix(pair, count)) for pair, count in zip(pairs, seen, strict=True)]
        if not packed:
            # A padded row holds its own copy of the document's states, so the budget bounds them too.
            lengths = [max(length, seen[0] // 4) for length in lengths]
        limit = min(batch_tokens, PACKED_TOKENS) if packed else batch_tokens
        results: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
        parts = plan_batches(lengths, limit, padded=not packed)
        for part in parts:
            chosen = [pairs[i] for i in part]
            if packed:
                logits = self._packed_suffixes(chosen, cache, [seen[i] for i in part])
                if part is not parts[-1]:
                    cache.crop(-sum(lengths[i] for i in part))  # reading appended these
            else:
                states = cache if part is parts[-1] else copy.deepcopy(cache)
                logits = self._padded_suffixes(chosen, states, seen[0])
            for i, values in zip(part, self._split(logits, chosen), strict=True):
                results[i] = values
        return results

    def _packs_queries(self) -> bool:
        """Whether one row may hold many queries: positions come from `position_ids`, the mask is taken as it is."""
        config = self.config.get_text_config()
        return (
            bool(getattr(config, "rope_parameters", None))
            and not partial_attention(config)
            # Another thread may just be ranking from kept states, which takes the same masks.
            and self.backbone.config._attn_implementation in ("sdpa", "eager", GROUPED)
            and accepts(self.backbone.forward, "position_ids")
        )

    def _packed_suffixes(self, pairs: Sequence[EncodedPair], cache: DynamicCache, seen: Sequence[int]) -> torch.Tensor:
        """All queries in one row: each sees its part of the document, and itself. No padding, no copy of a state."""
        rows = [suffix(pair, count) for pair, count in zip(pairs, seen, strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = torch.tensor([[token for row in rows for token in row]], device=self.device)
        owner = torch.repeat_interleave(torch.arange(len(rows), device=self.device), lengths)
        place = torch.arange(len(owner), device=self.device)
        within = place - (lengths.cumsum(0) - lengths)[owner]
        first = torch.tensor(seen, device=self.device)[owner]
        prompt_left = torch.tensor([len(p.prompt) - 1 - n for p, n in zip(pairs, seen, strict=True)])
        document = torch.arange(cache.get_seq_length(), device=self.device)[None] < first[:, None]
        visible = torch.cat([document, (owner[:, None] == owner) & (place[:, None] >= place)], dim=1)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~visible, torch.finfo(self.dtype).min)
        return self._logits_at(
            ids,
            (within >= prompt_left.to(self.device)[owner])[None],
            attention_mask=mask[None, None],
            position_ids=(first + within)[None],
            past_key_values=cache,
            use_cache=True,
        )

    def _padded_suffixes(self, pairs: Sequence[EncodedPair], cache: DynamicCache, seen: int) -> torch.Tensor:
        cache.batch_repeat_interleave(len(pairs))
        ids, mask = pad_right([suffix(pair, seen) for pair in pairs], self.pad_id, self.device)
        mask[:, : len(pairs[0].prompt) - 1 - seen] = 0
        return self._logits_at(ids, mask.bool(), past_key_values=cache, use_cache=True)

    def _split(self, logits: torch.Tensor, pairs: Sequence[EncodedPair]) -> list[torch.Tensor]:
        targets = torch.tensor([token for pair in pairs for token in pair.query], device=logits.device)
        return list(gathered_log_probs(logits, targets).cpu().split([len(pair.query) for pair in pairs]))


def _input_length(pair: EncodedPair) -> int:
    return len(pair.prompt) + len(pair.query) - 1


def _task_tokens(pairs: Sequence[EncodedPair]) -> int:
    """What pairs of one document read: its longest prompt once, and behind it each query and what its cut changes."""
    longest = longest_prompt(pairs)
    return len(longest) + sum(
        len(pair.prompt) + len(pair.query) - 1 - common_length(longest[:-1], pair.prompt) for pair in pairs
    )

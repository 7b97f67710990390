"""TSARankLLM: a decoder-only language model as a reranker, scored by the likelihood of the query given a document."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM

from .document_blocks import Workspace
from .document_states import common_length
from .modeling_ranker import RankerModel, RankingOutput, group_loss
from .query_head import log_probs_of
from .ranking_calls import snapshot
from .ranking_engine import align_left, gathered_log_probs, pad_right, plan_batches, run_batches
from .ranking_errors import InputError, ModelError
from .ranking_options import Explanation, QueryLikelihoodOptions
from .ranking_states import KeptStates
from .ranking_text import EncodedPair, QueryLikelihoodEncoder, clean_query, document_text
from .rope_regimes import readable_length
from .shared_prefixes import longest_prompt, partial_attention, shares_prefixes


# Documents that at most so many pairs share are read together, and their queries in rows of their own; with more
# queries, one document's are enough for a pass, and packed they need no copies of its states.
FEW_PAIRS = 16
# Where documents are shared, this many passes' worth of them are planned together.
SHARED_PASSES = 4


class TSARankModel(KeptStates, RankerModel):
    """Query likelihood on any decoder-only backbone (TSARankLLM, Eq. 1).

    score(q, d) = mean or sum over j of log p(q_j | P(d), q_<j), with P(d) = "Document: {d} Query:".

    Because the document is read before the query, what it costs depends on the document alone: pairs that share a
    document are scored together, and the document is read once.
    """

    options_class = QueryLikelihoodOptions
    title = "Query likelihood"
    description = "A reranker that scores a document by how likely the query is after it (query likelihood)."
    tag = "query-likelihood"
    default_for = ("decoder-only",)
    scores_query_tokens = True
    limits = (
        "Scores of different queries are comparable only roughly: a query of rare words has low scores throughout.",
        "A long document that merely contains the query's words may score high; relevance is not truth.",
    )
    # The published training and evaluation code glues the query's ids to the prompt's, with no space between.
    published: ClassVar[dict[str, dict[str, Any]]] = {"zyznull/RankingGPT-*": {"prompt_style": "separate"}}
    citation = """\
@inproceedings{zhang2024twostage,
  title = {A Two-Stage Adaptation of Large Language Models for Text Ranking},
  author = {Zhang, Longhui and Zhang, Yanzhao and Long, Dingkun and Xie, Pengjun and Zhang, Meishan and Zhang, Min},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2024},
  year = {2024},
  url = {https://arxiv.org/abs/2311.16720}
}"""
    options: QueryLikelihoodOptions

    @classmethod
    def scoring(cls, options: QueryLikelihoodOptions) -> str:
        return (
            f"The score of a document is the {options.aggregation} of the logarithmic probabilities that the model "
            "gives to the query's tokens after it has read the document: "
            f"score(q, d) = {options.aggregation} over j of log p(q_j | prompt(d), q_<j) (TSARankLLM, Eq. 1). Scores "
            "are negative, higher is more relevant."
        )

    @classmethod
    def document_first(cls, options: QueryLikelihoodOptions, decoder_only: bool) -> bool:
        return True

    @classmethod
    def backbone_class(cls, config: Any) -> Any:
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"TSARankModel needs a decoder-only model, but {config.model_type} is an encoder-decoder; "
                "use TwolarModel"
            )
        return AutoModelForCausalLM

    def _make_encoder(self) -> QueryLikelihoodEncoder:
        context = readable_length(self.backbone)
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
        call = snapshot(self)
        pair = call.encoder.pairs([(clean_query(query), document_text(document))])[0]
        with torch.inference_mode():
            values = call._cold_batch([pair])[0]
        return list(zip(call.tokenizer.batch_decode([[i] for i in pair.query]), values.tolist(), strict=True))

    def explanation(self, query: str, document: Any) -> Explanation:
        parts = tuple(self.token_log_probs(query, document))
        mean = self.options.aggregation == "mean"
        score = math.fsum(value for _, value in parts) / (len(parts) if mean else 1)
        return Explanation(parts, "log-probability", score, f"{self.options.aggregation} of the values")

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
        packed, full = self._packs_queries(), not partial_attention(self.backbone)
        invariant = self._is_invariant()
        limit = len(pairs) if invariant else FEW_PAIRS
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            # A long document is cut for each query's length: a packed row reads its longest cut for all of them.
            document = pair.source if packed and len(pair.source) else pair.prompt
            groups[document, self._pair_regime(pair)].append(i)
        tasks = list(groups.values()) if shares_prefixes(self.backbone) else [[i] for i in range(len(pairs))]
        scores = [math.nan] * len(pairs)

        def keep(indexes: Sequence[int], token_log_probs: Sequence[torch.Tensor]) -> None:
            for i, values in zip(indexes, token_log_probs, strict=True):
                scores[i] = self._pool_one(values)

        def shares(members: Sequence[int]) -> bool:
            """Whether every pair of a task begins with something that the others begin with too."""
            longest = longest_prompt([pairs[i] for i in members])
            return all(common_length(longest[:-1], pairs[i].prompt) for i in members)

        def run(batch: Sequence[int]) -> None:
            few = [t for t in batch if full and 1 < len(tasks[t]) <= limit and shares(tasks[t])]
            single = [i for t in batch if t not in few and (len(tasks[t]) == 1 or invariant) for i in tasks[t]]
            for part in plan_batches([_input_length(pairs[i]) for i in single], batch_tokens):
                cold = [single[i] for i in part]
                keep(cold, self._cold_batch([pairs[i] for i in cold]))
            if few:
                groups = [[pairs[i] for i in tasks[t]] for t in few]
                for t, values in zip(few, self._few_suffixes(groups, batch_tokens), strict=True):
                    keep(tasks[t], values)
            for t in batch:
                if len(tasks[t]) > 1 and t not in few and not invariant:
                    chosen = [pairs[i] for i in tasks[t]]
                    keep(tasks[t], self._shared_prefix(chosen, longest_prompt(chosen)[:-1], batch_tokens))

        lengths = [_task_tokens([pairs[i] for i in task]) for task in tasks]
        self.last_stats["tokens"] = sum(lengths)
        # Each part of a pass keeps to the budget; of more documents' queries, more have about the same length.
        at_once = SHARED_PASSES * batch_tokens if any(len(task) > 1 for task in tasks) else batch_tokens
        run_batches(lengths, at_once, run, [len(task) for task in tasks], show, stop)
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
        return self._values_at(pairs, ids, keep.to(self.device))

    def _values_at(
        self, pairs: Sequence[EncodedPair], input_ids: torch.Tensor, keep: torch.Tensor, **kwargs: Any
    ) -> list[torch.Tensor]:
        targets = torch.tensor([token for pair in pairs for token in pair.query], device=self.device)
        # Taken away for the time being, so that another thread makes one of its own.
        workspace = self.between_calls.pop("head", None) or Workspace()
        with log_probs_of(self.backbone, targets, workspace) as asked:
            found = self._logits_at(input_ids, keep, **kwargs)
        self.between_calls["head"] = workspace
        values = found.squeeze(-1) if asked.answered else gathered_log_probs(found, targets)
        return list(values.cpu().split([len(pair.query) for pair in pairs]))


def _input_length(pair: EncodedPair) -> int:
    return len(pair.prompt) + len(pair.query) - 1


def _task_tokens(pairs: Sequence[EncodedPair]) -> int:
    """What pairs of one document read: its longest prompt once, and behind it each query and what its cut changes."""
    longest = longest_prompt(pairs)
    return len(longest) + sum(
        len(pair.prompt) + len(pair.query) - 1 - common_length(longest[:-1], pair.prompt) for pair in pairs
    )

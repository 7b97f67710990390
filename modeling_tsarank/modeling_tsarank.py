"""TSARankLLM: a decoder-only language model as a reranker, scored by the likelihood of the query given a document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM

from .modeling_ranker import RankerModel
from .ranking_engine import Task, logits_at, readable_length
from .ranking_errors import InputError, ModelError
from .ranking_options import Explanation, RankingOptions, check_choice, check_template
from .ranking_scoring import RankingOutput, align_left, gathered_log_probs
from .ranking_text import EncodedPair, Prompt, TextEncoder, split_around
from .user_text import Span


PROMPT_STYLES = ("separate_space", "separate", "joined")
AGGREGATIONS = ("mean", "sum")


@dataclass(frozen=True)
class QueryLikelihoodOptions(RankingOptions):
    """Options of `TSARankModel` (TSARankLLM, Eq. 1): the likelihood of the query given the document.

    Parameters:
        document_template (`str`): the prompt P(d) of Eq. 1.
        prompt_style (`str`): how the query follows the prompt.
            `separate_space` (default): the query is tokenized separately with one leading space and appended as ids,
            so that no token crosses the boundary; `separate`: without the space, as in the published training code;
            `joined`: prompt, space and query are tokenized as one string, as in the published model card.
        aggregation (`str`): `mean` (default) of the query tokens' log-probabilities, comparable across queries, or
            their `sum` (the logarithm of Eq. 1's product). Both give the same order of a query's documents.
    """

    family: ClassVar[str] = "query_likelihood"

    document_template: str = "Document: {document} Query:"
    prompt_style: str = "separate_space"
    aggregation: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template("document_template", self.document_template, ("{document}",))
        check_choice("prompt_style", self.prompt_style, PROMPT_STYLES)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)


class QueryLikelihoodEncoder(TextEncoder):
    """Token ids for `TSARankModel`: the document's prompt, then the query's own ids (TSARankLLM, Eq. 1)."""

    options: QueryLikelihoodOptions

    def __init__(self, tokenizer: Any, options: QueryLikelihoodOptions, context: int | None = None) -> None:
        super().__init__(tokenizer, options, context)
        self.head, self.tail = options.document_template.split("{document}")
        self._leave_room(len(self.leading) + len(self._ids(self.head + self.tail)))
        # A tokenizer that adds a space before every text (SentencePiece's dummy prefix) would turn one leading space
        # into two.
        own_space = self.tokenizer.convert_ids_to_tokens(self._ids("a"))[0].startswith("▁")
        self._query_start = " " if options.prompt_style == "separate_space" and not own_space else ""

    def prompts(self, documents: Sequence[str]) -> list[Prompt]:
        """One untruncated `Prompt` per document text. Empty documents are allowed: the prompt's middle is empty."""
        texts = [self.head + document + self.tail for document in documents]
        spans = [(len(self.head), len(self.head) + len(document)) for document in documents]
        result = []
        for span, (ids, offsets) in zip(spans, self._user_text.encode(texts, [[one] for one in spans]), strict=True):
            prompt = split_around(ids, offsets, *span)
            result.append(Prompt((*self.leading, *prompt.before), prompt.document, prompt.after))
        return result

    def queries(self, queries: Sequence[str]) -> list[list[int]]:
        """Token ids of each query alone (styles `separate_space` and `separate`), truncated to `max_query_length`."""
        return [ids[: self.options.max_query_length] for ids in self._whole_queries(queries)]

    def _whole_queries(self, queries: Sequence[str]) -> list[list[int]]:
        texts = [self._query_start + query for query in queries]
        return [ids for ids, _ in self._user_text.encode(texts, [[(0, len(text))] for text in texts])]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """(query, document) texts, already cleaned, as ids. Equal documents share one tokenization."""
        if self.options.prompt_style == "joined":
            return self._joined(pairs)
        documents = {document: i for i, document in enumerate(dict.fromkeys(d for _, d in pairs))}
        queries = {query: i for i, query in enumerate(dict.fromkeys(q for q, _ in pairs))}
        prompts, uncut = self.prompts(list(documents)), self._whole_queries(list(queries))
        query_ids = [tuple(ids[: self.options.max_query_length]) for ids in uncut]
        whole = [tuple(prompt.cut(len(prompt))) for prompt in prompts]
        result = []
        for query, document in pairs:
            ids, at = query_ids[queries[query]], documents[document]
            room = self.options.max_length - len(ids)
            fits = len(whole[at]) <= room
            prompt = whole[at] if fits else tuple(prompts[at].cut(room))
            left = len(uncut[queries[query]]) - len(ids)
            result.append(EncodedPair(prompt, ids, prompts[at], len(whole[at]) - len(prompt), left))
        return result

    def _joined(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        texts = [f"{self.head}{document}{self.tail} {query}" for query, document in pairs]
        start = len(self.head)
        spans: list[list[Span]] = [
            [(start, start + len(document)), (len(text) - len(query), len(text))]
            for text, (query, document) in zip(texts, pairs, strict=True)
        ]
        result = []
        for (_, document), (ids, offsets) in zip(pairs, self._user_text.encode(texts, spans), strict=True):
            border = start + len(document) + len(self.tail)
            at = next((i for i, (_, end) in enumerate(offsets) if end > border), len(ids))
            query = ids[at:][: self.options.max_query_length]
            prompt = split_around(ids[:at], offsets[:at], start, start + len(document))
            prompt = Prompt((*self.leading, *prompt.before), prompt.document, prompt.after)
            cut = tuple(prompt.cut(self.options.max_length - len(query)))
            left = len(ids) - at - len(query)
            result.append(EncodedPair(cut, tuple(query), prompt, len(prompt) - len(cut), left))
        return result


class TSARankModel(RankerModel):
    """Query likelihood on any decoder-only backbone (TSARankLLM, Eq. 1).

    score(q, d) = mean or sum over j of log p(q_j | P(d), q_<j), with P(d) = "Document: {d} Query:".

    Because the document precedes the query, its states depend on the document alone: pairs that share a document are
    scored together, and the document is encoded once.
    """

    options_class = QueryLikelihoodOptions
    title = "Query likelihood"
    description = "A reranker that scores a document by the likelihood of the query, given the document."
    tag = "query-likelihood"
    default_for = ("decoder-only",)
    scores_query_tokens = True
    limits = (
        "Scores of different queries are comparable only roughly: a query of rare words has low scores throughout.",
        "A long document that merely contains the query's words may score high; relevance is not truth.",
    )
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
            "gives to the query's tokens, given the document: "
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
        return QueryLikelihoodEncoder(self.tokenizer, self.options, readable_length(self.backbone))

    # ---- tensors in, scores out: what training calls ---------------------------------------------

    def query_logits(
        self,
        input_ids: torch.Tensor,
        query_mask: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits that predict the query's tokens, and no others.

        Parameters:
            input_ids: `(pairs, length)` prompt and query, padded on either side.
            query_mask: `(pairs, length)`, true at the query's tokens. A query never begins at position 0.
            attention_mask: `(pairs, length)`, 1 at real tokens; `None` if there is no left padding.

        Returns:
            `(query tokens, vocabulary)`, row by row; entry k predicts `input_ids[query_mask][k]`.
        """
        query_mask = query_mask.bool()
        if bool(query_mask[:, 0].any()):
            raise InputError("a query token is at position 0, where no previous token can predict it")
        if attention_mask is not None:
            input_ids, query_mask = align_left(attention_mask, input_ids, query_mask)
        keep = torch.zeros_like(query_mask)
        keep[:, :-1] = query_mask[:, 1:]
        return logits_at(self.backbone, input_ids, keep, behind=1)

    def pool_tokens(self, token_log_probs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Scores `(pairs,)` from the query tokens' log-probabilities, row by row; `counts` `(pairs,)` tokens each."""
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        total = torch.zeros(len(counts), dtype=token_log_probs.dtype, device=token_log_probs.device)
        total = total.index_add(0, rows, token_log_probs)
        return total / counts if self.options.aggregation == "mean" else total

    def forward(  # type: ignore[override]  # the tensors of a batch of this family
        self,
        input_ids: torch.Tensor,
        query_mask: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> RankingOutput:
        """Scores of tokenized pairs and their `token_log_probs`; arguments as in `query_logits`."""
        logits = self.query_logits(input_ids, query_mask, attention_mask)
        mask = query_mask.bool()
        token_log_probs = gathered_log_probs(logits, input_ids[mask])
        scores = self.pool_tokens(token_log_probs, mask.sum(-1))
        return RankingOutput(scores=scores, token_log_probs=token_log_probs)

    # ---- text in, scores out ---------------------------------------------------------------------

    def token_log_probs(self, query: str, document: Any) -> list[tuple[str, float]]:
        """Why a document got its score: each query token and log p(token | document, tokens before it)."""
        call, pair, values = self._values_of(query, document)
        return list(zip(call.tokenizer.batch_decode([[i] for i in pair.query]), values[:, 0].tolist(), strict=True))

    def explain(self, query: str, document: Any) -> Explanation:
        parts = tuple(self.token_log_probs(query, document))
        mean = self.options.aggregation == "mean"
        score = math.fsum(value for _, value in parts) / (len(parts) if mean else 1)
        return Explanation(parts, "log-probability", score, f"{self.options.aggregation} of the values")

    def _task(self, pair: EncodedPair) -> Task:
        # The last query token predicts nothing and is left out.
        ids = pair.prompt + pair.query[:-1]
        at = tuple(range(len(pair.prompt) - 1, len(ids)))
        return Task(ids, at, pair.query, self._cacheable(pair), len(ids) + 1)

    def _read_out(self) -> tuple[str, Sequence[int]]:
        return "token_log_probs", ()

    def _pool_values(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        flat = torch.cat(list(values))[:, 0]
        counts = torch.tensor([len(one) for one in values], device=flat.device)
        # Not every accelerator has float64.
        return self.pool_tokens(flat.double() if flat.device.type == "cpu" else flat, counts).float()

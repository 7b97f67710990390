"""Quality of generated queries: the share of document words and of stop words in them (TSARankLLM, Table 7).

The paper's authors judged 500 samples by hand, counting words that mean the same as a word of the document. Here a
word is document-relevant when it is no stop word and its Snowball stem occurs in the document. That is repeatable, and
another count than the paper's: synonyms are missed, and a word that happens to occur counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.types import Collection
from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.ranking_options import QueryLikelihoodOptions, whole_number


STOP_WORD_LIST = "bm25s STOPWORDS_EN_PLUS (NLTK's English list, 179 words)"

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class WordShares:
    """Shares over all words of all queries of one source.

    Attributes:
        document: Share of document words, between 0 and 1.
        stop: Share of stop words, between 0 and 1.
        words: Number of words counted.
        queries: Number of queries, empty ones included.
    """

    document: float
    stop: float
    words: int
    queries: int


def word_shares(queries: Sequence[str], documents: Sequence[str]) -> WordShares:
    """Counts document words and stop words.

    Args:
        queries: Shape `(n,)`.
        documents: The document of each query, shape `(n,)`.

    Raises:
        InputError: not one document for each query, or not a single word in the queries.
        ResourceError: PyStemmer or bm25s is missing.
    """
    if len(queries) != len(documents):
        raise InputError(f"{len(queries)} queries and {len(documents)} documents do not correspond")
    stemmer, stop_words = _language()
    words = in_document = stops = 0
    for query, document in zip(queries, documents, strict=True):
        stems = set(stemmer.stemWords(_WORD.findall(document.casefold())))
        for word in _WORD.findall(query.casefold()):
            words += 1
            if word in stop_words:
                stops += 1
            elif stemmer.stemWord(word) in stems:
                in_document += 1
    if not words:
        raise InputError(f"there is no word in the {len(queries)} queries")
    return WordShares(in_document / words, stops / words, words, len(queries))


@lru_cache(maxsize=1)
def _language() -> tuple[Any, frozenset[str]]:
    stemmer = require("Stemmer", extra="eval", purpose="Counting document words")
    stop_words = require("bm25s.stopwords", extra="eval", purpose="Counting stop words")
    return stemmer.Stemmer("english"), frozenset(stop_words.STOPWORDS_EN_PLUS)


def sample_relevant(collection: Collection, count: int = 500, seed: int = 0) -> list[tuple[str, str]]:
    """Draws (query, document) texts of judged relevant pairs, at most one for a document.

    Raises:
        InputError: `count` below 1, or no relevant document in the collection.
    """
    count = whole_number(count, "the number of documents")
    pairs: dict[str, str] = {}
    for query_id in collection.judged_queries():
        for document_id, grade in collection.qrels[query_id].items():
            if grade > 0 and document_id in collection.documents:
                pairs.setdefault(document_id, query_id)
    if not pairs:
        raise InputError(f"{collection.name} has no relevant document in its corpus")
    chosen = random.Random(seed).sample(sorted(pairs), min(count, len(pairs)))
    return [
        (collection.queries[pairs[document_id]], collection.documents[document_id].full_text) for document_id in chosen
    ]


def generate_queries(
    model: Any, documents: Sequence[str], max_new_tokens: int = 32, batch_size: int = 8, show: bool = False
) -> list[str]:
    """The query that a model finds most likely for each document, word by word (greedy), cut at its first line break.

    Args:
        model: A `TSARankModel`: the prompt is its own, without the query.
        documents: Texts.
        max_new_tokens: Longest query in tokens.
        batch_size: Documents generated for together.
        show: Whether to show a progress bar.

    Returns:
        One query a document; empty where the model ended at once.

    Raises:
        ModelError: the model does not score by query likelihood, so it has no such prompt.
    """
    import torch

    if getattr(getattr(model, "options", None), "family", None) != QueryLikelihoodOptions.family:
        raise ModelError(
            f"{type(model).__name__} does not generate queries; give a query-likelihood model (TSARankModel)"
        )
    limit = model.options.max_length - max_new_tokens
    prompts = [prompt.cut(limit) for prompt in model.encoder.prompts(documents)]
    # By length, so that hardly anything is padded.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    queries = [""] * len(prompts)
    with tqdm(total=len(prompts), desc="generating queries", unit="query", disable=None if show else True) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(prompts[index]) for index in batch)
            # Padding stands on the left, so that generation goes on right behind every prompt.
            ids = torch.tensor([[model.pad_id] * (longest - len(prompts[i])) + prompts[i] for i in batch])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            output = model.backbone.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=model.pad_id,
            )
            texts = model.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                queries[index] = next(iter(text.strip().splitlines()), "").strip()
            bar.update(len(batch))
    return queries

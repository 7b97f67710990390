"""Published checkpoints by name: the prompt, answer tokens and limits used in their training.

Sources: the model cards and code published by the models' authors. A row has the differences from the family's
defaults. Names are matched as file name patterns, case-insensitively; the first match counts.
"""

from __future__ import annotations

from typing import Any


_QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_MXBAI_V2 = [
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n",
    "{instruction}query: {query}",
    "\n",
    "document: {document}",
    "\n",
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:",
    "<|im_end|>\n<|im_start|>assistant\n",
]
_BGE_GEMMA = [
    "A: {query}",
    "\n",
    "B: {document}",
    "\n",
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'.",
]
_CTXL_V2 = (
    "Check whether a given document contains information helpful to answer the query.\n"
    "<Document> {document}\n<Query> {query}{instruction} ??"
)
_ZERANK = "<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{document}<|im_end|>\n<|im_start|>assistant\n"
_MONOT5 = {"strategy": "softmax", "max_length": 512}
_LONG = {"max_length": 8192, "max_query_length": 2048}
_YES_NO = {"true_text": "yes", "false_text": "no"}

# For every row: prompts and answer tokens are tested against the authors' code, but without the weights, so that no
# score was compared with a published one (`pytest -m hub` does that).
UNVERIFIED = "unverified: prompt and answer tokens are tested, published scores were not reproduced"

# The probability that authors publish with a score, as slope and intercept of a logistic function: sigmoid(x / 5) of
# zerank, and P(yes) against P(no) of Qwen3-Reranker, the logistic function of the difference of their logits.
PROBABILITIES: dict[str, tuple[float, float]] = {
    "Qwen/Qwen3-Reranker-*": (1.0, 0.0),
    "zeroentropy/zerank-*": (0.2, 0.0),
}

# Rerankers whose scoring no family implements.
UNSUPPORTED = {
    "BAAI/bge-reranker-v2-minicpm-layerwise": "its score comes from a chosen layer, by its own code",
    "BAAI/bge-reranker-v2.5-gemma2-lightweight": "it compresses tokens between layers, by its own code",
}

# By family, then by the pattern of a Hub id. A cross-encoder's own files have most of its settings.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "cross_encoder": {
        # The published code and model card end the input without the EOS described in the paper.
        "castorini/rankllama-*": {
            "query_template": "query: {query}",
            "document_template": "document: {document}",
            "max_length": 512,
            "max_query_length": 32,
        },
    },
    # The published training and evaluation code appends the query's ids to the prompt's, without a space.
    "query_likelihood": {"zyznull/RankingGPT-*": {"prompt_style": "separate"}},
    "true_false_logits": {
        # The published TWOLAR code ends its template with a space.
        "Dundalia/TWOLAR-*": {"template": "Query: {query} Document: {document} Relevant: "},
        "castorini/monot5-*": _MONOT5,
        "unicamp-dl/InRanker-*": _MONOT5,
        # The multilingual ones use answer words that are one token in mT5's vocabulary.
        "unicamp-dl/mt5-base-*": {**_MONOT5, **_YES_NO},
        "Soyoung97/RankT5-*": {
            "template": "Query: {query} Document: {document}",
            "strategy": "single_token",
            "max_length": 512,
        },
        "Qwen/Qwen3-Reranker-*": {
            "template": _QWEN3_RERANKER,
            **_YES_NO,
            "instruction": "Given a web search query, retrieve relevant passages that answer the query",
            **_LONG,
        },
        "mixedbread-ai/mxbai-rerank-*-v2": {
            "template": _MXBAI_V2,
            "true_text": "1",
            "false_text": "0",
            "instruction_template": "instruction: {instruction}\n",
            **_LONG,
        },
        "BAAI/bge-reranker-v2-gemma": {
            "template": _BGE_GEMMA,
            "strategy": "single_token",
            "score_text": "Yes",
            "answer_prefix": "",
            "add_bos": True,
            "max_length": 512,
        },
        "zeroentropy/zerank-*": {
            "template": _ZERANK,
            "strategy": "single_token",
            "score_text": "Yes",
            **_LONG,
        },
        # Document-first: document states can be cached.
        "ContextualAI/ctxl-rerank-v2-instruct-multilingual-*": {
            "template": _CTXL_V2,
            "strategy": "single_token",
            "score_text": 0,
            "instruction_template": " {instruction}",
            **_LONG,
        },
    },
}

"""What the cards say of the model families: how they score, what they cannot do, whom to cite, how to use them."""

from __future__ import annotations

from typing import Any

from modeling_tsarank.hub_cards.model_facts import PLAIN, QUERY_LIKELIHOOD, TRUE_FALSE


QUERY = "how long does a flea live"
DOCUMENTS = ("An adult flea lives for two to three months.", "The flea market opens every Sunday at eight.")

SCORING = {
    QUERY_LIKELIHOOD: (
        "The score of a document is the {aggregation} of the logarithmic probabilities that the model gives to the "
        "query's tokens after it has read the document: score(q, d) = {aggregation} over j of log p(q_j | prompt(d), "
        "q_<j) (TSARankLLM, Eq. 1). Scores are negative, higher is more relevant. The document is read before the "
        "query, so several queries may share the work of reading it."
    ),
    TRUE_FALSE: (
        "Query and document are read together, and the score is read off the logits of one position (TWOLAR, section "
        "3.1). The strategy is `{strategy}`: {strategy_text}. Higher is more relevant."
    ),
    PLAIN: (
        "As a ranker, the model scores a document by the mean of the logarithmic probabilities of the query's tokens "
        "after the prompt `Document: … Query:` (TSARankLLM, Eq. 1)."
    ),
}
STRATEGIES = {
    "difference": "the logit of the answer “{true_text}” minus that of “{false_text}”, unbounded",
    "softmax": "the probability of “{true_text}” of the two answers, between 0 and 1",
    "single_token": "the logit of the otherwise unused token {score_text}, unbounded",
}

STAGES = {
    "cpt": (
        "Continual pre-training",
        "The model learned to predict a query from its document, over weak pairs (TSARankLLM, Eq. 2).",
    ),
    "sft": (
        "Fine-tuning",
        "A ranking loss over one positive and several negatives, mixed with next-token prediction and a penalty on "
        "the difference to the starting model (TSARankLLM, Eq. 5).",
    ),
    "distill": (
        "Distillation",
        "The model learned a teacher's order or scores of the documents of each query (TWOLAR, section 3.2).",
    ),
}

_LIMITS = {
    QUERY_LIKELIHOOD: [
        "Scores of different queries are comparable only roughly: a query of rare words has low scores throughout.",
        "A long document that merely contains the query's words may score high; relevance is not truth.",
    ],
    TRUE_FALSE: [
        "Scores are not probabilities unless the strategy is `softmax`, and even then they are not calibrated.",
    ],
    PLAIN: ["The model continues text and was not trained to follow instructions or to refuse harmful ones."],
}

TSARANK_CITATION = """\
@inproceedings{zhang2024twostage,
  title = {A Two-Stage Adaptation of Large Language Models for Text Ranking},
  author = {Zhang, Longhui and Zhang, Yanzhao and Long, Dingkun and Xie, Pengjun and Zhang, Meishan and Zhang, Min},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2024},
  year = {2024},
  url = {https://arxiv.org/abs/2311.16720}
}"""
TWOLAR_CITATION = """\
@inproceedings{baldelli2024twolar,
  title = {{TWOLAR}: a {TWO}-step {LLM}-Augmented distillation method for passage Reranking},
  author = {Baldelli, Davide and Jiang, Junfeng and Aizawa, Akiko and Torroni, Paolo},
  booktitle = {Advances in Information Retrieval (ECIR)},
  year = {2024},
  url = {https://arxiv.org/abs/2403.17759}
}"""


def citations(kind: str) -> list[str]:
    """BibTeX of the paper whose method the model uses."""
    return [TWOLAR_CITATION if kind == TRUE_FALSE else TSARANK_CITATION]


def scoring(kind: str, options: dict[str, Any], decoder_only: bool) -> str:
    """How the score comes about, in words."""
    strategy = STRATEGIES.get(str(options.get("strategy")), "").format(**options) if kind == TRUE_FALSE else ""
    text = SCORING[kind].format(**{**options, "strategy_text": strategy}) if kind != PLAIN else SCORING[kind]
    if kind == TRUE_FALSE and _reads_documents_once(options, decoder_only):
        text += " The document is read before the query, so a decoder-only model can share that work between queries."
    return text


def _reads_documents_once(options: dict[str, Any], decoder_only: bool) -> bool:
    template = str(options.get("template", ""))
    return decoder_only and 0 <= template.find("{document}") < template.find("{query}")


def limits(kind: str, options: dict[str, Any], decoder_only: bool) -> list[str]:
    """What the model cannot do."""
    found = []
    if options:
        found.append(
            f"Query and document together have at most {options['max_length']} tokens, the query "
            f"{options['max_query_length']}. Of a longer document only the beginning is read."
        )
    if kind == TRUE_FALSE and not _reads_documents_once(options, decoder_only):
        found.append("Every pair is read as a whole: the cost grows with the number of queries times documents.")
    found += _LIMITS[kind]
    found.append("What the base model knows, and its biases, are in the scores; languages it knows badly rank badly.")
    return found


# ---- snippets --------------------------------------------------------------------------------------


def snippets(
    repo_id: str,
    revision: str,
    kind: str,
    adapter: bool,
    base: tuple[str, str] | None,
    auto: str,
    options: dict[str, Any],
) -> list[str]:
    """Four programs that use the published model. Each runs as it stands; every Hub id has a revision.

    Args:
        repo_id, revision: the publication and its tag.
        kind: the model's family.
        adapter: whether it is an adapter of `base`, given as Hub id and commit.
        auto: the auto class that reads the plain model.
        options: the ranking options, for an adapter.
    """
    texts = "\n".join([f'query = "{QUERY}"', "documents = [", *(f'    "{text}",' for text in DOCUMENTS), "]"])
    pinned = f'"{repo_id}", revision="{revision}"'
    family = "TwolarModel" if kind == TRUE_FALSE else "TSARankModel"
    if kind == PLAIN:
        return _plain_snippets(pinned, texts, family)
    if adapter:
        assert base is not None
        return _adapter_snippets(pinned, texts, family, base, auto, options)
    return [
        f"from transformers import AutoModel\n\n"
        f"model = AutoModel.from_pretrained({pinned}, trust_remote_code=True)\n{texts}\n"
        f'for row in model.rank(query, documents, return_documents=True):\n    print(row["score"], row["text"])',
        f"from transformers import pipeline\n\n"
        f'ranker = pipeline("text-ranking", model={pinned}, trust_remote_code=True)\n{texts}\n'
        f'print(ranker({{"query": query, "documents": documents}}, top_k=2))',
        f"from sentence_transformers import CrossEncoder\n\n"
        f"model = CrossEncoder({pinned}, trust_remote_code=True)\n{texts}\n"
        f"print(model.rank(query, documents, return_documents=True))",
        f"from modeling_tsarank import load_ranker\n\n"
        f"model = load_ranker({pinned})\n{texts}\n"
        f"print(model.predict([(query, document) for document in documents]))",
    ]


def _plain_snippets(pinned: str, texts: str, family: str) -> list[str]:
    ranker = f"model = {family}.from_backbone({pinned})"
    return [
        f"from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({pinned})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({pinned})\n"
        f'inputs = tokenizer("Document: {DOCUMENTS[0]} Query:", return_tensors="pt")\n'
        f"output = model.generate(**inputs, max_new_tokens=16)\n"
        f'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        f"from modeling_tsarank import {family}\n\n{ranker}\n{texts}\n"
        f"print(model.rank(query, documents, return_documents=True))",
        f"from modeling_tsarank import {family}\nfrom transformers import pipeline\n\n{ranker}\n"
        f'model.save_pretrained("ranker")\n{texts}\n'
        f'ranker = pipeline("text-ranking", model="ranker", trust_remote_code=True)\n'
        f'print(ranker({{"query": query, "documents": documents}}))',
        f"from modeling_tsarank import {family}\nfrom sentence_transformers import CrossEncoder\n\n{ranker}\n"
        f'model.save_pretrained("ranker")\n{texts}\n'
        f'print(CrossEncoder("ranker", trust_remote_code=True).rank(query, documents))',
    ]


def _adapter_snippets(
    pinned: str, texts: str, family: str, base: tuple[str, str], auto: str, options: dict[str, Any]
) -> list[str]:
    changed = {key: value for key, value in options.items() if key != "family" and value is not None}
    arguments = "".join(f"    {key}={value!r},\n" for key, value in changed.items())
    load = (
        f'base = {auto}.from_pretrained("{base[0]}", revision="{base[1]}")\n'
        f"backbone = PeftModel.from_pretrained(base, {pinned})"
    )
    ranker = (
        f"{load}.merge_and_unload()\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{base[0]}", revision="{base[1]}")\n'
        f"model = {family}.from_backbone(\n    backbone,\n    tokenizer=tokenizer,\n{arguments})"
    )
    imports = f"from modeling_tsarank import {family}\nfrom peft import PeftModel\n"
    return [
        f"{imports}from transformers import {auto}, AutoTokenizer\n\n{ranker}\n{texts}\n"
        f"print(model.rank(query, documents, return_documents=True))",
        f"{imports}from transformers import {auto}, AutoTokenizer, pipeline\n\n{ranker}\n"
        f'model.save_pretrained("merged")\n{texts}\n'
        f'ranker = pipeline("text-ranking", model="merged", trust_remote_code=True)\n'
        f'print(ranker({{"query": query, "documents": documents}}))',
        f"{imports}from sentence_transformers import CrossEncoder\n"
        f"from transformers import {auto}, AutoTokenizer\n\n{ranker}\n"
        f'model.save_pretrained("merged")\n{texts}\n'
        f'print(CrossEncoder("merged", trust_remote_code=True).rank(query, documents))',
        f"from peft import PeftModel\nfrom transformers import {auto}\n\n{load}\n"
        f"print(backbone.active_adapters, sum(parameter.numel() for parameter in backbone.parameters()))",
    ]

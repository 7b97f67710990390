"""What the cards say of a model: how it scores, what it cannot do, how to use it."""

from __future__ import annotations

from typing import Any

from modeling_tsarank.hub_cards.model_facts import ModelFacts
from modeling_tsarank.modeling_ranker import RankerModel


QUERY = "how long does a flea live"
DOCUMENTS = ("An adult flea lives for two to three months.", "The flea market opens every Sunday at eight.")

PLAIN_LIMIT = "The model continues text and was not trained to follow instructions or to refuse harmful ones."
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


def scoring(facts: ModelFacts) -> str:
    """How the score comes about, in words."""
    text = facts.ranks_as.scoring(facts.ranking)
    if _reads_documents_once(facts):
        text += " The document is read before the query, so several queries may share that work."
    return text if facts.family is not None else f"As a ranker: {text[0].lower()}{text[1:]}"


def _reads_documents_once(facts: ModelFacts) -> bool:
    return facts.ranks_as.document_first(facts.ranking, not facts.encoder_decoder)


def limits(facts: ModelFacts) -> list[str]:
    """What the model cannot do."""
    found = []
    if facts.options:
        found.append(
            f"Query and document together have at most {facts.ranking.max_length} tokens, the query "
            f"{facts.ranking.max_query_length}. Of a longer document only the beginning is read."
        )
    if not _reads_documents_once(facts):
        found.append("Every pair is read as a whole: the cost grows with the number of queries times documents.")
    found += facts.family.limits if facts.family is not None else [PLAIN_LIMIT]
    found.append("What the base model knows, and its biases, are in the scores; languages it knows badly rank badly.")
    return found


# ---- snippets --------------------------------------------------------------------------------------


def snippets(repo_id: str, revision: str, facts: ModelFacts, base: tuple[str, str] | None, auto: str) -> list[str]:
    """Four programs that use the published model. Each runs as it stands; every Hub id has a revision.

    Args:
        repo_id, revision: the publication and its tag.
        facts: what is known of the model.
        base: the base of an adapter, as Hub id and commit.
        auto: the auto class that reads the plain model.
    """
    texts = "\n".join([f'query = "{QUERY}"', "documents = [", *(f'    "{text}",' for text in DOCUMENTS), "]"])
    pinned = f'"{repo_id}", revision="{revision}"'
    if facts.family is None:
        return _plain_snippets(pinned, texts, facts.ranks_as)
    if facts.adapter:
        assert base is not None
        return _adapter_snippets(pinned, texts, facts.family, base, auto, facts.options)
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


def _import(family: type[RankerModel]) -> str:
    """The line that imports a family: from the top of this package, or from the module that defines it."""
    package = family.__module__.partition(".")[0]
    own = package == __name__.partition(".")[0]
    return f"from {package if own else family.__module__} import {family.__name__}"


def _plain_snippets(pinned: str, texts: str, family: type[RankerModel]) -> list[str]:
    ranker = f"model = {family.__name__}.from_backbone({pinned})"
    return [
        f"from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({pinned})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({pinned})\n"
        f'inputs = tokenizer("Document: {DOCUMENTS[0]} Query:", return_tensors="pt")\n'
        f"output = model.generate(**inputs, max_new_tokens=16)\n"
        f'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        f"{_import(family)}\n\n{ranker}\n{texts}\nprint(model.rank(query, documents, return_documents=True))",
        f"{_import(family)}\nfrom transformers import pipeline\n\n{ranker}\n"
        f'model.save_pretrained("ranker")\n{texts}\n'
        f'ranker = pipeline("text-ranking", model="ranker", trust_remote_code=True)\n'
        f'print(ranker({{"query": query, "documents": documents}}))',
        f"{_import(family)}\nfrom sentence_transformers import CrossEncoder\n\n{ranker}\n"
        f'model.save_pretrained("ranker")\n{texts}\n'
        f'print(CrossEncoder("ranker", trust_remote_code=True).rank(query, documents))',
    ]


def _adapter_snippets(
    pinned: str, texts: str, family: type[RankerModel], base: tuple[str, str], auto: str, options: dict[str, Any]
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
        f"model = {family.__name__}.from_backbone(\n    backbone,\n    tokenizer=tokenizer,\n{arguments})"
    )
    imports = f"{_import(family)}\nfrom peft import PeftModel\n"
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

"""Model cards: the Hub's metadata, and the values for the template model_card.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from modeling_tsarank import __version__
from modeling_tsarank.eval.reports import measure_title
from modeling_tsarank.files.templates import render
from modeling_tsarank.hub_cards.model_facts import ModelFacts
from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.models.families import CLASSIFIER
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.scores import RAW_SCORES
from modeling_tsarank.trainers.data.provenance import leakage_text, teachers_text
from modeling_tsarank.trainers.losses import OBJECTIVES


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_BEIR = {
    *("arguana", "climate-fever", "cqadupstack", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus"),
    *("nq", "quora", "robust04", "scidocs", "scifact", "signal1m", "trec-covid", "trec-news", "webis-touche2020"),
}
_SHOWN_MEASURES = 3


_PLAIN_CLASSES = {
    "decoder-only": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    CLASSIFIER: "AutoModelForSequenceClassification",
}


def render_model_card(
    facts: ModelFacts,
    repo_id: str,
    tag: str,
    license_id: str,
    languages: Sequence[str] = (),
    license_name: str | None = None,
) -> str:
    """The card of a model.

    Args:
        facts: The known facts about it.
        repo_id: Its repository.
        tag: The revision used in the snippets.
        license_id: The Hub's identifier of the licence.
        languages: ISO codes of its languages, if the user gives any.
        license_name: Name of a licence that has no identifier (`license_id` is "other").

    Raises:
        InputError: A fact that the card needs is missing.
    """
    if facts.adapter and (facts.base is None or not facts.base.on_hub or not facts.base.revision):
        raise InputError("an adapter needs a pinned base model on the Hub: --base-model ID --base-revision COMMIT")
    family, ranking, evaluations = facts.ranks_as, facts.ranking, facts.evaluations
    unused = family.unused_options(ranking)
    changed = {key: value for key, value in facts.options.items() if key != "family" and value is not None}
    name = repo_id.rpartition("/")[2]
    # The first measures that all results have; results fused with a first stage are not the model's own.
    reranked = [one["measures"]["reranked"] for one in evaluations]
    common = [name for name in (reranked or [{}])[0] if all(name in one for one in reranked)]
    return render(
        __package__,
        "model_card.md",
        metadata=f"---\n{_metadata(facts, name, license_id, license_name, languages).to_yaml()}\n---",
        name=name,
        facts=facts,
        base=facts.base,
        adapter=facts.adapter,
        plain=facts.family is None,
        dtype=_DTYPES.get(facts.dtype, facts.dtype),
        license=license_name or license_id,
        plain_class=_PLAIN_CLASSES[facts.kind],
        family=family,
        import_family=_import(family),
        pinned=f'"{repo_id}", revision="{tag}"',
        pinned_base=f'"{facts.base.name}", revision="{facts.base.revision}"' if facts.base else "",
        changed=[(key, repr(value)) for key, value in changed.items()],
        ranking=ranking,
        # Several queries can share the computation for a document that comes before the query in the prompt.
        document_first=family.document_first(ranking, not facts.encoder_decoder),
        scoring=family.scoring(ranking),
        raw_scores=RAW_SCORES,
        options=[(key, _shown(value)) for key, value in facts.options.items() if key not in unused],
        is_taught=_is_taught,
        # A teacher's training data count as the ranker's: they are listed next to the results.
        taught=list(
            dict.fromkeys(teachers_text(one["data"].get("teachers")) for one in facts.stages if _is_taught(one))
        ),
        versions=lambda record: ", ".join(
            f"{name} {version}" for name, version in record["versions"].items() if version
        ),
        while_training=_while_training,
        shown=_shown,
        teachers_text=teachers_text,
        leakage_text=leakage_text,
        measures=common[:_SHOWN_MEASURES],
        measure_title=measure_title,
        processors=list(dict.fromkeys(one["cpu"] for one in evaluations)),
        dtypes=sorted({dtype for one in evaluations for dtype in one["dtypes"]}),
        tsarank_version=__version__,
    )


# ---- metadata --------------------------------------------------------------------------------------


def _metadata(
    facts: ModelFacts, name: str, license_id: str, license_name: str | None, languages: Sequence[str]
) -> ModelCardData:
    tags = ["reranking", "tsarank", "continual-pretraining" if facts.family is None else facts.family.tag]
    if facts.family is not None:
        tags = ["text-ranking", *tags, *([] if facts.adapter else ["sentence-transformers", "cross-encoder"])]
    data: dict[str, Any] = {
        "license": license_id,
        "license_name": license_name,
        "language": list(languages) or None,
        "library_name": "peft" if facts.adapter else "transformers",
        "pipeline_tag": "text-generation" if facts.family is None else "text-ranking",
        "tags": tags,
        "datasets": _datasets(facts) or None,
        "metrics": ["ndcg"] if facts.evaluations else None,
    }
    if facts.base is not None and facts.base.on_hub:
        data["base_model"] = facts.base.name
        data["base_model_relation"] = "adapter" if facts.adapter else "finetune"
    results = [result for evaluation in facts.evaluations for result in _eval_results(evaluation)]
    if results:
        data |= {"model_name": name, "eval_results": results}
    return ModelCardData(**{key: value for key, value in data.items() if value is not None})


def _datasets(facts: ModelFacts) -> list[str]:
    """Training data that are datasets on the Hub."""
    given = [record["data"] for record in facts.stages]
    found = [data["name"] for data in given if data["name"] and data["fingerprint"] is None]
    return [name for name in dict.fromkeys(found) if name.count("/") == 1]


def _eval_results(values: dict[str, Any]) -> list[EvalResult]:
    name = str(values["dataset"])
    on_hub = name.lower().split("/")[0] in _BEIR
    return [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_type=f"BeIR/{name.lower().split('/')[0]}" if on_hub else name,
            dataset_name=name,
            dataset_split=values["split"],
            dataset_args={key: values[key] for key in ("first_stage", "top_k", "queries")},
            metric_type=measure.replace("@", "_at_"),
            metric_name=measure_title(measure),
            metric_value=round(value, 5),
        )
        for measure, value in values["measures"]["reranked"].items()
    ]


# ---- texts -----------------------------------------------------------------------------------------


def _import(family: type[RankerModel]) -> str:
    """The import line of a family: from the top of this package, or from the module that defines it."""
    package = family.__module__.partition(".")[0]
    own = package == __name__.partition(".")[0]
    return f"from {package if own else family.__module__} import {family.__name__}"


def _shown(value: Any) -> str:
    if value is None:
        return "as the tokenizer does"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _while_training(record: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the measures recorded during training, and their values."""
    rows = [entry for entry in record["evaluations"] if "step" in entry]
    names = {name for row in rows for name in row if name.startswith("eval_")}
    return sorted(name for name in names if not name.endswith(("_runtime", "_per_second"))), rows


def _is_taught(record: dict[str, Any]) -> bool:
    """Whether a teacher's rankings or scores were used in the training, as far as that is recorded."""
    teachers, settings = record["data"].get("teachers"), record["settings"]
    if record["kind"] != "sft":
        return record["kind"] == "distill" and teachers != []
    # Fine-tuning records `teacher_weight`, or the objectives that replace its weighted loss.
    names = [str(one).partition(":")[0] for one in settings.get("objectives") or [settings.get("loss")]]
    objectives = [OBJECTIVES[name] for name in names if name in OBJECTIVES]
    asked = float(settings.get("teacher_weight") or 0) > 0 or any("teacher_scores" in one.needs for one in objectives)
    return teachers != [] if asked else bool(teachers) and any(one.takes("ranks") for one in objectives)

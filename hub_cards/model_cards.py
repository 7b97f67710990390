"""Model cards: a README.md out of what was recorded, with the metadata that the Hub shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from modeling_tsarank import __version__
from modeling_tsarank.files.templates import cell, duration, line, number, render
from modeling_tsarank.hub_cards.model_facts import BaseModel, Evaluation, ModelFacts
from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.provenance import leakage_text, teachers_text
from modeling_tsarank.trainers.losses import OBJECTIVES


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_BEIR = {
    *("arguana", "climate-fever", "cqadupstack", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus"),
    *("nq", "quora", "robust04", "scidocs", "scifact", "signal1m", "trec-covid", "trec-news", "webis-touche2020"),
}
_SHOWN_MEASURES = 3
_PLAIN_LIMIT = "The model continues text and was not trained to follow instructions or to refuse harmful ones."
_STAGES = {
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
        facts: what is known of it.
        repo_id: where it is published.
        tag: the revision that the snippets name.
        license_id: the Hub's identifier of the licence.
        languages: ISO codes of the languages it is for, if the user names any.
        license_name: of a licence that has no identifier (`license_id` is "other").

    Raises:
        InputError: a fact that the card cannot do without is missing.
    """
    if facts.adapter and (facts.base is None or not facts.base.on_hub or not facts.base.revision):
        raise InputError("an adapter needs its base model on the Hub, pinned: --base-model ID --base-revision COMMIT")
    auto, family, ranking = _auto_class(facts), facts.ranks_as, facts.ranking
    unused = family.unused_options(ranking)
    # Several queries may share the work of reading a document that comes before the query.
    document_first = family.document_first(ranking, not facts.encoder_decoder)
    changed = {key: value for key, value in facts.options.items() if key != "family" and value is not None}
    name = repo_id.rpartition("/")[2]
    license_text = license_name or license_id
    return render(
        __package__,
        "model_card.md",
        metadata=f"---\n{_metadata(facts, name, license_id, license_name, languages).to_yaml()}\n---",
        name=name,
        summary=_summary(facts),
        parameters=facts.parameters,
        dtype=_DTYPES.get(facts.dtype, facts.dtype),
        backbone=_backbone(facts),
        base_text=_base_text(facts.base),
        license=line(license_text),
        license_text=_license_text(license_text, facts.base),
        plain=facts.family is None,
        adapter=facts.adapter,
        plain_class=auto,
        family=family.__name__,
        import_family=_import(family),
        pinned=f'"{repo_id}", revision="{tag}"',
        pinned_base=f'"{facts.base.name}", revision="{facts.base.revision}"' if facts.base else "",
        changed=[(key, repr(value)) for key, value in changed.items()],
        ranking=ranking,
        document_first=document_first,
        scoring=_scoring(facts, document_first),
        options=[(key, _shown(value)) for key, value in facts.options.items() if key not in unused],
        stages=[_stage(record) for record in facts.stages],
        measures=_measures(facts.evaluations),
        evaluations=[_evaluation_row(evaluation, _measures(facts.evaluations)) for evaluation in facts.evaluations],
        evaluation_notes=[*_evaluation_notes(facts.evaluations), *_teacher_notes(facts)],
        limits=facts.family.limits if facts.family is not None else [_PLAIN_LIMIT],
        citation=family.citation,
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
    found = []
    for record in facts.stages:
        data = record["data"]
        if data["name"] and data["name"].count("/") == 1 and data["fingerprint"] is None:
            found.append(data["name"])
    return list(dict.fromkeys(found))


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    values, name = evaluation.values, evaluation.dataset
    on_hub = name.lower().split("/")[0] in _BEIR
    return [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_type=f"BeIR/{name.lower().split('/')[0]}" if on_hub else name,
            dataset_name=name,
            dataset_split=values["split"],
            dataset_args={
                "first_stage": values["first_stage"],
                "top_k": values["top_k"],
                "queries": values["queries"],
            },
            metric_type=measure.replace("@", "_at_"),
            metric_name=_title(measure),
            metric_value=round(value, 5),
        )
        for measure, value in evaluation.reranked.items()
    ]


# ---- texts -----------------------------------------------------------------------------------------


def _import(family: type[RankerModel]) -> str:
    """The line that imports a family: from the top of this package, or from the module that defines it."""
    package = family.__module__.partition(".")[0]
    own = package == __name__.partition(".")[0]
    return f"from {package if own else family.__module__} import {family.__name__}"


def _scoring(facts: ModelFacts, document_first: bool) -> str:
    """How the score comes about, in words."""
    text = facts.ranks_as.scoring(facts.ranking)
    if document_first:
        text += " The document is read before the query, so several queries may share that work."
    return text if facts.family is not None else f"As a ranker: {text[0].lower()}{text[1:]}"


def _summary(facts: ModelFacts) -> str:
    what = "A causal language model, pre-trained further on pairs of documents and queries, to be made a reranker"
    if facts.family is not None:
        what = facts.family.description.rstrip(".")
    steps = [_STAGES[record["kind"]][0].lower() for record in facts.stages]
    made = f", made by {' and '.join(steps)}" if steps else ""
    return f"{what}{made}."


def _auto_class(facts: ModelFacts) -> str:
    return "AutoModelForSeq2SeqLM" if facts.encoder_decoder else "AutoModelForCausalLM"


def _backbone(facts: ModelFacts) -> str:
    kind = "encoder-decoder" if facts.encoder_decoder else "decoder-only"
    if facts.adapter:
        return f"{kind}, with a LoRA adapter of rank {facts.config['r']}"
    return f"{cell(facts.config['model_type'])}, {kind}"


def _base_text(base: BaseModel | None) -> str:
    if base is None:
        return "not recorded"
    pinned = f" at {cell(base.revision)}" if base.revision else ""
    if base.on_hub:
        return f"[{line(base.name)}](https://huggingface.co/{base.name}){pinned}"
    return f"{cell(base.name)}, a local model"


def _license_text(license_text: str, base: BaseModel | None) -> str:
    text = "The license is not known." if license_text == "unknown" else f"The weights are under {line(license_text)}."
    if base is not None and base.license and base.license != license_text:
        text += f" The base model is under {line(base.license)}, whose terms go on to hold for what is made of it."
    return f"{text} The modeling files are part of tsarank and under the Apache License 2.0."


def _shown(value: Any) -> str:
    if value is None:
        return "as the tokenizer does"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- training --------------------------------------------------------------------------------------


def _stage(record: dict[str, Any]) -> dict[str, Any]:
    title, text = _STAGES[record["kind"]]
    rows = [entry for entry in record["evaluations"] if "step" in entry]
    measures = sorted({name for row in rows for name in row if _is_measure(name)})
    return {
        "title": title,
        "text": text,
        "facts": _training_facts(record),
        "settings": [(key, _shown(value)) for key, value in record["settings"].items()],
        "measures": [line(name.removeprefix("eval_")) for name in measures],
        "evaluations": [
            {"step": row["step"], "values": [number(row[name]) if name in row else "-" for name in measures]}
            for row in rows
        ],
    }


def _is_measure(name: str) -> bool:
    speed = ("_runtime", "_per_second")
    return name.startswith("eval_") and not name.endswith(speed)


def _training_facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    data, trained, hardware = record["data"], record["trained"], record["hardware"]
    source = cell(data["name"]) if data["name"] else "given in memory"
    details = [cell(data[key]) for key in ("config", "split", "fingerprint") if data[key]]
    part = {"lora": "a LoRA adapter", "top_blocks": "the top transformer blocks", "full": "everything"}[
        trained["part"]
    ]
    found = [
        ("Data", ", ".join([source, *details])),
        ("Trained", f"{part}: {number(trained['parameters'])} of {number(trained['of'])} parameters"),
        ("Hardware", f"{hardware['processes']} x {line(hardware['device'])}"),
    ]
    if data["rows"] is not None:
        found.insert(1, ("Rows", number(data["rows"])))
    if _is_taught(record):
        found.append(("Teacher", line(teachers_text(data.get("teachers")))))
    found.append(("Leakage check", line(leakage_text(data.get("leakage")))))
    steps = f"{record['steps']:,} steps"
    found.append(("Length", f"{steps}, {record['epochs']:g} epochs" if record["epochs"] is not None else steps))
    if record["seconds"] is not None:
        resumed = record["resumed_from_step"]
        note = f" (since it was resumed at step {resumed:,})" if resumed is not None else ""
        found.append(("Time", f"{duration(record['seconds'])}{note}"))
    if record["final_loss"] is not None:
        found.append(("Last logged loss", number(float(record["final_loss"]))))
    if record["best_checkpoint_metric"]:
        found.append(("Kept", f"the checkpoint that was best in {cell(record['best_checkpoint_metric'])}"))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return [*found, ("Finished", record["finished"]), ("Software", line(versions))]


def _is_taught(record: dict[str, Any]) -> bool:
    """Whether a teacher's orders or scores went into the training, as far as that is recorded."""
    teachers, settings = record["data"].get("teachers"), record["settings"]
    if record["kind"] != "sft":
        return record["kind"] == "distill" and teachers != []
    # Fine-tuning records `teacher_weight`, or the objectives that were given instead of its mixture.
    names = [str(one).partition(":")[0] for one in settings.get("objectives") or [settings.get("loss")]]
    objectives = [OBJECTIVES[name] for name in names if name in OBJECTIVES]
    asked = float(settings.get("teacher_weight") or 0) > 0 or any("teacher_scores" in one.needs for one in objectives)
    return teachers != [] if asked else bool(teachers) and any(one.takes("ranks") for one in objectives)


def _teacher_notes(facts: ModelFacts) -> list[str]:
    """A teacher's own training data are the ranker's as well: it stands where results are."""
    taught = [record["data"].get("teachers") for record in facts.stages if _is_taught(record)]
    texts = dict.fromkeys(line(teachers_text(teachers)) for teachers in taught)
    return [
        f"Learned from a teacher: {text}. Results on what a teacher was trained on are not zero-shot."
        for text in texts
    ]


# ---- evaluation ------------------------------------------------------------------------------------


def _title(measure: str) -> str:
    name, at, cutoff = measure.partition("@")
    titles = {"ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "recall": "Recall", "p": "P"}
    return f"{titles.get(name, name)}{at}{cutoff}"


def _measures(evaluations: Sequence[Evaluation]) -> list[str]:
    """The measures that the table shows: the first ones that every result has."""
    if not evaluations:
        return []
    common = [name for name in evaluations[0].reranked if all(name in other.reranked for other in evaluations)]
    return [_title(name) for name in common[:_SHOWN_MEASURES]]


def _evaluation_row(evaluation: Evaluation, titles: Sequence[str]) -> dict[str, Any]:
    values = evaluation.values
    names = [name for name in evaluation.reranked if _title(name) in titles]
    pairs = [(evaluation.first_stage[name], evaluation.reranked[name]) for name in names]
    return {
        "dataset": evaluation.dataset,
        "split": values["split"],
        "queries": values["queries"],
        "first_stage": values["first_stage"],
        "top_k": values["top_k"],
        "values": [f"{value:.4f}" for pair in pairs for value in pair],
    }


def _evaluation_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    notes = []
    dtypes = sorted({dtype for evaluation in evaluations for dtype in evaluation.values["dtypes"]})
    for evaluation in evaluations:
        values, name = evaluation.values, line(evaluation.dataset)
        if len(dtypes) > 1:
            notes.append(f"{name}: read in {line(', '.join(values['dtypes']))}.")
        if values.get("limit_queries"):
            notes.append(f"{name}: only the first {values['limit_queries']} judged queries.")
        if values.get("fusion"):
            weight = values["fusion"]["weight"]
            measure, value = next(iter(values["measures"]["fused"].items()))
            mixed = f"mixed with the first stage's scores, whose weight is {weight:g}"
            notes.append(f"{name}: {_title(measure)} is {value:.4f} {mixed}.")
        lengths = [f"{key} {values[key]}" for key in ("max_length", "max_query_length") if values.get(key)]
        if lengths:
            notes.append(f"{name}: {line(' and '.join(lengths))}, other than the model's own.")
    if evaluations:
        values = evaluations[0].values
        on = f"{values.get('processes', 1)} x {line(', '.join(values['devices']))} ({line(values['cpu'])})"
        notes.append(f"Measured in {', '.join(dtypes)} on {on}, tsarank {values['versions']['tsarank']}.")
    return notes

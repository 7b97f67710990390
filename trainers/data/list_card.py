"""The card of a set of distillation lists: a README.md out of what `provenance.json` recorded, and nothing else."""

from __future__ import annotations

from typing import Any

from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.provenance import leakage_text, teachers_text


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render_lists_card(record: dict[str, Any], title: str | None = None, license_id: str | None = None) -> str:
    """The card of a provenance record of the kind `distillation_lists`, YAML metadata included.

    Raises:
        InputError: a part of the record is missing.
    """
    try:
        parts = [
            f"---\n{_metadata(record, title or record['title'], license_id)}\n---",
            f"# {_line(title or record['title'])}",
            _summary(record),
            "## Columns\n\n" + _COLUMNS,
            "## Where the lists come from\n\n" + _sources(record),
            "## Leakage check\n\n" + _leakage(record),
            "## The teacher\n\n" + _teacher(record),
            "## What became of every list\n\n" + _outcomes(record),
            "## Limits\n\n" + _limits(record),
        ]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"the provenance record is not whole: {error!r}; make the dataset again") from error
    return "\n\n".join(parts) + "\n"


_COLUMNS = """\
- `query_id`, `query`: the query.
- `documents`: list of `{docid, title, text}`, in the first stage's order.
- `permutation`: indexes of `documents` from 0, in the teacher's order, best first.
- `teacher_scores`: one score a document, where the teacher gives scores.
- `query_type`, `source_docid`, `generator`: how the query was made, from which passage, by which model.
- `first_stage`, `teacher`, `prompt`: which stage found the documents, who put them in order, asked with which prompt.
- `answer`: the teacher's raw answer; `repaired`: "true" where something in it was dropped or appended.

Train on it with `tsarank train distill --train_data FOLDER/data`."""


def _metadata(record: dict[str, Any], title: str, license_id: str | None) -> str:
    """The YAML block, by huggingface_hub's own classes."""
    from huggingface_hub import DatasetCardData

    splits = {name: count for name, count in record["splits"].items() if name != "failed"}
    rows = sum(splits.values())
    card = DatasetCardData(
        pretty_name=_line(title),
        license=license_id or "unknown",
        task_categories=["text-ranking"],
        size_categories=[next((name for bound, name in _SIZES if rows < bound), "n>1M")],
        tags=["tsarank", "distillation", "reranking"],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": f"data/{name}-*.parquet"}
                    for name, count in sorted(splits.items())
                    if count
                ],
            }
        ],
    )
    return card.to_yaml().strip()


def _summary(record: dict[str, Any]) -> str:
    splits = record["splits"]
    rows = splits["train"] + splits["validation"]
    return (
        f"{rows:,} queries, each with up to {record['list_size']} documents of a first stage in a teacher's order: "
        f"{splits['train']:,} for training, {splits['validation']:,} for validation. Made by the recipe of TWOLAR "
        "(Baldelli et al., 2024, section 3.2)."
    )


def _sources(record: dict[str, Any]) -> str:
    corpus = record["corpus"]
    lines = [f"Corpus: `{_line(corpus['name'])}`, {corpus['documents']:,} documents. First stages:", ""]
    for stage in record["first_stages"]:
        over = f", over the first {stage['rerank_depth']} of {stage['base']}" if "rerank_depth" in stage else ""
        lines.append(f"- {_line(stage['name'])}: `{_line(stage['stage'])}`{over}")
    names = list(next(iter(record["by_source"].values()), {}))
    rows = [[source, *(str(counts[name]) for name in names)] for source, counts in record["by_source"].items()]
    return "\n".join(lines) + "\n\nLists by query type and first stage:\n\n" + markdown_table(["lists", *names], rows)


def _teacher(record: dict[str, Any]) -> str:
    settings = {name: value for name, value in record["teacher"].items() if value is not None}
    settings["teacher, trained on"] = teachers_text(record.get("teachers"))
    rows = [[name.replace("_", " "), _line(str(value))] for name, value in settings.items()]
    usage = record["usage"]
    rows += [[f"last run: {name.replace('_', ' ')}", str(usage[name])] for name in sorted(usage)]
    return markdown_table(["setting", "value"], rows)


def _leakage(record: dict[str, Any]) -> str:
    leakage = record.get("leakage")
    if leakage is None:
        return "The lists were **not** checked against any test collection."
    return (
        f"Checked: {_line(leakage_text(leakage))}. {leakage['queries_left_out']:,} queries got no list, and "
        f"{leakage['documents_left_out']:,} documents were taken out of lists."
    )


def _outcomes(record: dict[str, Any]) -> str:
    rates = record["rates"]
    rows = [[name, f"{count:,}"] for name, count in record["outcomes"].items()]
    rows.append(["too few documents", f"{record['too_few_documents']:,}"])
    rows.append(["not asked", f"{record['not_asked_by_limit']:,}"])
    shares = [f"{name} rate {100 * rates[name]:.1f} %" for name in ("failure", "repair") if rates[name] is not None]
    text = f"Of {record['queries']:,} queries ({', '.join(shares) or 'no list was answered'}):"
    return f"{text}\n\n{markdown_table(['outcome', 'lists'], rows)}"


def _limits(record: dict[str, Any]) -> str:
    kept = record["answers"]["keeping_the_given_order"]
    return (
        "The order is a teacher's opinion, not people's judgment; nobody checked the lists one by one. "
        f"{kept:,} of {record['answers']['used']:,} answers in text kept the order in which the documents were shown. "
        "The corpus's own licence holds for its texts, and its owner's terms for a teacher's answers."
    )


def _line(text: str) -> str:
    return " ".join(str(text).split())

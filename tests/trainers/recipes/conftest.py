"""Raw files of our own in the layouts of the real ones, and what the preparation makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from raw_files import Writer, write_gz, write_lines

from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES
from modeling_tsarank.trainers.recipes.release_data import prepare


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Raw folders in the layouts of the real ones, with leaks planted; what was planted, and the plan."""
    data, writer = tmp_path_factory.mktemp("raw"), Writer(3)
    test_query, test_document = writer.pair()
    test_passage = writer.text()
    write_lines(
        data / "beir" / "exam" / "corpus.jsonl",
        [{"_id": "1", "text": test_document}, {"_id": "2", "text": test_passage}],
    )
    write_lines(data / "beir" / "exam" / "queries.jsonl", [{"_id": "q", "text": test_query}])
    # Two words of 24 changed: a near copy.
    near = " ".join(["first", *test_passage.split()[1:-1], "last"])
    for type_ in PAIR_TYPES:
        rows = [dict(zip(("query", "document"), writer.pair(), strict=True)) for _ in range(30)]
        rows += [{"query": test_query.title(), "document": writer.text()}, {"query": "some words", "document": near}]
        own = [{"type": type_, "source": f"{type_}:{n % 2}", **row} for n, row in enumerate(rows)]
        write_gz(data / "weak_pairs" / f"{type_}.jsonl.gz", own)
    objects, texts, dev = [], [], []
    for number in range(12):
        query, document = writer.pair()
        negatives = [{"docid": str(n), "text": writer.text()} for n in range(number % 4)]
        objects.append({"query_id": str(number), "query": query, "positives": [{"docid": "p", "text": document}]})
        objects[-1]["negatives"] = [*negatives, {"docid": "near", "text": near}]
        query, document = writer.pair()
        texts.append({"query": f"){query}", "positives": [f"{document} cafÃ©"], "negatives": [writer.text()]})
        query, document = writer.pair()
        dev.append({"query": query, "positives": [document], "negatives": [writer.text() for _ in range(3)]})
    texts.append({"query": test_query, "positives": [writer.text()], "negatives": [writer.text()]})
    texts.append({"query": "no positive", "positives": [], "negatives": [writer.text()]})
    # A training row that repeats a development query.
    texts.append({"query": dev[0]["query"], "positives": [writer.text()], "negatives": [writer.text()]})
    for name, rows in (("objects", objects), ("texts", texts), ("texts_dev", dev)):
        write_gz(data / "supervised" / f"{name}.jsonl.gz", rows)
    plan = data / "plan.yaml"
    weak = {
        "sources": [{"type": name, "path": f"$TSARANK_DATA/weak_pairs/{name}.jsonl.gz"} for name in PAIR_TYPES],
        "filters": ["clean"],
    }
    (data / "weak.yaml").write_text(yaml.safe_dump(weak))
    mining = {"depth": 12, "count": 4, "sampling": "top"}
    plan.write_text(
        yaml.safe_dump(
            {
                "weak_recipe": "weak.yaml",
                "leakage": ["$TSARANK_DATA/beir"],
                "cpt": {"rows": 140, "temperature": 3, "validation": 10},
                "dev_depth": 5,
                "sft_rows": 60,
                "sources": [
                    {"name": "objects", "files": ["objects"], "dev": 3, "mining": mining},
                    {
                        "name": "texts",
                        "files": ["texts"],
                        "dev_files": ["texts_dev"],
                        "dev": 12,
                        "clean": {"replace_query": [["^\\)", ""]]},
                        "mining": mining,
                    },
                    {
                        "name": "answers",
                        "types": ["question_answer"],
                        "origins": ["*:1"],
                        "queries": 6,
                        "dev": 4,
                        "mining": mining,
                    },
                ],
                "mixes": {"all": {"objects": 1, "texts": 1, "answers": 2}, "answers": {"answers": 1}},
                "pools": ["objects"],
                "distill_queries": 9,
                "distill_documents": 30,
            }
        )
    )
    return {"data": data, "plan": plan, "query": test_query, "document": test_document, "near": near}


@pytest.fixture(scope="session")
def release(raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "out"
    prepare(raw["plan"], raw["data"], folder)
    return folder

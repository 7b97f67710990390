"""Loading: every kind of source gives the same rows, errors say where, and the real files load."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from modeling_tsarank.ranking_errors import InputError, TSARankError
from modeling_tsarank.trainers.cpt_config import ROW_RULES
from modeling_tsarank.trainers.row_checks import RowRules, checked_rows
from modeling_tsarank.trainers.rows import PLACE, positives_and_negatives, to_row
from modeling_tsarank.trainers.training_data import load_training_rows


SFT_RULES = RowRules(positives=True, negatives=1)


SFT_RECORDS = [
    {
        "query_id": str(number),
        "query": f"question {number}",
        "positives": [{"docid": f"p{number}", "title": "T", "text": f"answer {number}"}],
        "negatives": [{"docid": f"n{number}{k}", "title": "", "text": f"other {number} {k}"} for k in range(3)],
        "source": "made",
    }
    for number in range(4)
]


def write(path: Path, records: list[Any]) -> Path:
    """The records in the file format that the name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.name.endswith(".parquet"):
        Dataset.from_list(records).to_parquet(path)
    elif path.name.endswith("array.json"):
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.name.endswith("data.json"):
        path.write_text(json.dumps({"version": 1, "data": records}), encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "rows.jsonl.gz", "array.json", "data.json", "lines.json", "lines.json.gz", "rows.parquet"],
)
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    dataset = load_training_rows(write(tmp_path / name, SFT_RECORDS), cache_dir=tmp_path / "cache")
    expected = [{**to_row(record), "source": "made"} for record in SFT_RECORDS]
    assert list(dataset.remove_columns(PLACE)) == expected
    assert dataset.column_names == ["query_id", "query", "documents", "labels", "source", PLACE]
    assert all(str(tmp_path / name) in place for place in dataset[PLACE])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "array.json", "data.json", "lines.json"])
def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, SFT_RECORDS)
    plain = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    marked = b"\xef\xbb\xbf" + plain
    path.write_bytes(gzip.compress(marked) if path.suffix == ".gz" else marked)
    dataset = load_training_rows(path, cache_dir=tmp_path / "cache")
    assert list(dataset.remove_columns(PLACE)) == [{**to_row(record), "source": "made"} for record in SFT_RECORDS]


def test_a_table_in_the_columns_of_sentence_transformers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('anchor,positive,negative_1,negative_2\nq,"a, b",n1,n2\nr,c,n3,\n', encoding="utf-8")
    rows = list(load_training_rows(path, cache_dir=tmp_path / "cache"))
    assert [row["query"] for row in rows] == ["q", "r"]
    assert [[document["text"] for document in row["documents"]] for row in rows] == [["a, b", "n1", "n2"], ["c", "n3"]]
    assert [row["labels"] for row in rows] == [[1, 0, 0], [1, 0]]


def test_lists_datasets_and_saved_folders_give_the_same_rows(tmp_path: Path) -> None:
    expected = list(load_training_rows(SFT_RECORDS))
    dataset = Dataset.from_list(SFT_RECORDS)
    assert list(load_training_rows(dataset)) == expected
    assert list(load_training_rows(DatasetDict({"test": dataset}), split="test")) == expected
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    assert list(load_training_rows(tmp_path / "one")) == expected
    assert list(load_training_rows(str(tmp_path / "splits"))) == expected


@pytest.mark.parametrize(
    "records",
    [
        [{"query": "q", "document": "d", "type": "title_body"}] * 2,
        SFT_RECORDS,
        [{"query": "q", "documents": ["a", "b"], "permutation": "[2] > [1]", "teacher": "x"}] * 2,
        [{"query": "q", "documents": ["a", "b"], "teacher_scores": [1.0, 0.0]}] * 2,
    ],
)
def test_rows_that_were_read_load_as_they_are(records: list[dict[str, Any]]) -> None:
    once = load_training_rows(records)
    twice = load_training_rows(once)
    assert list(twice) == list(once)
    assert twice.features == once.features


def test_mixed_documents_and_types_in_one_file(tmp_path: Path) -> None:
    """Texts and objects in one list are more than Arrow infers by itself."""
    records = [
        {"query": "a", "positives": ["p"], "negatives": [{"docid": 5, "text": "n"}, "m"]},
        {"query": "b", "positives": [{"text": "p"}], "negatives": [], "query_id": 7},
    ]
    dataset = load_training_rows(write(tmp_path / "rows.jsonl", records), cache_dir=tmp_path / "cache")
    assert dataset[0]["documents"][1:] == [
        {"id": "5", "title": None, "text": "n"},
        {"id": None, "title": None, "text": "m"},
    ]
    assert dataset["query_id"][:] == [None, "7"]


def test_carried_fields_are_texts_and_never_targets(tmp_path: Path) -> None:
    record = {**SFT_RECORDS[0], "labels": ["Good"], "year": 2016, "repaired": True, "scores": [1], "note": None}
    dataset = load_training_rows([record, {**record, "year": None}])
    assert dataset.column_names == [
        "query_id",
        "query",
        "documents",
        "labels",
        "source",
        "year",
        "repaired",
        "note",
    ]
    assert dataset["year"][:] == ["2016", None]
    assert dataset["repaired"][0] == "True"


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SFT_RECORDS[:2])
    assert len(load_training_rows(path, cache_dir=tmp_path / "cache")) == 2
    write(path, SFT_RECORDS[:3])
    assert len(load_training_rows(path, cache_dir=tmp_path / "cache")) == 3
    same_size = [{**record, "query": record["query"].replace("question", "QUESTION")} for record in SFT_RECORDS[:3]]
    before = path.stat()
    write(path, same_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert load_training_rows(path, cache_dir=tmp_path / "cache")[0]["query"] == "QUESTION 0"


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "wiki_train.jsonl.gz", SFT_RECORDS[:1])
    write(folder / "wiki-dev.jsonl", SFT_RECORDS[1:2])
    write(folder / "test" / "part0.jsonl", SFT_RECORDS[2:3])
    write(folder / "unnamed.json", [{"query": "flag", "pos": ["p"], "neg": ["n"]}])
    (folder / "README.md").write_text("not data", encoding="utf-8")

    def queries(split: str) -> list[str]:
        return load_training_rows(folder, split, cache_dir=tmp_path / "cache")["query"][:]

    assert queries("train") == ["flag", "question 0"]
    assert queries("validation") == queries("dev") == ["question 1"]
    assert queries("test") == ["question 2"]
    with pytest.raises(InputError, match="no file for the split 'extra'; it has test, train, validation"):
        queries("extra")


RANKGPT = [
    {
        "query_id": str(number),
        "query": f"question {number}",
        "positive_passages": [{"docid": "1", "text": "one"}],
        "retrieved_passages": [{"docid": str(k), "rank": k + 1, "text": f"text {k}"} for k in range(4)],
    }
    for number in range(3)
]
ANSWERS = ["[4] > [3] > [2] > [1]", "[2] > [2] > [1]", "I am sorry."]


def test_records_beside_the_rows_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    row = {"query": "a", "document": "b"}
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "provenance.json").write_text('{"kind": "weak_pairs"}', encoding="utf-8")
    assert len(load_training_rows(tmp_path)) == 1


def test_rankgpt_files_load_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write(tmp_path / "marco.jsonl", RANKGPT)
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(ANSWERS), encoding="utf-8")
    for source in (data, RANKGPT, Dataset.from_list(RANKGPT)):
        dataset = load_training_rows(source, permutations=answers, cache_dir=tmp_path / "cache")
        assert dataset["permutation"][:] == [[3, 2, 1, 0], [1, 0, 2, 3], []]
        assert dataset["answer"][:] == ANSWERS
        assert dataset["repaired"][:] == ["false", "true", "true"]
    with pytest.raises(InputError, match=r"^row 3: permutation: empty"):
        checked_rows(dataset, RowRules())
    with caplog.at_level(logging.WARNING):
        assert len(checked_rows(dataset, RowRules(), drop_unusable=True).rows) == 2
    assert "left out 1 of 3 rows; by field: permutation 1" in caplog.text


def test_rankgpt_data_without_answers_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its passages stand in the first stage's order: to learn that silently would be a trap."""
    twolar = [{**row, "retrieved_passages": row["retrieved_passages"][::-1]} for row in RANKGPT]
    with caplog.at_level(logging.WARNING):
        dataset = load_training_rows(twolar)
        assert "retrieved_passages" not in caplog.text
        load_training_rows(Dataset.from_list(RANKGPT))
    assert caplog.text.count("give it as permutations") == 1
    assert dataset["permutation"][0] == [0, 1, 2, 3]
    assert dataset[0]["documents"][0]["text"] == "text 3"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (ANSWERS[:2], "the permutations end at 2"),
        ([*ANSWERS, "[1]"], "the rows end at 3"),
        ([*ANSWERS[:2], {"a": 1}], r"row 3: permutation: expected a list, got dict"),
    ],
)
def test_answers_must_match_the_rows(tmp_path: Path, answers: list[Any], message: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_training_rows(RANKGPT, permutations=path)
    data = write(tmp_path / "marco.jsonl", RANKGPT)
    with pytest.raises(InputError, match=message.replace("row 3", "line 3")):
        load_training_rows(data, permutations=path, cache_dir=tmp_path / "cache")


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(SFT_RECORDS[0])
    for line, message in (
        ('{"query": "q", "positives": ["p"]}', r"/rows\.jsonl, line 3: negatives: missing; expected a list$"),
        ('{"query": "q", "positives": ["p"], "negatives": [1]}', r"/rows\.jsonl, line 3: negatives\[0\]: expected"),
        ('{"query": ', r"/rows\.jsonl, line 3: not JSON"),
        ('["q"]', r"/rows\.jsonl, line 3: expected an object with fields, got list"),
    ):
        path.write_text(f"{good}\n\n{line}\n", encoding="utf-8")
        with pytest.raises(InputError, match=message) as caught:
            load_training_rows(path, cache_dir=tmp_path / "cache")
        assert "\n" not in str(caught.value)


def test_a_later_row_without_the_target_is_an_error() -> None:
    rows = [
        {"query": "q", "documents": ["a", "b"], "permutation": [1, 0], "teacher_scores": [0, 1]},
        {"query": "q", "documents": ["a", "b"], "permutation": [1, 0]},
    ]
    with pytest.raises(InputError, match="row 2: teacher_scores: missing, but the first row has it"):
        load_training_rows(rows)


def broken_sources(folder: Path) -> list[tuple[Any, str]]:
    """Sources that cannot be read, with what must be said about them."""
    files = {
        "empty.jsonl": b"",
        "rows.tsv": b"query\tdocument\n",
        "short.csv": b"query,document\nonly one\n",
        "broken.jsonl.gz": b"not gzip",
        "broken.parquet": b"not parquet",
        "latin.jsonl": b'{"query": "\xe9t\xe9", "document": "d"}\n',
        "scalar.json": b"5",
        "half.json": b'[{"query": "q"',
        "fields.jsonl": b'{"text": "a"}\n',
    }
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    return [
        (folder / "empty.jsonl", "has no rows"),
        (folder / "rows.tsv", "unknown file type; expected .jsonl"),
        (folder / "short.csv", "short.csv, line 2: the number of fields differs from the header's"),
        (folder / "broken.jsonl.gz", "broken.jsonl.gz, line 1: damaged or incomplete"),
        (folder / "broken.parquet", "cannot be read as Parquet"),
        (folder / "latin.jsonl", "latin.jsonl, line 1: not UTF-8"),
        (folder / "scalar.json", "expected an array of rows, found int"),
        (folder / "half.json", "half.json, line 1: not JSON"),
        (folder / "fields.jsonl", r"fields.jsonl, line 1: fields \['text'\] match no layout"),
        (folder / "nothing", "has no file with"),
        (folder / "missing.jsonl", "no file or folder"),
        ([], "the list has no rows"),
        (Dataset.from_list([]), "the dataset has no rows"),
        ({"test": Dataset.from_list(SFT_RECORDS)}, "has no split 'train'; it has test"),
        (Dataset.from_list(SFT_RECORDS).to_iterable_dataset(), r"for a stream, list\(.*got IterableDataset"),
        (5, "got int"),
    ]


def test_broken_sources_are_named(tmp_path: Path) -> None:
    for source, message in broken_sources(tmp_path / "broken"):
        with pytest.raises(InputError, match=message) as caught:
            load_training_rows(source, cache_dir=tmp_path / "cache")
        assert "\n" not in str(caught.value)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SFT_RECORDS)
    with pytest.raises(InputError, match="works only for datasets on the Hub"):
        load_training_rows(path, split="train[:2]")
    with pytest.raises(InputError, match="no permutations file"):
        load_training_rows(RANKGPT, permutations=tmp_path / "none.json")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TSARankError, match="tsarank-tests/no-such-dataset") as caught:
        load_training_rows("tsarank-tests/no-such-dataset")
    assert "\n" not in str(caught.value)


SUPERVISED = {
    "msmarco_flagembedding_sample": (11, 11),
    "msmarco_rankinggpt_100q": (100, 100),
    "msmarco_splade_toy_triples": (100, 100),
    "semeval2016_task3_cqa_train2_dev": (1170, 1077),
    "trecqa_train": (94, 78),
    "trecqa_dev": (82, 65),
    "trecqa_test": (100, 68),
    "wikiqa_train": (873, 857),
    "wikiqa_dev": (126, 122),
    "wikiqa_test": (243, 237),
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_real_supervised_files(data_dir: Path, tmp_path: Path, name: str) -> None:
    """Against a plain reading of the file: nothing lost, nothing changed; the usable rows are counted apart."""
    path = data_dir / "supervised" / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    dataset = load_training_rows(path, cache_dir=tmp_path)
    total, usable = SUPERVISED[name]
    assert len(dataset) == len(records) == total
    for record, row in zip(records, dataset, strict=True):
        assert row["query"] == record["query"].strip()
        sides = positives_and_negatives(row)
        for field in ("positives", "negatives"):
            given = [item if isinstance(item, str) else item["text"] for item in record[field]]
            assert [document["text"] for document in sides[field]] == [text.strip() for text in given]
    plain = [row for row in records if row["positives"] and row["negatives"]]
    kept = checked_rows(dataset, SFT_RULES, drop_unusable=True).rows
    assert len(kept) == usable == len(plain)
    checked_rows(kept, RowRules(("lambdarank",)))


def test_real_rankinggpt_file_keeps_its_ids(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "supervised" / "msmarco_rankinggpt_100q.jsonl.gz"
    dataset = load_training_rows(path, cache_dir=tmp_path)
    assert dataset[0]["query_id"] == "958784"
    assert dataset[0]["documents"][0]["id"] == "4745841"
    with pytest.raises(InputError, match=r"negatives: expected at least 48, got \d+"):
        checked_rows(dataset, RowRules(positives=True, negatives=48))


@pytest.mark.parametrize("name", ["entity_description", "summary_content"])
def test_real_weak_pairs(data_dir: Path, tmp_path: Path, name: str) -> None:
    dataset = load_training_rows(data_dir / "weak_pairs" / f"{name}.jsonl.gz", cache_dir=tmp_path)
    checked_rows(dataset, ROW_RULES)
    assert set(dataset.column_names) == {"query_id", "query", "documents", "labels", "type", "source", PLACE}
    assert set(dataset["type"][:]) == {name}


@pytest.mark.slow
def test_all_real_weak_pairs_as_a_folder(data_dir: Path, tmp_path: Path) -> None:
    dataset = load_training_rows(data_dir / "weak_pairs", cache_dir=tmp_path)
    checked_rows(dataset, ROW_RULES)
    assert len(dataset) == 200_073
    assert len(set(dataset["type"][:])) == 7

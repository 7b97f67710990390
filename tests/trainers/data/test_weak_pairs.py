"""Weak pairs from files to a finished set, its provenance, its card and the command."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank import cli
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.cards import render_card, write_card
from modeling_tsarank.trainers.data.provenance import read_provenance
from modeling_tsarank.trainers.data.weak_pairs import build_weak_pairs
from modeling_tsarank.trainers.data.weak_recipe import Sampling, build_recipe, choose
from modeling_tsarank.trainers.training_data import load_training_rows


WORDS = ["pilot", "ship", "channel", "anchor", "tide", "quay", "rope", "sail", "mast", "wind", "wave", "buoy", "crew"]
TYPES = {"title_body": 60, "question_answer": 30, "entity_description": 12}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Three tables of distinct pairs, some of them too short, and one repeated."""
    generator = random.Random(4)
    sources = []
    for type_, count in TYPES.items():
        rows = []
        for number in range(count):
            words = generator.choices(WORDS, k=14)
            rows.append(
                {
                    "query": f"{words[0]} {words[1]} {number}",
                    "document": f"{' '.join(words)} {type_} {number}",
                    "source": "logbook",
                }
            )
        rows += [rows[0], {"query": "short", "document": "one two", "source": "logbook"}]
        path = tmp_path / f"{type_}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sources.append({"type": type_, "path": str(path)})
    return {
        "title": "Pairs of a logbook",
        "sources": sources,
        "licences": {"log*": "cc-by-4.0"},
        "filters": ["clean", "length", "repeats", "near_duplicates"],
        "sampling": {"rows": 40, "temperature": 4, "validation": 5, "seed": 3},
    }


def build(recipe: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return build_weak_pairs(build_recipe(recipe), folder, **options)


def test_a_set_loads_and_adds_up(recipe: dict[str, Any], tmp_path: Path) -> None:
    facts = build(recipe, tmp_path / "set", shard_rows=10)
    data = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in data.items()} == {"train": 35, "validation": 5} == facts["rows"]
    assert data["train"].column_names == ["query", "document", "type", "source", "licence"]
    rows = [*data["train"], *data["validation"]]
    assert Counter(row["type"] for row in rows) == facts["types"]
    assert {(row["source"], row["licence"]) for row in rows} == {("logbook", "cc-by-4.0")}
    assert len({row["document"] for row in rows}) == 40
    assert len(list((tmp_path / "set" / "data").glob("train-*-of-00004.parquet"))) == 4
    assert [step["dropped"] for step in facts["filters"]] == [{}, {"document_too_short": 3}, {"same_pair": 3}, {}]
    assert facts["kept_by_type"] == TYPES
    assert {entry.name for entry in tmp_path.iterdir()} >= {"set"}
    assert not [entry for entry in tmp_path.iterdir() if entry.name.endswith((".partial", ".old"))]


def test_continual_pretraining_accepts_the_set(recipe: dict[str, Any], tmp_path: Path) -> None:
    build(recipe, tmp_path / "set")
    rows = load_training_rows(tmp_path / "set", cache_dir=tmp_path / "cache")
    assert len(rows) == 35
    assert set(rows[0]) >= {"query", "documents", "type", "source", "licence"}
    held_out = load_training_rows(tmp_path / "set", "validation", cache_dir=tmp_path / "cache")
    assert not {row["documents"][0]["text"] for row in rows} & {row["documents"][0]["text"] for row in held_out}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_recipe_gives_the_same_bytes(recipe: dict[str, Any], tmp_path: Path) -> None:
    build(recipe, tmp_path / "one")
    build(recipe, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    recipe["sampling"]["seed"] = 4
    build(recipe, tmp_path / "three")
    assert contents(tmp_path / "one") != contents(tmp_path / "three")


def test_provenance_tells_everything_but_paths(recipe: dict[str, Any], tmp_path: Path) -> None:
    build(recipe, tmp_path / "set")
    record = read_provenance(tmp_path / "set")
    assert record["kind"] == "weak_pairs"
    assert [one["file"]["name"] for one in record["inputs"]] == [f"{name}.jsonl" for name in TYPES]
    assert all(len(one["file"]["sha256"]) == 64 for one in record["inputs"])
    assert record["sampling"] == {"rows": 40, "temperature": 4, "caps": {}, "validation": 5, "seed": 3}
    assert record["versions"]["datasketch"]
    for name, content in contents(tmp_path / "set").items():
        assert str(tmp_path).encode() not in content, name


def test_a_failure_leaves_nothing_and_an_earlier_set_as_it_was(recipe: dict[str, Any], tmp_path: Path) -> None:
    build(recipe, tmp_path / "set")
    before = contents(tmp_path / "set")
    with pytest.raises(InputError, match="already exists"):
        build(recipe, tmp_path / "set")
    names = {entry.name for entry in tmp_path.iterdir()}
    with Path(recipe["sources"][2]["path"]).open("a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"entity_description\.jsonl, line 15: not JSON"):
        build(recipe, tmp_path / "set", overwrite=True)
    assert contents(tmp_path / "set") == before
    assert {entry.name for entry in tmp_path.iterdir()} == names
    recipe["sources"] = recipe["sources"][:2]
    build(recipe, tmp_path / "set", overwrite=True)
    assert contents(tmp_path / "set") != before
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_a_folder_that_is_no_dataset_is_never_overwritten(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years of work")
    with pytest.raises(InputError, match="is not overwritten"):
        build(recipe, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_filters_that_leave_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["filters"] = ["exclude"]
    with pytest.raises(InputError, match="drop every pair"):
        build(recipe, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_card_states_what_was_recorded(recipe: dict[str, Any], tmp_path: Path) -> None:
    build(recipe, tmp_path / "set")
    card = DatasetCard.load(tmp_path / "set" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.size_categories == ["n<1K"]
    assert card.data.task_categories == ["text-ranking", "text-retrieval"]
    assert card.data.to_dict()["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"},
        {"split": "validation", "path": "data/validation-*.parquet"},
    ]
    assert "language" not in card.data.to_dict()  # no filter looked at it
    assert "40 pairs" in card.text
    assert "**not** checked against any test collection" in card.text
    assert "| `title_body` | logbook | cc-by-4.0 |" in card.text
    assert "document_too_short 3" in card.text
    assert not [line for line in card.text.splitlines() if "$" in line or "None" in line or line.endswith("# ")]
    other = DatasetCard(render_card(read_provenance(tmp_path / "set"), title="Another: title"))
    assert other.data.pretty_name == "Another: title"


def test_card_names_languages_collections_and_unknown_licences(recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "harbour"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "a text that nobody has"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "1", "text": "who has it"}\n')
    recipe["licences"] = {}
    recipe["filters"] = [{"language": {"languages": ["en", "de"]}}, {"leakage": {"collections": [str(folder)]}}]
    build(recipe, tmp_path / "set")
    card = DatasetCard.load(tmp_path / "set" / "README.md")
    assert card.data.language == ["en", "de"]
    assert card.data.license == "unknown"
    assert "harbour (1 queries, 1 documents)" in card.text
    assert "The licence of 40 rows is unknown." in card.text


def test_card_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no provenance\.json"):
        write_card(tmp_path)
    (tmp_path / "provenance.json").write_text('{"format": 99, "kind": "weak_pairs"}')
    with pytest.raises(InputError, match="later version"):
        write_card(tmp_path)
    (tmp_path / "provenance.json").write_text("[]")
    with pytest.raises(InputError, match="is not a provenance record"):
        write_card(tmp_path)
    with pytest.raises(InputError, match="is incomplete"):
        render_card({"kind": "weak_pairs", "title": "t"})
    with pytest.raises(InputError, match="is incomplete"):
        render_card(
            {
                "kind": "weak_pairs",
                "title": "t",
                "rows": {"train": 1},
                "sources": [],
                "filters": [],
                "types": {"title_body": "x"},
            }
        )
    with pytest.raises(InputError, match="is incomplete"):
        render_card(
            {"kind": "distillation_lists", "title": "t", "splits": {"train": 1, "failed": "x"}, "queries": "x"}
        )
    (tmp_path / "provenance.json").write_text('{"format": 1, "kind": "poems"}')
    with pytest.raises(InputError, match="is not a provenance record"):
        write_card(tmp_path)


counts_of_types = st.dictionaries(
    st.sampled_from(["title_body", "post_comment", "summary_content"]), st.integers(1, 500)
)


@given(
    counts=counts_of_types.filter(bool),
    rows=st.integers(1, 900),
    temperature=st.floats(0.5, 50),
    cap=st.integers(1, 300),
)
def test_shares_fill_the_set_and_stay_below_caps(
    counts: dict[str, int], rows: int, temperature: float, cap: int
) -> None:
    sampling = Sampling(rows=rows, temperature=temperature, caps={"all": cap, "title_body": 2 * cap})
    wanted = sampling.allocate(counts)
    most = {name: min(n, 2 * cap if name == "title_body" else cap) for name, n in counts.items()}
    assert all(0 <= wanted[name] <= most[name] for name in counts)
    assert sum(wanted.values()) == min(rows, sum(most.values()))


def test_temperature_balances() -> None:
    counts = {"title_body": 900, "post_comment": 100}
    assert Sampling(rows=100).allocate(counts) == {"title_body": 90, "post_comment": 10}
    assert Sampling(rows=100, temperature=2).allocate(counts) == {"title_body": 75, "post_comment": 25}
    assert Sampling(rows=100, temperature=1e9).allocate(counts) == {"title_body": 50, "post_comment": 50}
    assert Sampling(rows=400, temperature=1e9).allocate(counts) == {"title_body": 300, "post_comment": 100}
    assert Sampling(caps={"title_body": 7}).allocate(counts) == {"title_body": 7, "post_comment": 100}


def test_places_are_a_permutation_that_depends_on_the_seed() -> None:
    counts, wanted = {"title_body": 50, "post_comment": 30}, {"title_body": 10, "post_comment": 30}
    places = choose(counts, wanted, seed=1)
    taken = np.concatenate([one[one >= 0] for one in places.values()])
    assert sorted(taken.tolist()) == list(range(40))
    assert (places["title_body"] >= 0).sum() == 10
    again, other = choose(counts, wanted, seed=1), choose(counts, wanted, seed=2)
    assert all((places[name] == again[name]).all() for name in counts)
    assert any((places[name] != other[name]).any() for name in counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sauces": []}, "the recipe: no option 'sauces'; there are sources, filters"),
        ({"sources": []}, "at least one source"),
        ({"sources": ["a.jsonl"]}, "source 1: expected options by name"),
        ({"sources": [{"path": "x"}]}, "source 1: type is missing"),
        ({"sampling": {"temperature": 2, "rows": 0}}, "sampling: a temperature needs rows"),
        ({"sampling": {"caps": {"poem": 3}}}, "no type 'poem'"),
        ({"sampling": {"rows": -1}}, "rows must be a whole number of at least 0"),
        ({"sampling": {"size": 3}}, "no option 'size'"),
        ({"licences": ["mit"]}, "licences must be of type dict"),
        ({"licences": {"log*": 3}}, "licences must map"),
        ({"sampling": {"rows": 3, "validation": 3}}, "leaves nothing of 3 rows"),
    ],
)
def test_wrong_recipes(recipe: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build({**recipe, **change}, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tsarank data …` in this process."""
    name = "modeling_tsarank.trainers.data.commands"
    if name not in cli.COMMAND_MODULES:
        monkeypatch.setattr(cli, "COMMAND_MODULES", (*cli.COMMAND_MODULES, name))
    return cli.main


def test_a_recipe_that_is_no_yaml(tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    for content, message in (
        (None, "no such file"),
        ("sources: [\n", "not YAML"),
        ("- a\n", "expected options by name"),
    ):
        if content is not None:
            path.write_text(content)
        assert command(["data", "weak-pairs", "--config", str(path), "--output", str(tmp_path / "set")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "set").exists()


def test_the_command_makes_a_set_and_its_card(
    recipe: dict[str, Any], tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["sampling"] |= {"rows": 30, "caps": {"title_body": 11}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder, dropped = tmp_path / "set", tmp_path / "dropped.jsonl"
    arguments = ["data", "weak-pairs", "--config", str(tmp_path / "recipe.yaml"), "--output", str(folder)]
    assert command([*arguments, "--dropped-examples", str(dropped)]) == 0
    printed = capsys.readouterr().out
    assert "read" in printed
    assert re.search(r"document_too_short +3\n", printed)
    record = read_provenance(folder)
    assert record["types"]["title_body"] == 11
    assert sum(record["types"].values()) == 30
    assert record["sampling"]["temperature"] == 4
    examples = [json.loads(line) for line in dropped.read_text().splitlines()]
    assert Counter(one["reason"] for one in examples) == {"document_too_short": 3, "same_pair": 3}
    assert command(arguments) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_help_lists_types_and_filters(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["data", "weak-pairs", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("summary_content", "near_duplicates", "per_document 3", "fields: {query"))


@pytest.mark.slow
def test_real_pairs(data_dir: Path, tmp_path: Path) -> None:
    """The first 400 pairs of every real file through the default filters and a check for leakage."""
    sources = [
        {"type": path.name.split(".")[0], "path": str(path), "limit": 400}
        for path in sorted((data_dir / "weak_pairs").glob("*.jsonl.gz"))
    ]
    filters = ["clean", "length", "boilerplate", "language", "repeats", "near_duplicates"]
    leakage = {"leakage": {"collections": [str(data_dir / "beir" / "trec-dl-19")]}}
    facts = build({"sources": sources, "filters": [*filters, leakage]}, tmp_path / "set")
    assert sum(one["pairs"] for one in facts["inputs"]) == 2800
    assert len(facts["types"]) == 7
    assert 1500 < sum(facts["types"].values()) < 2800

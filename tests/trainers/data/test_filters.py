"""Filters: what each keeps, mends and drops, and that their counts add up."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data import filters
from modeling_tsarank.trainers.data.filters import Pipeline, declare_steps
from modeling_tsarank.trainers.data.filters_index import KeyTable, RowFile, SignatureIndex
from modeling_tsarank.trainers.data.weak_text import TextView, minhash, similarity
from modeling_tsarank.trainers.data.weak_types import Pair


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "l", "rt", "ck")]


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def pair(query: str, document: str, type_: str = "title_body", source: str = "made") -> Pair:
    return Pair(query, document, type_, source)


def run(declared: list[Any], pairs: list[Pair]) -> tuple[list[Pair], list[Counter[str]]]:
    """The kept pairs, and the reasons of each step."""
    pipeline = Pipeline(declare_steps(declared))
    kept = list(pipeline.run(pairs))
    pipeline.close()
    left = len(pairs)
    for count in pipeline.steps:
        assert count.pairs_in == left
        assert count.pairs_in == count.pairs_out + sum(count.dropped.values())
        assert sum(count.dropped.values()) == sum(count.dropped_by_type.values())
        left = count.pairs_out
    assert len(kept) == left
    return kept, [count.dropped for count in pipeline.steps]


def reasons(declared: Any, *texts: tuple[str, str]) -> list[str | None]:
    """The reason for which each pair is dropped, alone."""
    found = []
    for query, document in texts:
        _, dropped = run([declared], [pair(query, document)])
        found.append(next(iter(dropped[0]), None))
    return found


def test_clean_mends_texts() -> None:
    kept, _ = run(["clean"], [pair(" Tom &amp; Ann\n", '"A <b>demon- strate</b>d ﬁnding\u200b, pre- and post-war"')])
    assert (kept[0].query, kept[0].document) == ("Tom & Ann", "A demonstrate d finding, pre- and post-war")
    kept, _ = run(["clean"], [pair("q", "it demon- strates 5 &lt; 6")])
    assert kept[0].document == "it demonstrates 5 < 6"
    same = pair("q", "nothing to mend")
    assert run(["clean"], [same])[0][0] is same


def test_clean_replaces_and_cuts() -> None:
    options = {
        "decapitalise": True,
        "replace_query": ["<[A-Z]+>"],
        "replace_document": [r"\s*REUTER\W*$", ["colour", "color"]],
    }
    kept, _ = run([{"clean": options}], [pair("ACME <ACM> BUYS LTD", "Acme likes colour. Reuter^")])
    assert (kept[0].query, kept[0].document) == ("acme buys ltd", "Acme likes color.")


def test_clean_cuts_a_question_that_the_answer_repeats() -> None:
    step = {"clean": {"restated_question": True}}
    kept, _ = run(
        [step],
        [
            pair("What causes tidal waves?", "What are the causes of tidal waves? The moon does."),
            pair("What causes tides?", "Have you looked at yonder bright object above? The moon does."),
            pair("What causes tides?", "What causes tides?"),
        ],
    )
    assert [one.document for one in kept] == [
        "The moon does.",
        "Have you looked at yonder bright object above? The moon does.",
        "What causes tides?",
    ]


def test_length_and_the_shorter_text_is_the_query() -> None:
    step = {"length": {"query_words": [2, 4], "document_words": [3, 6]}}
    assert reasons(
        step, ("a b", "a b c"), ("a", "a b c"), ("a b c d e", "a b c d e f"), ("a b", "a b"), ("a b", "x " * 7)
    ) == [
        None,
        "query_too_short",
        "query_too_long",
        "document_too_short",
        "document_too_long",
    ]
    assert reasons("length", ("one two three four five six", "one two three four five")) == [
        "query_longer_than_document"
    ]


PROSE = (
    "The pilot comes aboard before the ship enters the channel, and he tells the captain how to steer past the banks."
)


@pytest.mark.parametrize(
    ("query", "document", "reason"),
    [
        ("q", PROSE, None),
        ("q", "[deleted]", "placeholder"),
        ("q", "No abstract available.", "placeholder"),
        ("[removed]", PROSE, "placeholder"),
        ("text", PROSE, None),
        ("q", f"{PROSE} I am a bot, and this action was performed automatically.", "bot"),
        ("q", "Please enable JavaScript to see this page.", "notice"),
        ("q", f"{PROSE} See our privacy policy and terms of use.", "notice"),
        ("q", f"{PROSE} See our privacy policy.", None),
        ("q", "look https://example.org/a/very/long/address/that/goes/on/and/on", "links"),
        ("q", "Shr 28 vs 30 14.5 17.6 9,000 8,777 12 15 3.5", "symbols"),
        ("42", PROSE, "symbols"),
        ("q", PROSE.upper(), "capitals"),
        ("q", "again and again and " * 12, "repetition"),
        ("q", "A. B. Sand and C. Dune, Waves over banks, J. Phys. Rev. 2001, pp. 33-44", "bibliography"),
    ],
)
def test_boilerplate(query: str, document: str, reason: str | None) -> None:
    assert reasons("boilerplate", (query, document)) == [reason]


def test_boilerplate_takes_patterns_of_its_own() -> None:
    step = {"boilerplate": {"patterns": [r"^for sale\b"]}}
    assert reasons(step, ("q", f"For sale: {PROSE}"), ("q", PROSE)) == ["pattern", None]


def test_language() -> None:
    german = (
        "Der Lotse kommt an Bord, bevor das Schiff in die Fahrrinne fährt, und sagt dem Kapitän, wie er steuern soll."
    )
    assert reasons("language", ("q", PROSE), ("q", german), ("q", "Der Lotse")) == [None, "language_de", None]
    assert reasons({"language": {"languages": ["de"]}}, ("q", german), ("q", PROSE)) == [None, "language_en"]


def test_lexical_relatedness() -> None:
    assert reasons("lexical", ("steering ships", PROSE), ("the baker's oven", PROSE)) == [None, "unrelated_words"]
    assert reasons({"lexical": {"min_words": 3}}, ("ships and channels", PROSE)) == ["unrelated_words"]
    assert reasons({"lexical": {"min_share": 0.5}}, ("ships of wood rope iron", PROSE)) == ["unrelated_words"]
    copied = {"lexical": {"max_copied": 0.5}}
    start = "The pilot comes aboard before the ship enters the channel"
    assert reasons(copied, (start, PROSE), ("A pilot steers the ship in the channel past its banks", PROSE)) == [
        "copied_query",
        None,
    ]


def test_repeats_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "BATCH", 3)
    pairs = [pair(f"q {number}", "One document.") for number in range(5)]
    pairs += [pair("Q 0!", "one DOCUMENT"), pair("q 9", "another"), pair("q 9", "third"), pair("q 9", "fourth")]
    kept, dropped = run([{"repeats": {"per_document": 2, "per_query": 2}}], pairs)
    assert [one.query for one in kept] == ["q 0", "q 1", "q 9", "q 9"]
    assert dropped[0] == {"same_document": 3, "same_pair": 1, "same_query": 1}


@pytest.mark.parametrize("batch", [2, 500])
def test_near_duplicates_inside_and_across_batches(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(filters, "BATCH", batch)
    base = text(1, 80)
    changed = " ".join([*base.split()[:76], "quite", "other", "last", "words"])
    pairs = [
        pair("first", base),
        pair("unrelated", text(2, 80)),
        pair("second", changed),
        pair("another question of the very same document", base.upper()),
        pair("first", base + "!"),
        pair("half the same", " ".join(base.split()[:40]) + " " + text(3, 40)),
    ]
    kept, dropped = run(["near_duplicates"], pairs)
    assert [one.query for one in kept] == [pairs[n].query for n in (0, 1, 3, 5)]
    assert dropped[0] == {"near_duplicate": 2}


def test_near_duplicates_finds_nearly_all_and_drops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 texts and as many copies with one word of a hundred changed: similarity about 0.94."""
    monkeypatch.setattr(filters, "BATCH", 128)
    originals = [text(seed, 100) for seed in range(300)]
    copies = [
        " ".join(["changed" if place == 50 else word for place, word in enumerate(one.split())]) for one in originals
    ]
    kept, _ = run(["near_duplicates"], [pair(f"{n}", one) for n, one in enumerate(originals + copies)])
    assert [one.query for one in kept[:300]] == [str(n) for n in range(300)]
    assert len(kept) - 300 <= 3


@given(shared=st.integers(0, 60), own=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_minhash_estimates_jaccard_similarity(shared: int, own: int) -> None:
    values = np.random.default_rng(shared * 61 + own).integers(0, 2**63, size=shared + 2 * own).astype(np.uint64)
    one, other = values[: shared + own], np.concatenate([values[:shared], values[shared + own :]])
    exact = shared / (shared + 2 * own)
    assert abs(similarity(minhash(one), minhash(other)) - exact) < 5 * 0.046


@given(rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=80), step=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_the_key_table_finds_what_a_dict_finds(rows: list[tuple[int, int]], step: int) -> None:
    table, expected = KeyTable(), Counter(rows)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        table.add(np.array([key for key, _ in part], dtype=np.uint64), np.array([number for _, number in part]))
    keys = np.arange(42, dtype=np.uint64)
    places, numbers = table.find(keys, limit=100)
    assert Counter(zip(places.tolist(), numbers.tolist(), strict=True)) == expected
    assert len(table) == len(rows)


def test_the_key_table_limits_what_a_frequent_key_gives() -> None:
    table = KeyTable()
    table.add(np.full(50, 7, dtype=np.uint64), np.arange(50))
    assert table.find(np.array([7], dtype=np.uint64), limit=4)[1].tolist() == [0, 1, 2, 3]


def test_rows_on_disk_come_back() -> None:
    rows = np.arange(12, dtype=np.uint32).reshape(4, 3)
    file = RowFile(3)
    file.append(rows[:1])
    file.append(rows[1:])
    assert file.read(np.array([3, 0])).tolist() == [[9, 10, 11], [0, 1, 2]]
    assert file.read(np.array([], dtype=np.int64)).shape == (0, 3)
    file.close()


def test_an_index_remembers_similar_texts() -> None:
    index = SignatureIndex(extra=1)
    first, second = TextView(text(1)).signature, TextView(text(2)).signature
    index.add(np.stack([first, second]), np.array([[10], [20]], dtype=np.uint32))
    places, numbers, extra = index.near(np.stack([second, TextView(text(3)).signature]), 0.8)
    assert (places.tolist(), numbers.tolist(), extra.tolist()) == ([0], [1], [[20]])
    index.close()


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "collections" / "harbour"
    folder.mkdir(parents=True)
    documents = [
        {"_id": "1", "title": "Pilots of the northern sea", "text": text(5, 80)},
        {"_id": "2", "text": "short text"},
    ]
    queries = [{"_id": "q", "text": "how do pilots work"}, {"_id": "r", "text": text(6, 30)}]
    for name, records in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_leakage_exact_near_and_inside(collection: Path) -> None:
    document = text(5, 80)
    nearly = " ".join(document.split()[:78])
    other, own = text(8, 70), text(9, 70)
    pairs = [
        pair("clean", other),
        pair("How do PILOTS work?", own),
        pair("work do how pilots", own),
        pair("Pilots of the Northern Sea", own),
        pair("q", f"Pilots of the northern sea {document}"),
        pair("q", nearly),
        pair("q", f"{other} {' '.join(document.split()[20:33])} {own}"),
        pair("q", f"{other} {' '.join(document.split()[20:32])} {own}"),
        pair(text(6, 30) + ".", own),
        pair(" ".join(text(6, 30).split()[:28]), own),
        pair("q", "Short, text!"),
    ]
    kept, dropped = run([{"leakage": {"collections": [str(collection)]}}], pairs)
    assert [pairs.index(one) for one in kept] == [0, 7]
    assert dropped[0] == {
        "exact_query:harbour": 4,
        "exact_document:harbour": 2,
        "near_document:harbour": 1,
        "run_document:harbour": 1,
        "near_query:harbour": 1,
    }


def test_leakage_takes_a_folder_of_collections_and_records_no_path(collection: Path) -> None:
    declared = declare_steps([{"leakage": {"collections": [str(collection.parent)], "run_words": 0}}])
    pipeline = Pipeline(declared)
    assert pipeline.steps[0].record()["options"] == {"collections": ["harbour"], "run_words": 0}
    pipeline.close()
    assert pipeline.steps[0].record()["checked_against"] == {"harbour": {"queries": 2, "documents": 2}}
    with pytest.raises(InputError, match=r"has no corpus\.jsonl, nor do its subfolders"):
        declare_steps([{"leakage": {"collections": [str(collection / "..")[:-3] + "/../.."]}}])


def test_leakage_on_a_real_collection(data_dir: Path) -> None:
    """Every document and every query of a collection is found again; of a text that is not there, nothing."""
    from modeling_tsarank.eval.beir import read_corpus, read_queries

    folder = data_dir / "beir" / "adi"
    queries, corpus = read_queries(folder / "queries.jsonl"), read_corpus(folder / "corpus.jsonl")
    pairs = [pair(query, PROSE) for query in queries.values()]
    pairs += [pair("a title nobody used", document.text) for document in corpus.values() if document.text.strip()]
    kept, _ = run([{"leakage": {"collections": [str(folder)]}}], [*pairs, pair("how ships are steered", PROSE)])
    assert [one.query for one in kept] == ["how ships are steered"]


class _Overlap:
    """A scorer of the reranker's interface that counts common words."""

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> np.ndarray:
        return np.array([len(set(q.split()) & set(d.split())) for q, d in pairs], dtype=np.float32)


def test_scopes_limit_a_step_to_types_and_sources() -> None:
    pairs = [
        pair("q", "d", "title_body", "a:1"),
        pair("q", "d", "title_body", "b"),
        pair("q", "d", "summary_content", "a:2"),
    ]
    kept, dropped = run([{"exclude": {"sources": ["a:*"], "types": ["title_body"], "reason": "old"}}], pairs)
    assert kept == pairs[1:]
    assert dropped[0] == {"old": 1}


def test_examples_of_dropped_pairs_are_kept_evenly() -> None:
    pipeline = Pipeline(declare_steps(["length"]), examples=3, seed=1)
    list(pipeline.run([pair("q", f"d{number}") for number in range(50)]))
    examples = pipeline.dropped_examples[0, "document_too_short"]
    assert len(examples) == 3
    assert len({one.document for one in examples}) == 3


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("length", "filters must be a list"),
        (["lenght"], "no filter 'lenght'; there are clean"),
        ([{"length": {"words": 3}}], "no option 'words'; there are query_words"),
        ([{"length": {"query_words": 3}}], "query_words must be of type list"),
        ([{"length": {"query_words": [5, 3]}}], "must be the minimum and maximum words"),
        ([{"length": {"longer_document": "yes"}}], "longer_document must be of type bool"),
        ([{"near_duplicates": {"threshold": 0.1}}], "threshold must be from 0.4 to 1"),
        ([{"near_duplicates": {"threshold": "high"}}], "threshold must be of type float"),
        ([{"boilerplate": {"patterns": ["("]}}], "is not a regular expression"),
        ([{"clean": {"replace_query": [["a"]]}}], r"expected a pattern or \[pattern, replacement\]"),
        ([{"clean": {"replace_query": [["a", r"\2"]]}}], "cannot replace"),
        ([{"language": {"languages": []}}], "languages must be codes"),
        ([{"leakage": {}}], "must name at least one"),
        ([{"repeats": {"per_query": 0}}], "at least 1"),
        ([{"length": {"types": ["poem"]}}], "no 'poem'; there are title_body"),
        ([{"length": False}], "expected options by name"),
        ([{"length": {}, "clean": {}}], "expected a name, or one name with its options"),
    ],
)
def test_wrong_declarations(declared: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        declare_steps(declared)


def test_views_compare_words_only() -> None:
    one, other = TextView("The Café: naïve, 2nd edition"), TextView("the CAFÉ naïve — 2ND Edition!")
    assert one.key == other.key
    assert TextView("a b c").key != TextView("a c b").key
    assert TextView("a b c").bag == TextView("c b a b").bag
    assert TextView("one two").grams(3).shape == (1,)
    assert TextView("").grams(3).shape == (0,)

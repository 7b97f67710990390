"""Run files and qrels: every format read, written and complained about."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.eval.run_files import (
    ranked,
    read_qrels,
    read_run,
    tag_of,
    write_run,
)
from modeling_tsarank.ranking_errors import InputError


def written(tmp_path: Path, text: str, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


IDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6).filter(
    lambda text: text.split() == [text] and not text.startswith(("{", "[", "\ufeff"))
)
RUNS = st.dictionaries(
    IDS, st.dictionaries(IDS, st.floats(allow_nan=False), min_size=1, max_size=6), min_size=1, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(run=RUNS)
def test_a_written_run_reads_back_with_every_digit(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    write_run(path, run, "tag")
    assert read_run(path) == run


def test_a_run_is_written_in_trec_evals_order(tmp_path):
    path = tmp_path / "new" / "run.trec"
    write_run(path, {"q2": {"a": 1.0, "b": 1.0, "c": 2.5}, "q1": {"x": -3.0}}, "bm25")
    assert path.read_text().splitlines() == [
        "q2 Q0 c 1 2.5 bm25",
        "q2 Q0 b 2 1.0 bm25",
        "q2 Q0 a 3 1.0 bm25",
        "q1 Q0 x 1 -3.0 bm25",
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["run.trec"]


def test_ranked_compares_scores_as_trec_eval_does():
    assert ranked({"a": 1.0 + 1e-12, "b": 1.0}) == ["b", "a"]
    assert ranked({"a": 1e300, "b": 2e300, "c": -1e300}) == ["b", "a", "c"]
    assert ranked({"10": 0.0, "9": 0.0, "é": 0.0}, depth=2) == ["é", "9"]
    assert ranked({}) == []


@pytest.mark.parametrize(
    ("query", "document", "tag"), [("a b", "d", "t"), ("q", "", "t"), ("q", "d\t", "t"), ("q", "d", "")]
)
def test_ids_that_six_columns_cannot_hold_are_refused_and_leave_the_old_file(tmp_path, query, document, tag):
    path = written(tmp_path, "old")
    with pytest.raises(InputError, match="white space"):
        write_run(path, {"fine": {"d": 1.0}, query: {document: 1.0}}, tag)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(InputError, match="query 'q', document 'd': the score is not a number"):
        write_run(tmp_path / "run", {"q": {"d": float("nan")}}, "tag")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "q1 Q0 d1 1 2.5 tag\nq1 Q0 d2 2 1e-3 tag\n\nq2\tQ0\td1\t1\t-inf\ttag\n",
        '{"query": {"text": "x", "qid": "q1"}, "candidates": [{"docid": "d1", "score": 2.5, "doc": {"contents": "…"}},'
        ' {"docid": "d2", "score": 0.001}]}\n\n'
        '{"query": {"text": "y", "qid": "q2"}, "candidates": [{"docid": "d1", "score": -Infinity}]}\n',
        '\n[{"query": "x", "hits": [{"qid": "q1", "docid": "d1", "rank": 1, "score": "2.5", "content": "…"},'
        ' {"qid": "q1", "docid": "d2", "score": 0.001}]},\n'
        ' {"query": "y", "hits": [{"qid": "q2", "docid": "d1", "score": "-inf"}]}]',
    ],
    ids=["trec", "jsonl", "json"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_formats_are_recognized(tmp_path, text, packed):
    if packed:
        path = tmp_path / "run.gz"
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path = written(tmp_path, "\ufeff" + text)
    assert read_run(path) == {"q1": {"d1": 2.5, "d2": 0.001}, "q2": {"d1": float("-inf")}}


def test_ms_marco_ranks_and_candidates_without_scores_keep_their_order(tmp_path):
    assert read_run(written(tmp_path, "7\t11\t1\n7\t5\t2\n")) == {"7": {"11": 1.0, "5": 0.5}}
    record = {"query": {"qid": 7, "text": "x"}, "candidates": [{"docid": 11}, {"docid": 5, "score": None}]}
    assert read_run(written(tmp_path, json.dumps(record))) == {"7": {"11": 1.0, "5": 0.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("[]", "contains no query"),
        ("q Q0 d 1 2.5 tag\nq Q0 e 2 1.5\n", "line 2: 5 columns, expected 6"),
        ("q Q0 d 1 high tag\n", "line 1: the score 'high' is not a number"),
        ("q Q0 d 1 nan tag\n", "line 1: the score 'nan' is not a number"),
        ("q d 0\n", "line 1: 0 is neither"),
        ("q Q0 d 1 2.5 tag\nq Q0 d 2 1.5 tag\n", "line 2: query 'q', document 'd' already has the score 2.5, now 1.5"),
        ('{"query": {"qid": "q"}, "candidates": []}\n{oops', "line 2: not JSON"),
        ('{"query": {"qid": "q"}, "candidates": []}\n3', "line 2: expected a JSON object, found 3"),
        ('[{"query": {"qid": "q"},]', "line 1: not JSON"),
        ("[3]", "row 1: expected a JSON object"),
        ('{"query": {"qid": "q"}}', "line 1: expected a list of objects under 'candidates'"),
        ('{"query": "q", "candidates": [{"docid": "d"}]}', r"candidate 1: no 'query_id' or 'qid'"),
        ('{"query": {"qid": "q"}, "candidates": [{"score": 1}]}', "candidate 1: no '_id', 'docid'"),
        ('{"query": {"qid": "q"}, "candidates": [{"docid": "d", "score": true}]}', "the score True is not a number"),
    ],
)
def test_wrong_runs_are_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_run(written(tmp_path, text))


def test_repeated_lines_are_kept_once_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = read_run(written(tmp_path, "q Q0 d 1 2.5 tag\n" * 3))
    assert run == {"q": {"d": 2.5}}
    assert "line 3: merged 2 duplicate line(s)" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
        "q1\td1\t2\r\nq1\td2\t0.0\r\nq2\td1\t-1\r\n",
        "q1\t0 d1\t2\nq1 0\td2\v0\n\nq2 0 d1 -1\n",
    ],
    ids=["beir", "beir-no-header", "trec"],
)
def test_qrels_of_both_layouts(tmp_path, text):
    assert read_qrels(written(tmp_path, text)) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no judgment"),
        ("query-id\tcorpus-id\tscore\n", "contains no judgment"),
        ("q 0 d 1 x\n", "line 1: 5 columns, expected TREC's 4"),
        ("q\td\t1\nq\te\tyes\n", "line 2: the relevance 'yes' is not a number"),
        ("q\td\t1\nq\te\t0.5\n", "line 2: the relevance '0.5' is not a whole number"),
        ("q\td\tinf\n", "the relevance 'inf'"),
        ("q 0 d 1\nq 0 d 2\n", "line 2: query 'q', document 'd' already has the relevance 1, now 2"),
    ],
)
def test_wrong_qrels_are_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_qrels(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_run(tmp_path / "missing")
    with pytest.raises(InputError, match="is a folder"):
        read_qrels(tmp_path)
    (tmp_path / "latin").write_bytes(b"q Q0 caf\xe9 1 1.0 tag\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_run(tmp_path / "latin")
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"q Q0 d 1 1.0 tag\n" * 500)[:40])
    with pytest.raises(InputError, match="damaged or incomplete"):
        read_run(tmp_path / "torn.gz")


def test_real_runs_read_and_write_unchanged(data_dir, tmp_path):
    path = data_dir / "beir" / "trec-dl-19" / "runs" / "bm25.top100.trec"
    run = read_run(path)
    assert len(run) == 43
    write_run(tmp_path / "again.trec", run, "bm25")
    assert (tmp_path / "again.trec").read_text().split() == path.read_text().split()


def test_tags_are_one_word():
    assert tag_of("models/my model") == "my_model"
    assert tag_of("") == "run"


MIXED = "q1\t0 d3\t1\n q1 \t0\x0b d4\x0c 0\r\nq2 0 \t d3 2\n"


def test_qrels_with_mixed_white_space_are_read_as_trec_eval_reads_them(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels = read_qrels(written(tmp_path, MIXED))
    assert qrels == {"q1": {"d3": 1, "d4": 0}, "q2": {"d3": 2}}
    assert qrels == pytrec_eval.parse_qrel(MIXED.split("\n")[:-1])


def test_runs_with_mixed_white_space_are_read_as_trec_eval_reads_them(tmp_path):
    run = read_run(written(tmp_path, "q1\tQ0 d 1\t2.5 tag\n  q1 Q0\te\u00a0e 2  1.5\ttag \r\n"))
    assert run == {"q1": {"d": 2.5, "e\u00a0e": 1.5}}  # a no-break space is no white space for C
    write_run(tmp_path / "again.trec", run, "tag")
    assert read_run(tmp_path / "again.trec") == run


def test_qrels_under_beirs_header_are_divided_at_tabs_only(tmp_path):
    text = "query-id\tcorpus-id\tscore\nq 1\td 3\t1\n"
    assert read_qrels(written(tmp_path, text)) == {"q 1": {"d 3": 1}}
    with pytest.raises(InputError, match="line 3: 1 columns, expected 3 separated by tabs"):
        read_qrels(written(tmp_path, text + "q1 d3 1\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q a 2\nq b 1\nr a 1\n", {"q": {"a": 0.5, "b": 1.0}, "r": {"a": 1.0}}),
        ("q\ta\t100.5\nq\tb\t90\n", {"q": {"a": 100.5, "b": 90.0}}),
        ("q a -1.5\nr a 3\n", {"q": {"a": -1.5}, "r": {"a": 3.0}}),
        ("q a 1\nr b 0.25\n", {"q": {"a": 1.0}, "r": {"b": 0.25}}),
    ],
    ids=["ranks", "scores, some whole", "scores below 0", "one document and a score"],
)
def test_three_columns_are_ranks_or_scores_where_that_is_certain(tmp_path, text, expected):
    assert read_run(written(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("q a 100\nq b 90\n", 1),
        ("q a 1\nq b 2\nr a 1\nr b 3\n", 4),
        ("q a 0\nq b 1\n", 1),
        ("q a 1\nq b 1\n", 2),
        ("q a 1.0\nq b 2.0\n", 1),
        ("q a 1\nq b 2\nr a 1\nr b 2.5\n", 4),
        ("q a -1\n", 1),
        ("q a 1\nq b " + "9" * 5000 + "\n", 2),
    ],
)
def test_three_columns_that_may_be_either_are_refused_naming_line_and_option(tmp_path, text, line):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=rf", line {line}: .*--run-format ranks or --run-format scores"):
        read_run(path)
    scores = read_run(path, "scores")
    assert list(scores["q"].values()) == [float(row.split()[2]) for row in text.splitlines() if row[0] == "q"]


def test_the_run_format_decides(tmp_path):
    path = written(tmp_path, "q a 3\nq b 1\n")
    assert read_run(path, "ranks") == {"q": {"a": 1 / 3, "b": 1.0}}
    assert read_run(path, "scores") == {"q": {"a": 3.0, "b": 1.0}}
    with pytest.raises(InputError, match="line 1: the rank '0' is not a whole number of 1 or more"):
        read_run(written(tmp_path, "q a 0\n"), "ranks")
    with pytest.raises(InputError, match="no run format 'trec'; there are ranks, scores"):
        read_run(path, "trec")


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "RUN", "RUN", "--qrels", "QRELS"],
        ["tune-fusion", "RUN", "RUN", "--qrels", "QRELS", "--output", "OUT"],
    ],
)
def test_every_command_that_takes_run_files_takes_their_format(tmp_path, capsys, command):
    from modeling_tsarank.cli import main

    (tmp_path / "run.tsv").write_text("q a 30\nq b 10\nr a 20\nr b 10\n")
    (tmp_path / "qrels").write_text("q 0 a 1\nr 0 b 1\n")
    places = {"RUN": tmp_path / "run.tsv", "QRELS": tmp_path / "qrels", "OUT": tmp_path / "out"}
    arguments = [str(places.get(part, part)) for part in command]
    assert main(arguments) == 2
    assert "line 1: " in (said := capsys.readouterr().err)
    assert "--run-format" in said
    assert main([*arguments, "--run-format", "scores"]) == 0


def _written(folder, text):
    path = folder / "file.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_candidates_of_which_some_have_no_score_are_refused(tmp_path):
    row = {"query": {"qid": "q"}, "candidates": [{"docid": "a", "score": -7.5}, {"docid": "b", "score": None}]}
    with pytest.raises(InputError, match="line 1: 1 of 2 candidates have no score"):
        read_run(_written(tmp_path, json.dumps(row) + "\n"))


def test_candidates_without_scores_are_ordered_by_their_ranks(tmp_path):
    hits = [{"docid": "a", "rank": 2}, {"docid": "b", "rank": 1}]
    assert read_run(_written(tmp_path, json.dumps({"qid": "q", "hits": hits}))) == {"q": {"a": 0.5, "b": 1.0}}
    with pytest.raises(InputError, match="a rank must be a whole number"):
        read_run(_written(tmp_path, json.dumps({"qid": "q", "hits": [{"docid": "a", "rank": "x"}]})))


def test_digits_of_other_scripts_are_no_scores_and_no_grades(tmp_path):
    with pytest.raises(InputError, match="line 1: the score"):
        read_run(_written(tmp_path, "q1 Q0 d1 1 \u0662.\u0665 t\n"))
    with pytest.raises(InputError, match="line 1: the relevance"):
        read_qrels(_written(tmp_path, "q1 0 d1 \uff11\n"))


def test_beirs_qrels_are_read_as_its_own_loader_reads_them(tmp_path):
    header = "query-id\tcorpus-id\tscore\n"
    assert read_qrels(_written(tmp_path, header + '"q1"\t"a ""b"""\t1\n')) == {"q1": {'a "b"': 1}}
    for row in ("q1\td1 \t1\n", "\u00a0q1\td1\t1\n", '"q1\td1\t1\n'):
        with pytest.raises(InputError, match="line 2: "):
            read_qrels(_written(tmp_path, header + row))

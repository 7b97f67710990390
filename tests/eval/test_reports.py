"""Tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from modeling_tsarank.eval.reports import (
    Row,
    average_row,
    comparison_cells,
    markdown_table,
    measure_title,
    result_cells,
    result_lines,
    result_pages,
    text_table,
)
from modeling_tsarank.eval.significance import compare_values, correct
from modeling_tsarank.files.writing import whole_file, write_csv, write_text
from modeling_tsarank.ranking_errors import ResourceError


ROWS = [
    Row("scifact", 300, [{"ndcg@10": 0.676, "map": 0.5}, {"ndcg@10": 0.7149, "map": 0.625}]),
    Row("a|b", 50, [{"ndcg@10": 0.3, "map": 0.2}, {"ndcg@10": 0.25, "map": 0.125}]),
]


def test_the_table_of_the_papers() -> None:
    rows = [*ROWS, average_row("Average", ROWS)]
    assert result_pages(rows, ["BM25", "Model"], ["ndcg@10"]) == (
        "## nDCG@10 (x 100)\n\n"
        "| Dataset | Queries | BM25 | Model | Gain |\n"
        "|:---|---:|---:|---:|---:|\n"
        "| scifact | 300 | 67.6 | 71.5 | +3.9 |\n"
        "| a\\|b | 50 | 30.0 | 25.0 | -5.0 |\n"
        "| Average | 350 | 48.8 | 48.2 | -0.6 |\n"
    )


def test_a_mixture_is_a_third_system(tmp_path: Path) -> None:
    rows = [Row("one", 3, [{"map": 0.1}, {"map": 0.2}, {"map": 0.35}])]
    systems = ["BM25", "Model", "Model + 0.2 x BM25"]
    assert result_cells(rows, systems, "map")[1][0] == ["one", "3", "10.0", "20.0", "35.0", "+25.0"]
    write_csv(tmp_path / "table.csv", *result_lines([*rows, average_row("Average", rows)], systems, ["map"]))
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert [(row["dataset"], row["system"], row["map"]) for row in csv.DictReader(stream)] == [
            ("one", "BM25", "10.00"),
            ("one", "Model", "20.00"),
            ("one", "Model + 0.2 x BM25", "35.00"),
            ("Average", "BM25", "10.00"),
            ("Average", "Model", "20.00"),
            ("Average", "Model + 0.2 x BM25", "35.00"),
        ]


def test_parts_are_averaged_as_one_dataset() -> None:
    whole = average_row("cqadupstack", ROWS)
    assert (whole.dataset, whole.queries) == ("cqadupstack", 350)
    assert whole.systems[0]["ndcg@10"] == pytest.approx(0.488)
    assert average_row("Average", [whole, ROWS[0]]).systems[0]["ndcg@10"] == pytest.approx((0.488 + 0.676) / 2)


@pytest.mark.parametrize(
    ("name", "title"),
    [("ndcg@10", "nDCG@10"), ("map", "MAP"), ("mrr@10", "MRR@10"), ("recall@100", "Recall@100"), ("p@5", "P@5")],
)
def test_titles(name: str, title: str) -> None:
    assert measure_title(name) == title


def test_text_table_is_aligned() -> None:
    assert text_table(["a", "bb"], [["long", "1"], ["x", "22"]]) == "a     bb\n----  --\nlong   1\nx     22\n"
    assert text_table(["only", "header"], []).count("\n") == 2
    assert markdown_table(["x"], [["1"]]) == "| x |\n|:---|\n| 1 |\n"


def test_corrected_columns_only_with_several_datasets() -> None:
    one = compare_values([0.1, 0.2, 0.3], [0.2, 0.4, 0.35], name="one")
    header, body = comparison_cells(correct([one]))
    assert len(header) == len(body[0]) == 10
    header, body = comparison_cells(correct([one, one]))
    assert header[-1] == "p (rand., Holm)"
    assert len(header) == len(body[0]) == 12
    assert body[0][4] == "+11.67"


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "kept.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "kept.txt") as temporary:
        raise ZeroDivisionError(temporary.write_text("half"))
    assert (tmp_path / "kept.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    with pytest.raises(ResourceError, match="cannot write"):
        write_text(tmp_path / "kept.txt" / "below.txt", "text")
    with pytest.raises(ResourceError, match="cannot write"), whole_file(tmp_path / "kept.txt" / "below.png"):
        pass

"""Every command that goes on after a kill gives the bytes of an undisturbed run, in one process and in two."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import join, start

from modeling_tsarank.cli import main
from modeling_tsarank.files.result_log import ResultLog
from modeling_tsarank.trainers.data import teacher_scores


SECONDS_A_LINE = 0.05  # so that a kill finds the command at work
MODEL = ["--device", "cpu", "--dtype", "float32"]


class Case:
    """A command, where it logs, and what it makes."""

    list_pairs = 4  # of a line of the log, where it is not an option

    def __init__(self, folder: Path, collection: Path, model: Path) -> None:
        self.folder, self.collection, self.model = folder, collection, model
        self.output = folder / "out"

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def log(self) -> Path:
        raise NotImplementedError

    def results(self) -> dict[str, bytes]:
        raise NotImplementedError


class Evaluate(Case):
    def arguments(self) -> list[str]:
        options = ["--top-k", "20", "--block-pairs", "8", "--quiet", "--cache-dir", str(self.folder / "cache")]
        place = ["--dataset", str(self.collection), "--output", str(self.output), "--model", str(self.model)]
        return ["evaluate", *place, *MODEL, *options]

    def log(self) -> Path:
        return self.output / self.collection.name / "scores.jsonl"

    def results(self) -> dict[str, bytes]:
        names = ("run.trec", "first_stage.trec", "per_query.csv")
        return {name: (self.log().parent / name).read_bytes() for name in names}


class Score(Case):
    def arguments(self) -> list[str]:
        pairs, generator = self.folder / "pairs.jsonl", random.Random(0)
        words = ["ship", "crane", "dock", "tide", "pilot", "anchor", "cargo", "quay", "rope", "sea"]
        rows = [
            {"query": " ".join(generator.sample(words, 3)), "document": " ".join(generator.choices(words[:6], k=2))}
            for _ in range(240)
        ]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        place = ["--pairs", str(pairs), "--output", str(self.output), "--model", str(self.model)]
        return ["score", *place, *MODEL, "--shard-pairs", "16"]

    def log(self) -> Path:
        return self.output / "log.jsonl"

    def results(self) -> dict[str, bytes]:
        paths = [*self.output.glob("*.parquet"), self.output / "settings.json", self.output / "summary.json"]
        return {path.name: path.read_bytes() for path in paths}


class Data(Case):
    """A command of `tsarank data`, whose log is the cache of scores."""

    def log(self) -> Path:
        return self.folder / "out.cache.jsonl"

    def place(self) -> list[str]:
        output = self.folder / "out"
        return ["--output", str(output), "--index-cache", str(self.folder / "indexes"), *MODEL]

    def results(self) -> dict[str, bytes]:
        paths = [self.output] if self.output.is_file() else (self.output / "data").iterdir()
        return {path.name: path.read_bytes() for path in paths}


class Mine(Data):
    def arguments(self) -> list[str]:
        judge = ["--judge", str(self.model), "--absolute-margin", "0", "--depth", "30", "--count", "3"]
        return [
            "data",
            "mine",
            "--dataset",
            str(self.collection),
            "--split",
            "test",
            "--first-stage",
            "bm25",
            *judge,
            *self.place(),
        ]


class MineReranked(Data):
    def arguments(self) -> list[str]:
        stage = ["--first-stage", f"rerank:{self.model}", "--rerank-depth", "30", "--depth", "20", "--count", "3"]
        return ["data", "mine", "--dataset", str(self.collection), "--split", "test", *stage, *self.place()]


class Lists(Data):
    def arguments(self) -> list[str]:
        queries = self.folder / "queries.jsonl"
        rows = [json.loads(line) for line in (self.collection / "queries.jsonl").read_text().splitlines()]
        unique = {row["text"]: row for row in rows}.values()
        queries.write_text("".join(json.dumps({**row, "metadata": {"query_type": "given"}}) + "\n" for row in unique))
        given = ["--corpus", str(self.collection), "--queries", str(queries), "--validation-share", "0.25"]
        teacher = ["--first-stages", "bm25", "--list-size", "20", "--teacher-scores", str(self.model)]
        return ["data", "lists", *given, *teacher, *self.place()]


class Scores(Data):
    list_pairs = 16  # several lists a line

    def arguments(self) -> list[str]:
        rows = self.folder / "rows.jsonl"
        texts = [json.loads(line)["text"] for line in (self.collection / "corpus.jsonl").read_text().splitlines()]
        generator = random.Random(0)
        lines = [
            {
                "query": f"{text} {number}",
                "positive": text,
                "negatives": generator.sample([other for other in texts if other != text], 6),
            }
            for number, text in enumerate(texts)
        ]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ["data", "scores", str(rows), "--teacher", str(self.model), "--output", str(self.output), *MODEL]


CASES = [Evaluate, Score, Mine, MineReranked, Lists, Scores]


def command(arguments: list[str]) -> Callable[[int], None]:
    def call(rank: int) -> None:
        add = ResultLog.add

        def slowly(self, results) -> None:
            add(self, results)
            time.sleep(SECONDS_A_LINE)

        ResultLog.add = slowly  # type: ignore[method-assign]
        raise SystemExit(main(arguments))

    return call


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_after_kills_the_bytes_are_the_same(
    case: type[Case],
    processes: int,
    small_folder: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_scores, "CHUNK_PAIRS", case.list_pairs)
    cases = {name: case(tmp_path / name, small_folder, tiny_llama) for name in ("calm", "killed")}
    for one in cases.values():
        one.folder.mkdir()
    assert main(cases["calm"].arguments()) == 0
    killed, total = cases["killed"], lines(cases["calm"].log())
    arguments, generator = killed.arguments(), random.Random(f"{case} {processes}")
    for _ in range(2):
        before = lines(killed.log())
        running = start(processes, command(arguments))
        deadline = time.monotonic() + 60
        while lines(killed.log()) < before + 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 2 * SECONDS_A_LINE))
        for process in running:
            process.kill()
        for process in running:
            process.join()
        assert running[0].exitcode == -signal.SIGKILL
        assert before + 3 <= lines(killed.log()) < total
    with killed.log().open("ab") as stream:  # what a kill in the middle of a write leaves
        stream.write(b'{"settings": "')
    kept = killed.log().read_bytes()
    join(start(processes, command(arguments)))
    assert killed.log().read_bytes().startswith(kept)
    # The cut line; and what another process had finished may have been done again, never what was logged.
    assert lines(killed.log()) == total + 1
    assert killed.results() == cases["calm"].results()

"""The recipe of a release: its files, the preparation of its data on self-written raw files, and the small search."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_tsarank import cli
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers import recipe_commands
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.data.list_building import read_queries
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.recipes.release_data import prepare, read_plan
from modeling_tsarank.trainers.recipes.release_sources import LabelledQuery, Pool, choose_dev, reread
from modeling_tsarank.trainers.script_arguments import (
    BaseModelArguments,
    DataArguments,
    RankerArguments,
    RerankingArguments,
)
from modeling_tsarank.trainers.script_utils import RECIPES, parse_arguments, read_recipe
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.training_checks import row_problem
from modeling_tsarank.trainers.training_data import load_training_rows


FOLDER = RECIPES / "smollm2_135m"
KINDS: dict[str, Any] = {
    "cpt": (BaseModelArguments, DataArguments, CPTConfig, RerankingArguments),
    "sft": (RankerArguments, DataArguments, RankingSFTConfig, RerankingArguments),
    "distill": (RankerArguments, DataArguments, RankingDistillConfig, RerankingArguments),
}
SEARCH = RECIPES.parent.parent / "benchmarks" / "search.py"


# ---- shipped files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_stage_and_its_size_are_understood_and_do_not_overlap(kind: str, size: str, tmp_path: Path) -> None:
    stage, sized = read_recipe(FOLDER / f"{kind}.yaml"), read_recipe(FOLDER / size / f"{kind}.yaml")
    # A size may lengthen a training; the rest of the recipe is the same at every size.
    assert stage.keys() & sized.keys() <= {"num_train_epochs"}
    machine = ["--bf16", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    configs = ["--config", f"smollm2_135m/{kind}", "--config", f"smollm2_135m/{size}/{kind}"]
    _, data, training, _ = parse_arguments(KINDS[kind], [*configs, *machine], f"tsarank train {kind}", "")
    for option, value in {**stage, **sized}.items():
        if option not in ("bf16", "use_cpu", "save_strategy") and hasattr(training, option):
            assert getattr(training, option) == value, option
    assert data.train_data is None


def test_the_adapters_of_both_stages_fit_into_twenty_megabytes() -> None:
    ranks = sum(read_recipe(FOLDER / f"{kind}.yaml")["lora_r"] for kind in ("cpt", "sft"))
    # Llama's seven linear layers with the sizes of SmolLM2-135M: inputs and outputs together, times 30 blocks.
    ends = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    assert 2 * ranks * ends * 30 <= 20_000_000


def test_all_three_terms_are_in_the_release_and_the_ablations_take_them_out(tmp_path: Path) -> None:
    sft = read_recipe(FOLDER / "sft.yaml")
    assert sft["ntp"] is sft["dp"] is True
    assert 0 < sft["alpha"] < 1
    grid = load_search().read_grid(FOLDER / "ablations.yaml", tmp_path)
    assert grid["runs"]["without-both"] == {"ntp": False, "dp": False}
    assert grid["runs"]["both"] == {}
    assert grid["baselines"] == {"zero-shot": "zero-shot", "cpt-only": f"{tmp_path}/cpt-model"}


@pytest.mark.parametrize("name", ["search", "ablations"])
def test_every_run_of_a_shipped_grid_is_understood(name: str, tmp_path: Path) -> None:
    search = load_search()
    grid = search.read_grid(FOLDER / f"{name}.yaml", tmp_path)
    mixes = read_plan(FOLDER / "data.yaml", tmp_path)[0].mixes
    configs = [word for one in grid["config"] for word in ("--config", one)]
    for run, changes in grid["runs"].items():
        options = {**grid["options"], **changes, "output_dir": str(tmp_path)}
        assert Path(options["train_data"]).stem in mixes, run
        _, _, training, _ = parse_arguments(
            KINDS[grid["kind"]], [*configs, *search.arguments_of(options)], "tsarank train sft", ""
        )
        for option, value in changes.items():
            if option not in ("train_data", "model_name_or_path"):
                assert getattr(training, option) == value, (run, option)


def test_the_shipped_plan_names_only_training_data(tmp_path: Path) -> None:
    plan, weak = read_plan(FOLDER / "data.yaml", tmp_path)
    assert plan.leakage == (f"{tmp_path}/beir",)
    files = [name for source in plan.labelled for name in (*source.files, *source.dev_files)]
    assert files
    assert not any("test" in name or "scifact" in name for name in files)
    assert {one["type"] for one in weak["sources"]} == set(PAIR_TYPES)
    assert all(one["path"].startswith(f"{tmp_path}/weak_pairs/") for one in weak["sources"])
    # The brackets of the Treebank, which the plan's cleaning undoes.
    wikiqa = next(source for source in plan.labelled if source.name == "wikiqa").cleaner()
    assert wikiqa._mend("-LRB- a , b -RRB- it 's $ 2", wikiqa._document) == "(a, b) it's $2"


# ---- raw files of our own --------------------------------------------------------------------------


class Writer:
    """Texts of invented words, so that no two are near each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        ends = ("ba", "ko", "ti", "lu", "ren", "sa", "mi", "dor", "ve", "pun")
        self.words = [a + b + c for a in ends for b in ends for c in ends[:3]]

    def pair(self) -> tuple[str, str]:
        """A document of 24 words and a query of four of them."""
        document = self.random.sample(self.words, 24)
        return " ".join(document[:4]), " ".join(self.random.sample(document, 24))

    def text(self) -> str:
        return self.pair()[1]


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
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
                "distill_queries": 9,
                "distill_documents": 30,
            }
        )
    )
    return {"data": data, "plan": plan, "query": test_query, "document": test_document, "near": near}


@pytest.fixture(scope="module")
def release(raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "out"
    prepare(raw["plan"], raw["data"], folder)
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    names = ("cpt", "sft", "dev", "held_out", "distill")
    paths = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def texts_of(folder: Path) -> set[str]:
    """Every query and document that anything is trained on."""
    found = {
        row[side]
        for name in ("train", "validation")
        for row in rows_of(folder / "cpt" / f"{name}.jsonl")
        for side in ("query", "document")
    }
    for path in (folder / "sft").glob("*.jsonl"):
        for row in rows_of(path):
            found |= {row["query"], *row["positives"], *row["negatives"]}
    return found | {
        row["text"] for name in ("corpus", "queries") for row in rows_of(folder / "distill" / f"{name}.jsonl")
    }


def test_training_files_hold_no_text_of_a_test_collection(raw: dict[str, Any], release: Path) -> None:
    trained = {text.lower() for text in texts_of(release)}
    assert not trained & {raw["query"], raw["document"], raw["near"], "some words"}
    dev = {row["text"] for path in (release / "dev").glob("*/*.jsonl") for row in rows_of(path)}
    assert not dev & {raw["query"], raw["near"]}
    found = json.loads((release / "counts.json").read_text())["leakage"]["test_collections"]["found"]
    assert found["near_document:exam"] >= 12
    assert found["exact_query:exam"] >= 1


def test_development_queries_and_their_positives_are_not_trained_on(release: Path) -> None:
    held = {row["text"] for name in ("corpus", "queries") for row in rows_of(release / "held_out" / f"{name}.jsonl")}
    assert len(held) == 2 * (3 + 12 + 4)
    assert not held & texts_of(release)
    assert (
        json.loads((release / "counts.json").read_text())["leakage"]["held_out"]["found"]["exact_query:held_out"] >= 1
    )


def test_development_collections_have_candidates_with_a_positive_among_them(release: Path) -> None:
    counts = json.loads((release / "counts.json").read_text())["sources"]
    for name, queries in (("objects", 3), ("texts", 12), ("answers", 4)):
        collection = load_collection(release / "dev" / name, "dev")
        run = read_run(collection.runs["candidates"])
        assert len(run) == counts[name]["dev"] == queries
        for query_id, scores in run.items():
            assert 1 < len(scores) <= 5
            assert scores.keys() <= collection.documents.keys()
            assert any(collection.qrels[query_id].get(document_id) == 1 for document_id in scores)


def test_hard_development_queries_are_those_that_the_first_stage_gets_wrong(tmp_path: Path) -> None:
    easy = LabelledQuery("easy", "moss lamp", ("moss lamp",))
    hard = LabelledQuery("hard", "tin drum", ("a drum for the long parade through every street of the town",))
    lost = LabelledQuery("lost", "far shore", ("nothing in common",))
    rows = [easy, hard, lost]
    pool = Pool("p", [*(row.positives[0] for row in rows), "tin drum", "moss", "far shore"], tmp_path)

    def chosen(hard: bool, count: int = 3) -> set[str]:
        return {row.query_id for row in choose_dev(rows, pool, count, 2, hard, random.Random(0))[0]}

    assert chosen(hard=False) == {"easy", "hard"}
    assert chosen(hard=True) == {"hard"}
    assert chosen(hard=False, count=0) == set()
    assert len(chosen(hard=False, count=1)) == 1


def test_rows_can_be_trained_on_and_keep_the_shares(release: Path) -> None:
    rows = rows_of(release / "sft" / "all.jsonl")
    by_source = {name: [row for row in rows if row["source"] == name] for name in ("objects", "texts", "answers")}
    assert [len(one) for one in by_source.values()] == [15, 15, 30]
    assert all(row_problem(row, "sft") is None for row in rows)
    # A development query's positive among the mined ones is taken out again.
    sizes = {len(row["negatives"]) for row in rows}
    assert min(sizes) >= 1
    assert max(sizes) == 4
    # Cleaned: the bracket before the query, and what was once read as Latin-1.
    assert not any(row["query"].startswith(")") for row in by_source["texts"])
    assert all(row["positives"][0].endswith(" café") for row in by_source["texts"])
    # Six queries in 30 rows: each five times.
    answers = [row["query"] for row in by_source["answers"]]
    assert {answers.count(query) for query in answers} == {5}
    assert all(row_problem(row, "cpt") is None for row in rows_of(release / "cpt" / "train.jsonl"))
    assert {row["type"] for row in rows_of(release / "cpt" / "train.jsonl")} == set(PAIR_TYPES)
    assert 0 < len(read_queries([release / "distill" / "queries.jsonl"])) <= 9
    assert 3 <= len(rows_of(release / "distill" / "corpus.jsonl")) <= 30


def test_counts_say_what_was_read_and_written(raw: dict[str, Any], release: Path) -> None:
    text = (release / "counts.json").read_text()
    counts = json.loads(text)
    assert str(raw["data"]) not in text
    assert str(release) not in text
    assert counts["weak"]["read"] == 7 * 32
    assert counts["sources"]["texts"]["left_out"]["no positive"] == 1
    assert counts["sources"]["objects"]["usable"] == 12
    for name, one in counts["files"].items():
        assert one["rows"] == len(rows_of(release / name))
    assert {"objects.jsonl.gz", "texts_dev.jsonl.gz", "question_answer.jsonl.gz"} <= counts["inputs"].keys()
    assert all(len(one["sha256"]) == 64 for one in counts["inputs"].values())


def test_the_same_plan_gives_the_same_bytes_and_keeps_the_weak_pairs(
    raw: dict[str, Any], release: Path, tmp_path: Path
) -> None:
    prepare(raw["plan"], raw["data"], tmp_path / "again")
    before = files_of(release)
    assert files_of(tmp_path / "again") == before
    weak = release / "weak" / "provenance.json"
    made = weak.stat().st_mtime_ns
    (release / "sft" / "all.jsonl").unlink()  # as if it had been interrupted
    prepare(raw["plan"], raw["data"], release)
    assert weak.stat().st_mtime_ns == made
    assert files_of(release) == before


def test_another_plan_does_not_go_on_in_the_same_folder(raw: dict[str, Any], release: Path) -> None:
    with pytest.raises(InputError, match="filled with another plan or limit"):
        prepare(raw["plan"], raw["data"], release, limit=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixes": {"all": {"nobody": 1}}}, "names 'nobody'; there are objects, texts, answers"),
        ({"mixes": {"all": {"texts": 0}}}, "must give shares above 0"),
        ({"leakage": []}, "leakage must name the test collections"),
        ({"sources": [{"name": "x"}]}, "needs either files or types"),
        ({"sources": [{"name": "x", "files": ["a"], "mining": {"depht": 3}}]}, "no option 'depht'"),
        ({"sources": [{"name": "x", "types": ["question_answer"], "dev_files": ["a"]}]}, "dev_files without files"),
        ({"sources": [{"name": "a/b", "files": ["a"]}]}, "it names a folder"),
        ({"leakage": "beir"}, "leakage must be of type list"),
        ({"seeds": 3}, "no option 'seeds'"),
        ({"weak_recipe": "none.yaml"}, r"none\.yaml cannot be read"),
        ({"sources": [{"name": "x", "files": ["gone"]}], "mixes": {}}, r"there is no .*gone\.jsonl\.gz"),
    ],
)
def test_a_wrong_plan_is_one_line(raw: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    plan = yaml.safe_load(raw["plan"].read_text()) | change
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "weak.yaml").write_text((raw["data"] / "weak.yaml").read_text())
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "plan.yaml", raw["data"], tmp_path / "out")


def test_a_row_of_no_layout_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    write_gz(tmp_path / "supervised" / "odd.jsonl.gz", [{"query": "a", "good": ["b"], "bad": ["c"]}])
    for name in ("weak_pairs", "beir"):
        (tmp_path / name).symlink_to(raw["data"] / name)
    plan = yaml.safe_load(raw["plan"].read_text()) | {"sources": [{"name": "odd", "files": ["odd"]}], "mixes": {}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "weak.yaml").write_text((raw["data"] / "weak.yaml").read_text())
    with pytest.raises(InputError, match=r"odd\.jsonl\.gz, line 1"):
        prepare(tmp_path / "plan.yaml", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"), [("cafÃ©", "café"), ("café", "café"), ("日本", "日本"), ("plain", "plain"), ("", "")]
)
def test_only_what_was_read_wrongly_is_read_again(text: str, expected: str) -> None:
    assert reread(text) == expected


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_prints_the_counts_and_one_line_for_an_error(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", str(raw["plan"]), "--data", str(raw["data"]), "--output", str(tmp_path / "out")]
    assert recipe_commands.main([*words, "--limit", "20"]) == 0
    printed = capsys.readouterr().out
    assert "weak pairs: 140 read, 140 clean" in printed
    assert "texts: 13 usable queries, " in printed
    assert recipe_commands.main([*words, "--limit", "-1"]) == 2
    assert capsys.readouterr().err == "tsarank: error: --limit must be at least 0, got -1\n"
    assert recipe_commands.main(["prepare", "nothing", "--data", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "no file 'nothing'" in capsys.readouterr().err


def test_help_is_quick() -> None:
    code = (
        "import argparse, sys\n"
        "from modeling_tsarank.trainers.recipe_commands import register\n"
        "register(argparse.ArgumentParser().add_subparsers())\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_teacher_orders_the_lists_of_the_distillation(
    make_ranker: Callable[..., Any], release: Path, tmp_path: Path
) -> None:
    make_ranker("tsarank").save_pretrained(tmp_path / "teacher")
    words = ["data", "lists", "--corpus", str(release / "distill"), "--output", str(tmp_path / "lists")]
    words += ["--queries", str(release / "distill" / "queries.jsonl"), "--index-cache", str(tmp_path / "cache")]
    words += ["--teacher-scores", str(tmp_path / "teacher"), "--list-size", "4", "--table-queries", "0"]
    assert cli.main([*words, "--dtype", "float32", "--device", "cpu"]) == 0
    rows = load_training_rows(tmp_path / "lists" / "data", "distill", cache_dir=tmp_path / "datasets")
    assert len(rows) >= 2
    assert all(row_problem(row, "distill") is None for row in rows)


# ---- the search ------------------------------------------------------------------------------------


def load_search() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_search", SEARCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script with its commands run in this process: starting Python with torch takes longer than all the rest."""
    module = load_search()
    module.calls = []

    def call(name: str, arguments: list[str]) -> float:
        module.calls.append((name, arguments))
        started = time.monotonic()
        if importlib.import_module(name).main(arguments):
            raise ModelError(f"{name} ended with an error")
        return time.monotonic() - started

    monkeypatch.setattr(module, "call", call)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return module


@pytest.fixture
def grid(make_ranker: Callable[..., Any], tmp_path: Path) -> Path:
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(tmp_path / "model")
    ranker.tokenizer.save_pretrained(tmp_path / "model")
    content = {
        "kind": "sft",
        "config": ["smollm2_135m/sft", "smollm2_135m/cpu/sft"],
        "options": {
            "model_name_or_path": str(tmp_path / "model"),
            "train_data": "$RELEASE/sft/all.jsonl",
            "max_steps": 2,
            "save_steps": 1,
            "disable_tqdm": True,
            "ranking_options": {"max_length": 200, "max_query_length": 60},
        },
        "evaluate": {"device": "cpu"},
        "runs": {"start": {}, "steeper": {"temperature": 0.02, "dp": False}},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_search_trains_measures_and_goes_on(search: Any, grid: Path, release: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    # The second training stops after its first checkpoint, as if the machine had gone down.
    inner = search.call

    def dying(name: str, arguments: list[str]) -> float:
        inner(name, arguments)
        if "trainers.sft" in name and any("steeper" in word for word in arguments):
            raise KeyboardInterrupt
        return 1.0

    search.call = dying
    with pytest.raises(KeyboardInterrupt):
        search.search(grid, release, output)
    assert (output / "start" / "result.json").is_file()
    assert not (output / "steeper" / "result.json").exists()
    search.call, search.calls[:] = inner, []
    table = search.search(grid, release, output).read_text()
    # Only the unfinished run went on, from its checkpoint.
    assert [name.rpartition(".")[2] for name, _ in search.calls] == ["sft", "cli"]
    lines = table.splitlines()
    assert lines[0] == "| run | changed | answers | objects | texts | mean | training, min |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["first stage", "start", "steeper"]
    assert "dp False, temperature 0.02" in lines[4]
    results = json.loads((output / "results.json").read_text())
    assert [one["name"] for one in results] == ["start", "steeper"]
    for one in results:
        parts = [one["values"][name] for name in ("answers", "objects", "texts")]
        assert all(0 <= value <= 1 for value in parts)
        assert one["values"]["mean"] == pytest.approx(sum(parts) / 3)
        # The weights are gone, the adapter and the record stay.
        assert not (output / one["name"] / "model" / "model.safetensors").exists()
        assert (output / one["name"] / "model" / "adapter" / "adapter_model.safetensors").is_file()
    search.calls.clear()
    assert search.search(grid, release, output).read_text() == table
    assert search.calls == []
    content = yaml.safe_load(grid.read_text())
    content["runs"]["start"] = {"alpha": 0.5}
    grid.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="a run 'start' with other options"):
        search.search(grid, release, output)


def test_a_wrong_grid_is_one_line(search: Any, grid: Path, release: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(grid.read_text())
    for change, message in (
        ({"kind": "rl"}, "kind must be cpt, sft or distill"),
        ({"runs": {}}, "runs must give, by name"),
        ({"rnus": {}}, "unknown 'rnus'"),
        ({"baselines": {"start": "default"}}, "start is both a run and a baseline"),
    ):
        grid.write_text(yaml.safe_dump(content | change))
        with pytest.raises(InputError, match=message):
            search.search(grid, release, tmp_path / "runs")
    grid.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="has no development set"):
        search.search(grid, tmp_path, tmp_path / "runs")
    with pytest.raises(InputError, match="no run 'other'"):
        search.search(grid, release, tmp_path / "runs", only=["other"])


def test_a_failing_command_stops_the_search() -> None:
    search = load_search()
    with pytest.raises(ModelError, match="ended with status 2"):
        search.call("modeling_tsarank.cli", ["no-such-command"])

"""Bulk scoring: the same scores as `predict`, in bounded memory, through kills, full disks and bad rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked import begin
from pair_files import WORDS, in_input_order, make_pairs, output_bytes, read_output, write_jsonl, write_parquet

from modeling_tsarank import TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.cli import main
from modeling_tsarank.files.result_log import ResultLog
from modeling_tsarank.jobs.bulk_scoring import BulkJob, PairWorker, score_pairs
from modeling_tsarank.jobs.pools import RanksPool
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError


# ---- scores --------------------------------------------------------------------------------------------


def test_scores_are_those_of_predict(model, tmp_path) -> None:
    pairs = make_pairs(300)
    paths = (
        write_parquet(tmp_path / "a.parquet", pairs[:130], 50),
        write_jsonl(tmp_path / "b.jsonl", pairs[130:], 130),
    )
    job = BulkJob(paths, str(tmp_path / "out"), keep=("id",), shard_pairs=64)
    summary = score_pairs(job, model)
    assert summary == {
        "pairs": 300,
        "shards": 6,
        "unscored": 0,
        "cut_documents": 0,
        "cut_queries": 0,
        "done_before": 0,
    }
    np.testing.assert_allclose(in_input_order(tmp_path / "out"), model.predict(pairs), atol=1e-5)
    table = read_output(tmp_path / "out")
    assert table.column("id").to_pylist() == [f"p{n}" for n in table.column("row").to_pylist()]
    assert table.column("row").to_pylist() == list(range(300))


def test_a_true_false_model_scores_too(zoo, tmp_path) -> None:
    twolar = TwolarModel.from_backbone(str(zoo.folders["t5"]), dtype=torch.float64)
    pairs = make_pairs(50)
    score_pairs(
        BulkJob((write_parquet(tmp_path / "a.parquet", pairs),), str(tmp_path / "out"), shard_pairs=20), twolar
    )
    np.testing.assert_allclose(in_input_order(tmp_path / "out"), twolar.predict(pairs), atol=1e-5)


def test_an_instruction_reaches_the_model(zoo, tmp_path) -> None:
    template = "{instruction} Query: {query} Document: {document} Relevant:"
    TwolarModel.from_backbone(str(zoo.folders["t5"]), template=template).save_pretrained(tmp_path / "ranker")
    pairs = make_pairs(20)
    command = ["score", "--pairs", write_parquet(tmp_path / "a.parquet", pairs), "--output", str(tmp_path / "out")]
    assert main([*command, "--model", str(tmp_path / "ranker"), "--dtype", "float32", "--instruction", "bees"]) == 0
    told, plain = (load_ranker(tmp_path / "ranker", dtype="float32", instruction=said) for said in ("bees", ""))
    np.testing.assert_allclose(in_input_order(tmp_path / "out"), told.predict(pairs), atol=1e-5)
    assert np.abs(told.predict(pairs) - plain.predict(pairs)).max() > 1e-3


# ---- going on ------------------------------------------------------------------------------------------


class Stopping(RanksPool):
    """Is interrupted after some blocks; the first task asks for the model only."""

    def __init__(self, worker, blocks) -> None:
        super().__init__(worker)
        self.blocks = blocks

    def map(self, tasks):
        for key, result in super().map(tasks):
            if key is not None:
                if not self.blocks:
                    raise KeyboardInterrupt
                self.blocks -= 1
            yield key, result


def test_a_resumed_job_gives_the_very_same_files(model, tmp_path) -> None:
    pairs = make_pairs(300)
    whole = BulkJob((write_jsonl(tmp_path / "a.jsonl", pairs),), str(tmp_path / "whole"), shard_pairs=30)
    score_pairs(whole, model)
    job = replace(whole, output=str(tmp_path / "parts"))

    with pytest.raises(KeyboardInterrupt):
        score_pairs(job, pool=Stopping(PairWorker(job, model), 4))
    assert len(output_bytes(tmp_path / "parts")) == 4
    damaged = tmp_path / "parts" / "scores-000002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert score_pairs(job, model)["done_before"] == 90
    assert output_bytes(tmp_path / "parts") == output_bytes(tmp_path / "whole")
    assert score_pairs(job, model)["done_before"] == 300


def test_killed_and_run_again_the_command_gives_the_same_files(zoo, tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", make_pairs(2000, documents=1500))
    command = ["score", "--pairs", source, "--shard-pairs", "50"]
    command += ["--model", str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32", "--output"]
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    process = begin(lambda: main([*command, str(parts)]))
    try:
        while process.is_alive() and len(list(parts.glob("scores-*.parquet"))) < 3:
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert 3 <= len(output_bytes(parts)) < 40
    torch.set_num_threads(1)
    for folder in (parts, whole):
        assert main([*command, str(folder)]) == 0
    assert output_bytes(parts) == output_bytes(whole)
    assert len(output_bytes(whole)) == 40


def test_a_folder_of_another_job_is_refused(model, zoo, tmp_path) -> None:
    pairs = make_pairs(40)
    job = BulkJob((write_parquet(tmp_path / "a.parquet", pairs),), str(tmp_path / "out"), shard_pairs=20)
    score_pairs(job, model)
    other = replace(job, pairs=(write_parquet(tmp_path / "b.parquet", make_pairs(40, seed=1)),))
    with pytest.raises(InputError, match="results of other input or settings"):
        score_pairs(other, model)
    with pytest.raises(InputError, match="results of other input or settings"):
        score_pairs(replace(job, shard_pairs=10), model)
    (tmp_path / "out" / "scores-000001.parquet").unlink()
    changed = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32, aggregation="sum")
    with pytest.raises(InputError, match=r"model_options was .* and is now"):
        score_pairs(job, changed)
    assert score_pairs(job, model)["done_before"] == 20


def test_a_refused_job_does_not_keep_the_folder_from_the_next(model, tmp_path) -> None:
    job = BulkJob((write_jsonl(tmp_path / "a.jsonl", make_pairs(4)),), str(tmp_path / "out"))
    with pytest.raises(InputError, match="no field 'question'"):
        score_pairs(replace(job, query="question"), model)
    assert (tmp_path / "out" / "settings.json").exists()
    assert score_pairs(job, model)["pairs"] == 4


def test_two_processes_do_not_work_in_one_folder(model, tmp_path) -> None:
    job = BulkJob((write_parquet(tmp_path / "a.parquet", make_pairs(40)),), str(tmp_path / "out"), shard_pairs=20)

    def second(pairs):
        with pytest.raises(InputError, match="another process is writing to"):
            score_pairs(job, model)
        return PairWorker(job, model)(pairs)

    assert score_pairs(job, pool=RanksPool(second))["pairs"] == 40


# ---- never a mixture -----------------------------------------------------------------------------------


def edit_in_place(path: Path, first: int, last: int) -> None:
    """Changes one byte of the input, its size and its times kept."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(first)
        content = file.read(last - first)
        at = first + content.index(b"bread")
        file.seek(at)
        file.write(b"dough")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


@pytest.mark.parametrize("place", [0.02, 0.33, 0.5, 0.77, 0.96])
def test_an_input_edited_anywhere_in_place_is_another_input(model, tmp_path, place) -> None:
    words = " ".join(WORDS)
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"query": "bread", "document": f"{i} {words} {words * 300}"}) for i in range(120)]
    path.write_text("\n".join(rows) + "\n")
    assert path.stat().st_size > 2 << 20, "larger than what a few samples would cover"
    job = BulkJob((str(path),), str(tmp_path / "out"), shard_pairs=60)
    score_pairs(job, Constant(model))
    edit_in_place(path, int(place * path.stat().st_size), path.stat().st_size)
    for missing in ("none", "scores-000001.parquet"):
        (tmp_path / "out" / missing).unlink(missing_ok=True)
        with pytest.raises(InputError, match="results of other input or settings"):
            score_pairs(job, Constant(model))


class Constant:
    """A ranking model that answers without reading: enough where only the bookkeeping is looked at."""

    def __init__(self, model, score: float = 0.5) -> None:
        self.backbone, self.options, self.tokenizer, self.score = model.backbone, model.options, model.tokenizer, score

    def predict(self, pairs, **_) -> np.ndarray:
        return np.full(len(pairs), self.score, dtype=np.float32)


def edit_scores(path: Path) -> None:
    table = pq.read_table(path)
    scores = pa.array([score + 1 for score in table.column("score").to_pylist()], pa.float32())
    pq.write_table(table.set_column(1, "score", scores), path)


def edit_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def take_another_jobs(path: Path) -> None:
    """The same shard of a job over other pairs: only its digest tells."""
    folder = path.parent.parent / "other"
    source = write_parquet(path.parent.parent / "b.parquet", make_pairs(40, seed=1))
    score_pairs(BulkJob((source,), str(folder), shard_pairs=20), take_another_jobs.model)
    shutil.copy(folder / path.name, path)


def copy_of_the_first(path: Path) -> None:
    """A file of this very job, and whole, but of other rows."""
    shutil.copy(path.with_name("scores-000000.parquet"), path)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "harm", [edit_scores, edit_bytes, take_another_jobs, copy_of_the_first, cut_off, Path.unlink, os.truncate]
)
def test_an_output_that_is_not_what_was_written_is_scored_again(model, tmp_path, harm) -> None:
    job = BulkJob((write_parquet(tmp_path / "a.parquet", make_pairs(40)),), str(tmp_path / "out"), shard_pairs=20)
    score_pairs(job, model)
    whole = output_bytes(tmp_path / "out")
    take_another_jobs.model = model
    harm(tmp_path / "out" / "scores-000001.parquet", *([0] if harm is os.truncate else []))
    assert score_pairs(job, model)["done_before"] == 20
    assert output_bytes(tmp_path / "out") == whole
    assert score_pairs(job, model)["done_before"] == 40


def test_without_its_settings_no_old_score_is_taken_for_the_new_input(model, tmp_path) -> None:
    source = tmp_path / "a.parquet"
    job = BulkJob((write_parquet(source, make_pairs(60)),), str(tmp_path / "out"), shard_pairs=20)
    score_pairs(job, model)
    write_parquet(source, make_pairs(40, seed=1))
    (tmp_path / "out" / "settings.json").unlink()
    assert score_pairs(job, model)["done_before"] == 0
    assert len(output_bytes(tmp_path / "out")) == 2, "the third file belonged to the old input"
    fresh = replace(job, output=str(tmp_path / "fresh"))
    score_pairs(fresh, model)
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "fresh")


def test_the_scores_of_another_model_are_never_taken_for_this_ones(model, zoo, tmp_path) -> None:
    job = BulkJob((write_parquet(tmp_path / "a.parquet", make_pairs(40)),), str(tmp_path / "out"), shard_pairs=20)
    score_pairs(job, model)
    other = TSARankModel.from_backbone(str(zoo.folders["qwen3"]), dtype=torch.float32)
    with pytest.raises(InputError, match=r"model_weights was"):  # though nothing is left to score
        score_pairs(job, other)
    spoken = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    spoken.tokenizer.add_tokens(["bread dough"])
    with pytest.raises(InputError, match="model_tokenizer was"):
        score_pairs(job, spoken)
    begun = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    begun.tokenizer.bos_token = "<pad>"  # as tokenizer_config.json says it, not tokenizer.json
    with pytest.raises(InputError, match="model_tokenizer was"):
        score_pairs(job, begun)
    (tmp_path / "out" / "settings.json").unlink()
    assert score_pairs(job, other)["done_before"] == 0
    np.testing.assert_allclose(in_input_order(tmp_path / "out"), other.predict(make_pairs(40)), atol=1e-5)


def test_an_input_changed_while_it_is_scored_is_an_error(model, tmp_path) -> None:
    source = tmp_path / "a.parquet"
    job = BulkJob((write_parquet(source, make_pairs(60)),), str(tmp_path / "out"), shard_pairs=20)

    class Changing(RanksPool):
        def map(self, tasks):
            for key, result in super().map(tasks):
                yield key, result
                if key is not None:
                    write_parquet(source, make_pairs(60, seed=1))

    with pytest.raises(InputError, match="was changed during scoring"):
        score_pairs(job, pool=Changing(PairWorker(job, model)))
    assert len(output_bytes(tmp_path / "out")) == 1


# ---- disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["another shard", "a file outside", "nothing"])
def test_a_link_in_the_place_of_a_shard_is_replaced_and_not_written_through(model, tmp_path, target) -> None:
    path = write_parquet(tmp_path / "p.parquet", make_pairs(40))
    job = BulkJob((path,), str(tmp_path / "out"), shard_pairs=10)
    score_pairs(job, model)
    expected = output_bytes(tmp_path / "out")
    outside = tmp_path / "outside.parquet"
    outside.write_bytes(b"someone's")
    leads_to = {"another shard": "scores-000001.parquet", "a file outside": str(outside), "nothing": "gone"}[target]
    (tmp_path / "out" / "scores-000002.parquet").unlink()
    (tmp_path / "out" / "scores-000002.parquet").symlink_to(leads_to)
    assert score_pairs(job, model)["done_before"] == 30
    assert output_bytes(tmp_path / "out") == expected
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert outside.read_bytes() == b"someone's"


def test_cut_texts_are_counted_in_the_summary(zoo, tmp_path) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), max_length=60, max_query_length=8)
    long = "bread rises in the oven " * 30
    path = write_parquet(tmp_path / "p.parquet", [(long, "bread"), ("bread", long), (long, long)])
    job = BulkJob((path,), str(tmp_path / "out"))
    for _ in range(2):  # the second time out of the log
        summary = score_pairs(job, model)
        assert (summary["cut_documents"], summary["cut_queries"]) == (1, 1)


def test_a_full_disk_is_one_clear_error_and_the_job_goes_on_later(model, tmp_path, small_disk) -> None:
    pairs = make_pairs(400)
    path = write_parquet(tmp_path / "a.parquet", pairs)
    job = BulkJob((path,), str(small_disk / "out"), shard_pairs=40)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 24_000))
    with pytest.raises(ResourceError, match="No space left on device"):
        score_pairs(job, model)
    assert list((small_disk / "out").rglob("*.partial")) == []
    filler.unlink()
    summary = score_pairs(job, model)
    assert summary["done_before"] < 400
    np.testing.assert_allclose(in_input_order(small_disk / "out"), model.predict(pairs), atol=1e-5)


def test_a_log_on_a_full_disk_is_one_line_and_the_log_goes_on_later(small_disk) -> None:
    log = ResultLog(small_disk / "log.jsonl")
    log.add({"a": 1})
    with pytest.raises(ResourceError, match="free some space"):
        log.add({"b": "x" * (1 << 26)})
    assert "b" not in log
    log.add({"c": 3})
    again = ResultLog(log.path)
    assert {unit: again[unit] for unit in again} == {"a": 1, "c": 3}


# ---- the command and Ray -------------------------------------------------------------------------------


def test_score_command(zoo, model, tmp_path, capsys) -> None:
    pairs = make_pairs(60)
    source = write_parquet(tmp_path / "a.parquet", pairs)
    command = ["score", "--pairs", source, "--output", str(tmp_path / "out"), "--shard-pairs", "25", "--keep", "id"]
    command += ["--model", str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"60 pairs in 3 files in {tmp_path / 'out'}\n"
    np.testing.assert_allclose(in_input_order(tmp_path / "out"), model.predict(pairs), atol=1e-5)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done_before"] == 60
    expected = {"pairs": 60, "shards": 3, "unscored": 0, "cut_documents": 0, "cut_queries": 0}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == expected
    assert main(["score", "--pairs", "nowhere.parquet", "--output", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err == (
        "tsarank: error: no file nowhere.parquet; expected .parquet, .jsonl, .csv or .tsv files of pairs, or a folder "
        "of them\n"
    )
    assert main([*command, "--ray", "local", "--actors", "0"]) == 2
    capsys.readouterr()
    assert main([*command, "--actors", "2"]) == 2
    assert (
        capsys.readouterr().err == "tsarank: error: --actors has no effect without --ray; add --ray, or leave it out\n"
    )


@pytest.mark.slow
def test_ray_gives_the_same_files_and_the_same_errors(zoo, model, tmp_path, request) -> None:
    ray = pytest.importorskip("ray")
    from modeling_tsarank.jobs.pools import RayPool

    pairs = make_pairs(300)
    source = write_parquet(tmp_path / "a.parquet", pairs, 70)
    loading = {"name_or_path": str(zoo.folders["llama"]), "device": "cpu", "dtype": "float32"}
    job = BulkJob((source,), str(tmp_path / "local"), keep=("id",), shard_pairs=40, model=loading)
    score_pairs(job, model)
    ray.init(num_cpus=2, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
    request.addfinalizer(ray.shutdown)

    def on_ray(job):
        with RayPool(PairWorker(job), actors=2) as pool:
            return score_pairs(job, pool=pool)

    other = replace(job, output=str(tmp_path / "ray"))
    assert on_ray(other)["pairs"] == 300
    np.testing.assert_allclose(in_input_order(tmp_path / "ray"), in_input_order(tmp_path / "local"), atol=1e-6)
    whole = {name: hashlib.sha256(data).hexdigest() for name, data in output_bytes(tmp_path / "ray").items()}
    (tmp_path / "ray" / "scores-000003.parquet").unlink()
    assert on_ray(other)["done_before"] == 260
    assert whole == {name: hashlib.sha256(data).hexdigest() for name, data in output_bytes(tmp_path / "ray").items()}
    bad = replace(job, pairs=(write_parquet(tmp_path / "b.parquet", [*pairs[:50], ("", "x")]),))
    with pytest.raises(InputError, match=r"b\.parquet, pair 50 \(counted from 0\): 'query' is empty"):
        on_ray(replace(bad, output=str(tmp_path / "bad")))
    assert output_bytes(tmp_path / "bad").keys() <= {"scores-000000.parquet"}
    missing = replace(job, output=str(tmp_path / "missing"), model={"name_or_path": str(tmp_path)})
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        on_ray(missing)


def test_without_ray_the_extra_is_named(tmp_path) -> None:
    from modeling_tsarank.jobs.pools import RayPool

    job = BulkJob((write_parquet(tmp_path / "a.parquet", make_pairs(10)),), str(tmp_path / "out"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ray", "ray.util"):  # an earlier test may have imported them
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ResourceError, match=r"pip install 'tsarank\[ray\]'"):
            RayPool(PairWorker(job)).__enter__()

"""The resumable score log: torn lines, other evaluations' records, blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.eval import score_log
from modeling_tsarank.eval.score_log import BlockRecord, ScoreLog, split_blocks
from modeling_tsarank.ranking_errors import InputError


def record(log: ScoreLog, block: int, value: float = 0.5) -> BlockRecord:
    return BlockRecord(log.digest, block, [value, -1.0], 0.1, 7, "cpu", "float32")


@settings(deadline=None)
@given(st.data())
def test_any_cut_loses_only_the_torn_block(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = ScoreLog(folder, {"model": "m"})
    log.prepare()
    for block in range(4):
        log.append(record(log, block))
    content = log.part.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    log.part.write_bytes(content[:cut])
    again = ScoreLog(folder, {"model": "m"})
    again.prepare()
    whole = content[:cut].count(b"\n")
    assert again.read() == {block: record(log, block) for block in range(whole)}
    for block in range(whole, 4):
        again.append(record(log, block))
    assert log.part.read_bytes() == content


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=5), st.text(max_size=4))
def test_scores_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], query_id: str
) -> None:
    log = ScoreLog(tmp_path_factory.mktemp("log"), {})
    log.append(BlockRecord(log.digest, 0, scores, 1.0))
    assert log.read()[0].scores == scores


@pytest.mark.parametrize(
    "line",
    ["", "{}", "[1]", "nonsense", '{"settings": "other", "block": 1, "scores": [], "seconds": 1}', '{"block": 1}'],
)
def test_foreign_lines_are_skipped_with_a_warning(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    log = ScoreLog(tmp_path, {"model": "m"})
    log.prepare()
    log.append(record(log, 0))
    with log.part.open("a") as stream:
        stream.write(line + "\n")
    log.append(record(log, 2))
    assert sorted(log.read()) == [0, 2]
    assert "line 2 is no record of this evaluation" in caplog.text


def test_parts_of_several_processes_are_read_together(tmp_path: Path) -> None:
    logs = [ScoreLog(tmp_path, {"model": "m"}, process) for process in range(3)]
    logs[0].prepare()
    for block in range(7):
        logs[block % 3].append(record(logs[0], block))
    assert sorted(logs[1].read()) == list(range(7))


def test_other_settings_are_named(tmp_path: Path) -> None:
    ScoreLog(tmp_path, {"model": "a", "top_k": 100}).prepare()
    ScoreLog(tmp_path, {"model": "a", "top_k": 100}).prepare()
    with pytest.raises(InputError, match=r"model was 'a' and is now 'b'; top_k was 100 and is now 50.*--overwrite"):
        ScoreLog(tmp_path, {"model": "b", "top_k": 50}).prepare()
    with pytest.raises(InputError, match="top_k was 100 and is now None"):
        ScoreLog(tmp_path, {"model": "a"}).prepare()
    score_log.check_settings(tmp_path, {"model": "a"})  # the costly settings are not known yet
    score_log.clear(tmp_path)
    ScoreLog(tmp_path, {"model": "b"}).prepare()


def test_a_broken_settings_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json, line 1: not JSON"):
        ScoreLog(tmp_path, {}).prepare()
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold the settings"):
        ScoreLog(tmp_path, {}).prepare()


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 50))
def test_blocks_cover_every_pair_once(sizes: list[int], block_pairs: int) -> None:
    blocks = split_blocks(sizes, block_pairs)
    assert [position for block in blocks for position in block] == list(range(sum(sizes)))
    assert all(len(block) >= block_pairs for block in blocks[:-1])
    ends = {sum(sizes[:count]) for count in range(len(sizes) + 1)}
    assert {block.stop for block in blocks} <= ends, "a document was cut in two"
    largest = max(sizes, default=0)
    assert all(len(block) < block_pairs + largest for block in blocks), "a block goes on after it is full"


def test_not_a_number_is_never_logged(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append(BlockRecord(log.digest, 0, [float("nan")], 1.0))
    assert not log.part.exists()


def test_the_log_is_plain_json_lines(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path, {"model": "m"})
    log.append(record(log, 3))
    assert json.loads(log.part.read_text())["scores"] == [0.5, -1.0]

"""The log of finished work: cut at any byte, edited, of other settings, used by several threads and processes."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.files.result_log import ResultLog, check_settings, claim_folder, exclusive
from modeling_tsarank.ranking_errors import InputError


SETTINGS = {"model": "m", "top_k": 3}


def filled(path: Path) -> ResultLog:
    """Four lines, the third of two units that were finished together."""
    log = ResultLog(path, SETTINGS)
    for results in ({"0": [0.5, -1.0]}, {"1": "ü"}, {"2": 1, "3": None}, {"4": {"a": 1}}):
        log.add(results)
    return log


def content(log: ResultLog) -> dict[str, object]:
    return {unit: log[unit] for unit in log}


@given(st.data())
def test_any_cut_loses_only_the_line_it_is_in(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    whole = content(filled(path))
    data_bytes = path.read_bytes()
    cut = data.draw(st.integers(0, len(data_bytes)))
    path.write_bytes(data_bytes[:cut])
    log = ResultLog(path, SETTINGS)
    groups = [["0"], ["1"], ["2", "3"], ["4"]]
    lines = data_bytes.splitlines(keepends=True)
    ends = [sum(map(len, lines[: number + 1])) - 1 for number in range(4)]  # before the line break
    left = [unit for group, end in zip(groups, ends, strict=True) if end <= cut for unit in group]
    assert content(log) == {unit: whole[unit] for unit in left}
    log.add({"new": 7})
    assert content(log) == content(ResultLog(path, SETTINGS)) == {unit: whole[unit] for unit in left} | {"new": 7}


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.text())
def test_values_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], unit: str
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    ResultLog(path).add({unit: scores})
    assert ResultLog(path)[unit] == scores


def test_any_edited_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    whole = content(filled(path))
    data = path.read_bytes()
    lost = set()
    for place in range(data.index(b"\n") + 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        log = ResultLog(path, SETTINGS)
        assert {unit: log[unit] for unit in log if unit != "0"} == {
            u: v for u, v in whole.items() if u in log and u != "0"
        }
        lost |= whole.keys() - set(log)
        assert "0" not in log
    assert lost == {"0", "1"}, "the second line only where the line break between them went"
    assert "line 1 is not a complete record of this work" in caplog.text


def test_lines_of_other_settings_and_nonsense_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    filled(path)
    assert len(ResultLog(path, {"model": "m", "top_k": 4})) == 0
    for line in ("", "{}", "[1]", "nonsense", '{"settings": "a", "results": {"9": 1}, "sha256": "b"}', "\xff"):
        with path.open("a", encoding="latin-1") as file:
            file.write(line + "\n")
    caplog.clear()
    assert sorted(ResultLog(path, SETTINGS)) == ["0", "1", "2", "3", "4"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 6


def test_a_later_line_replaces_an_earlier(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "log.jsonl")
    log.add({"a": 1, "b": 2})
    log.add({"a": 3})
    assert content(log) == content(ResultLog(tmp_path / "log.jsonl")) == {"a": 3, "b": 2}
    with pytest.raises(KeyError):
        log["c"]


def test_not_a_number_is_never_logged(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.add({"a": float("nan")})
    assert "a" not in log
    assert not log.path.exists()


def write_many(path: Path, name: str) -> None:
    log = ResultLog(path)
    for number in range(50):
        log.add({f"{name}{number}": [number] * 500})


def test_threads_and_processes_write_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    log = ResultLog(path)
    threads = [
        threading.Thread(target=lambda n=name: [log.add({f"{n}{i}": [i] * 500}) for i in range(50)]) for name in "cd"
    ]
    for thread in threads:
        thread.start()
    for one in (*threads, *processes):
        one.join()
    again = ResultLog(path)
    assert sorted(again) == sorted(f"{name}{number}" for name in "abcd" for number in range(50))
    for name, number in itertools.product("cd", range(50)):
        assert log[f"{name}{number}"] == again[f"{name}{number}"] == [number] * 500
    json.loads(path.read_text().splitlines()[0])


def test_other_settings_are_named(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"model": "n"})
    claim_folder(tmp_path, SETTINGS)  # nothing was made with the others
    (tmp_path / "log.jsonl").touch()
    claim_folder(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"model was 'm' and is now 'n'; top_k was 3 and is now 50.*another --output"):
        claim_folder(tmp_path, {"model": "n", "top_k": 50})
    with pytest.raises(InputError, match="top_k was 3 and is now None"):
        claim_folder(tmp_path, {"model": "m"})
    check_settings(tmp_path, {"model": "m"}, complete=False)  # the costly settings are not known yet
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json, line 1: not JSON"):
        claim_folder(tmp_path, {})
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(InputError, match="does not have the settings"):
        claim_folder(tmp_path, {})


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(InputError, match="another process is writing to"):
        exclusive(tmp_path / "out").__enter__()
    with exclusive(tmp_path / "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        exclusive(tmp_path / "file").__enter__()

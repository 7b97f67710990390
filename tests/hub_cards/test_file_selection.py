"""What is published of a folder: never secrets, training states, caches, or files outside of it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from modeling_tsarank import InputError
from modeling_tsarank.hub_cards.file_selection import PublishedFile, refusal, select_files
from modeling_tsarank.hub_cards.secret_scan import PATTERNS, find_secrets, refuse_secrets


# Look-alikes, put together here so that no scanner takes this file for a leak.
SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "a GitHub token": "ghp_" + "aB3d" * 9,
    "a Groq key": "gsk_" + "aB3d" * 13,
    "an NVIDIA key": "nvapi-" + "aB3d" * 16,
    "an AWS secret key": "aws_secret_access_key = " + "aB3/" * 10,
    "a GitLab token": "glpat-" + "aB3d" * 5,
    "an OpenAI or Anthropic key": "sk-" + "proj-" + "aB3d" * 10,
    "an AWS access key": "AKIA" + "ABCD" * 4,
    "a Google key": "AIza" + "aB3de" * 7,
    "a Slack token": "xoxb-" + "12345-" * 4,
    "a PyPI token": "pypi-" + "aB3d" * 15,
    "a Weights & Biases key": "WANDB_API_KEY=" + "0af1" * 10,
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "a password in an address": "https://alice:" + "hunter22@example.org/x",
}


@pytest.mark.parametrize(
    "path",
    [
        *(".env", "prod.env", "deep/down/.env.local", "server.key", "id_rsa", "id_ed25519.pub", "x.pem", "token"),
        *("credentials.json", "secrets/notes.txt", ".netrc", ".aws/config"),
        *("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json"),
        *(
            "checkpoint-12/model.safetensors",
            "trained_weights.safetensors",
            "global_step5/x",
            "failed_batch-step1.json",
        ),
        *("wandb/run.json", "runs/events.out.tfevents.1", "__pycache__/a.pyc", "cache-1.arrow", ".git/config"),
        *(".unfinished-x/model.safetensors", ".hidden", "teacher_cache.sqlite3", "a.lock"),
    ],
)
def test_refused_by_name(path: str) -> None:
    assert refusal(path) is not None


@pytest.mark.parametrize(
    "path",
    [
        *("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt"),
        *("tokenizer_config.json", "special_tokens_map.json", "modeling_tsarank.py", "README.md", ".gitattributes"),
        *("data/train-00000-of-00001.parquet", "training_run.json", "keys.md", "monkey.txt", "tokens.csv"),
    ],
)
def test_not_refused_by_name(path: str) -> None:
    assert refusal(path) is None


def test_what_is_left_out_is_said_and_cannot_be_brought_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for path in ("config.json", "notes.txt", ".env", "sub/optimizer.pt", "plots/a.png", "checkpoint-1/config.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    (tmp_path / "outside.txt").write_text("private")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    selection = select_files(folder, ("config.json",), ["plots/*", "link.txt", "*.png"][:1])
    assert selection.paths == {"config.json", "plots/a.png"}
    reasons = dict(selection.left_out)
    assert reasons[".env"] == "looks like a secret"
    assert reasons["sub/optimizer.pt"] == reasons["checkpoint-1"] == "training state"
    assert reasons["notes.txt"] == "not needed"
    assert reasons["link.txt"] == "a link to outside the folder"
    for pattern in (".env", "*.pt", "link.txt", "nothing-*"):
        with pytest.raises(InputError, match="no file of"):
            select_files(folder, ("config.json",), [pattern])
    with pytest.raises(InputError, match="there is no folder"):
        select_files(tmp_path / "absent")


def test_every_pattern_has_a_look_alike_here() -> None:
    assert set(SECRETS) == {name for name, *_ in PATTERNS}


@pytest.mark.parametrize("what", SECRETS)
def test_secrets_are_found_where_they_are(what: str, tmp_path: Path) -> None:
    text = f"first line\n second line\n and here: {SECRETS[what]} !\n"
    path = tmp_path / "notes.txt"
    path.write_text(text)
    (found,) = find_secrets(PublishedFile("notes.txt", path))
    assert (found.what, found.place) == (what, "line 3")
    with pytest.raises(InputError) as caught:
        refuse_secrets([PublishedFile("notes.txt", path)])
    assert SECRETS[what] not in str(caught.value)
    assert "--not-secret notes.txt" in str(caught.value)
    refuse_secrets([PublishedFile("notes.txt", path)], ["notes.txt"])


def test_a_secret_across_two_pieces_of_a_large_file_is_found_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    filler = "a line of nothing in particular\n"
    before = filler * ((1 << 20) // len(filler))
    secret = SECRETS["a Hugging Face token"]
    for shift in (0, 5, 20, 32, 40):
        text = before[: (1 << 20) - shift - 1] + "\n" + secret + "\n" + filler * 40000
        path.write_text(text)
        found = find_secrets(PublishedFile("rows.jsonl", path))
        assert len(found) == 1, shift
        assert found[0].place == f"line {text[: text.index(secret)].count(chr(10)) + 1}"


def test_secrets_in_parquet_and_safetensors(tmp_path: Path) -> None:
    secret = SECRETS["a GitHub token"]
    table = pyarrow.table({"query": ["plain", "text"], "documents": [[{"text": "a"}], [{"text": f"see {secret}"}]]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    (found,) = find_secrets(PublishedFile("train.parquet", tmp_path / "train.parquet"))
    assert found.place == "column documents"
    header = json.dumps({"__metadata__": {"note": secret}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (found,) = find_secrets(PublishedFile("m.safetensors", tmp_path / "m.safetensors"))
    assert found.place == "header"


def test_ordinary_texts_are_no_secrets() -> None:
    texts = [
        "see https://example.org:8080/path and mail bob@example.org",
        "the function hf_hub_download and the model sk-learn",
        json.dumps({"▁hf": 1, "sk-": 2, "AKIA": 3, "glpat": 4}),
        "sha256: " + "0af1" * 16,
    ]
    for text in texts:
        assert find_secrets(PublishedFile("a.txt", text.encode())) == []

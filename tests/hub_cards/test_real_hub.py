"""The same against the Hub that HF_ENDPOINT names, the real one by default; needs HF_TOKEN with the right to write."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


READER = """
import json, sys
from transformers import AutoModel
from huggingface_hub import ModelCard
repo = sys.argv[1]
ModelCard.load(repo).validate()
model = AutoModel.from_pretrained(repo, revision="v1", trust_remote_code=True)
print(json.dumps(model.predict([("ship bee", "a harbour ship"), ("ship bee", "snow melt")]).tolist()))
"""


@pytest.mark.hub
def test_a_model_goes_to_the_hub_and_back(trained: Any, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    from modeling_tsarank import TSARankModel

    if not os.environ.get("HF_TOKEN"):
        pytest.skip("HF_TOKEN is not set: publishing to the Hub needs a token")
    api = HfApi()
    repo = f"{api.whoami()['name']}/tsarank-test-{secrets.token_hex(4)}"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    publish = [sys.executable, "-m", "modeling_tsarank.cli", "publish", "model", str(trained("tsarank")), repo]
    try:
        subprocess.run([*publish, "--license", "apache-2.0"], check=True, env=environment)
        info = api.model_info(repo)
        assert info.private
        assert info.sha == api.model_info(repo, revision="v1").sha
        read = subprocess.run([sys.executable, "-c", READER, repo], check=True, env=environment, capture_output=True)
    finally:
        api.delete_repo(repo, missing_ok=True)
    model = TSARankModel.from_pretrained(trained("tsarank"))
    expected = model.predict([("ship bee", "a harbour ship"), ("ship bee", "snow melt")]).tolist()
    assert json.loads(read.stdout.splitlines()[-1]) == expected

"""The model that the jobs score with."""

from __future__ import annotations

import pytest
import torch

from modeling_tsarank import TSARankModel


@pytest.fixture(scope="module")
def model(zoo) -> TSARankModel:
    return TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)

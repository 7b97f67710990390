"""tsarank: LLM text rerankers native to the Hugging Face Hub.

    from modeling_tsarank import load_ranker

    model = load_ranker()                      # or a Hub id, a folder, a GGUF file
    model.rank("how long does a flea live", documents, top_k=3)

Names are loaded on first use: `import modeling_tsarank` alone does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

_EXPORTS = {
    "load_ranker": "models.loading",
    "RankerModel": "modeling_ranker",
    "RankingOutput": "modeling_ranker",
    "TSARankModel": "modeling_tsarank",
    "TwolarModel": "modeling_twolar",
    "TextRankingPipeline": "pipeline_text_ranking",
    "LogitOptions": "ranking_options",
    "QueryLikelihoodOptions": "ranking_options",
    "RankingCancelled": "ranking_engine",
    "MemoryStore": "cache.memory_store",
    "FolderStore": "cache.folder_store",
    "InputError": "ranking_errors",
    "ModelError": "ranking_errors",
    "NonFiniteScoreError": "ranking_errors",
    "ResourceError": "ranking_errors",
    "TSARankError": "ranking_errors",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from .cache.folder_store import FolderStore as FolderStore
    from .cache.memory_store import MemoryStore as MemoryStore
    from .modeling_ranker import RankerModel as RankerModel
    from .modeling_ranker import RankingOutput as RankingOutput
    from .modeling_tsarank import TSARankModel as TSARankModel
    from .modeling_twolar import TwolarModel as TwolarModel
    from .models.loading import load_ranker as load_ranker


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

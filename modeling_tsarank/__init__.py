"""tsarank: LLM text rerankers native to the Hugging Face Hub.

    from modeling_tsarank import load_ranker

    model = load_ranker()                      # or a Hub id, a folder, a GGUF file
    model.rank("how long does a flea live", documents, top_k=3)

Names are loaded on first use: `import modeling_tsarank` alone does not import torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ._moved import MovedModules


__version__ = "0.2.0"

sys.meta_path.append(MovedModules())

_EXPORTS = {
    "load_ranker": "rankers.loading",
    "TSARankModel": "modeling_tsarank",
    "TwolarModel": "modeling_twolar",
    "CrossEncoderModel": "modeling_cross_encoder",
    "RankerModel": "modeling_ranker",
    "RankingOutput": "ranking_scoring",
    "QueryLikelihoodOptions": "modeling_tsarank",
    "LogitOptions": "modeling_twolar",
    "CrossEncoderOptions": "modeling_cross_encoder",
    "register_family": "models.families",
    "MemoryStore": "cache.memory_store",
    "FolderStore": "cache.folder_store",
    "TextRankingPipeline": "pipeline_text_ranking",
    "RankingCancelled": "ranking_scoring",
    "TSARankError": "ranking_errors",
    "InputError": "ranking_errors",
    "ModelError": "ranking_errors",
    "NonFiniteScoreError": "ranking_errors",
    "ResourceError": "ranking_errors",
}

# Not in `__all__`: they need the packages of the extra `train`.
_TRAINERS = {
    "CPTConfig": "trainers.cpt_config",
    "CPTTrainer": "trainers.cpt_trainer",
    "RankingDistillConfig": "trainers.distill_config",
    "RankingDistillTrainer": "trainers.distill_trainer",
    "RankingSFTConfig": "trainers.sft_config",
    "RankingSFTTrainer": "trainers.sft_trainer",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from .cache.folder_store import FolderStore as FolderStore
    from .cache.memory_store import MemoryStore as MemoryStore
    from .modeling_cross_encoder import CrossEncoderModel as CrossEncoderModel
    from .modeling_ranker import RankerModel as RankerModel
    from .modeling_tsarank import TSARankModel as TSARankModel
    from .modeling_twolar import TwolarModel as TwolarModel
    from .models.families import register_family as register_family
    from .rankers.loading import load_ranker as load_ranker
    from .ranking_errors import InputError as InputError
    from .ranking_errors import ModelError as ModelError


def __getattr__(name: str) -> Any:
    place = _EXPORTS.get(name) or _TRAINERS.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{place}", __name__), name)


def __dir__() -> list[str]:
    """The public names; what they need is imported when one of them is used."""
    return [*__all__, *_TRAINERS]

"""Dense retrieval with any sentence-transformers model: normalized cosine, exact search.

Queries and documents are encoded by the model's own `encode_query` and `encode_document`, so models with prompts get
theirs. Every pair is compared; there is no approximation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.index_cache import cached_index, content_hash
from modeling_tsarank.eval.selection import TopSelector
from modeling_tsarank.eval.types import Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.models.sentence_encoders import load_encoder, normalized


DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

_ENCODE_DOCUMENTS = 4096
_SEARCH_VALUES = 1 << 26
"""Cosines in memory at once; queries are searched together as far as they allow."""


class DenseIndex:
    """Embeddings of one corpus and the model that made them; make one with `build`."""

    def __init__(self, encoder: Any, embeddings: np.ndarray, ids: Sequence[str], batch_size: int) -> None:
        self._encoder = encoder
        self._embeddings = embeddings
        self._selector = TopSelector(ids)
        self._batch_size = batch_size

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        texts: Sequence[str],
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        batch_size: int = 32,
        device: str | None = None,
        show_progress: bool | None = None,
    ) -> DenseIndex:
        """Encodes a corpus, or loads the embeddings of the same corpus and model from the cache.

        Args:
            ids: Document ids, unique.
            texts: Their texts, title included; the model truncates them at its own length.
            cache_dir: See `files.caches.cache_root`.
            model: Folder or Hub id of a sentence-transformers model.
            batch_size: Texts encoded at once.
            device: Torch device of the encoder; sentence-transformers chooses by default.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Raises:
            InputError: No documents, or ids that are not unique.
            ModelError: The model cannot be loaded.
            ResourceError: sentence-transformers is not installed, or the cache cannot be written.
        """
        package = require("sentence_transformers", extra="dense", purpose="The dense first stage")
        name = os.fspath(model)
        encoder = load_encoder(name, device)
        made_from = {
            **model_fingerprint(name, hub_commit_of(encoder)),
            "sentence_transformers": package.__version__,
            "max_tokens": encoder.max_seq_length,
            "similarity": "cosine",
            "content": content_hash(ids, texts),
        }

        def build(folder: Path) -> None:
            hidden = None if show_progress is None else not show_progress
            parts = []
            with tqdm(total=len(texts), desc="dense index", unit="doc", disable=hidden) as bar:
                for start in range(0, len(texts), _ENCODE_DOCUMENTS):
                    part = list(texts[start : start + _ENCODE_DOCUMENTS])
                    parts.append(normalized(encoder.encode_document(part, **_options(batch_size))))
                    bar.update(len(part))
            np.save(folder / "embeddings.npy", np.concatenate(parts))
            write_json(folder / "ids.json", list(ids))

        def load(folder: Path) -> DenseIndex:
            loaded_ids = read_json(folder / "ids.json")
            return cls(encoder, np.load(folder / "embeddings.npy", mmap_mode="r"), loaded_ids, batch_size)

        return cached_index("dense", made_from, build, load, cache_dir)

    def search(self, queries: Mapping[str, str], depth: int = 100, show_progress: bool | None = None) -> Run:
        """The documents with the highest cosine to every query.

        Args:
            queries: Query id to text.
            depth: Documents a query at most, 1 or more.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Returns:
            Query id to document id to cosine, best first; ties by document id descending.
        """
        hidden = None if show_progress is None else not show_progress
        query_ids = list(queries)
        size = max(1, _SEARCH_VALUES // len(self._embeddings))
        run: Run = {}
        with tqdm(total=len(query_ids), desc="dense", unit="query", disable=hidden) as bar:
            for start in range(0, len(query_ids), size):
                part = query_ids[start : start + size]
                vectors = self._encoder.encode_query([queries[query] for query in part], **_options(self._batch_size))
                cosines = normalized(vectors) @ np.asarray(self._embeddings).T
                run.update(zip(part, (self._selector.select(row, depth) for row in cosines), strict=True))
                bar.update(len(part))
        return run


def _options(batch_size: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}


def hub_commit_of(encoder: Any) -> str | None:
    """Commit of a model that came from the Hub."""
    backbone = getattr(encoder[0], "auto_model", None)
    return getattr(getattr(backbone, "config", None), "_commit_hash", None)

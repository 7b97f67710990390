"""Exact retrieval with sentence-transformers: bi-encoders by cosine similarity, SPLADE by learned sparse weights.

Queries and documents are encoded with the model's own `encode_query` and `encode_document`, which apply the model's
prompts. Every pair is compared; there is no approximation.

The SPLADE weight of vocabulary entry j for a text is max over its positions i of log(1 + ReLU(logit_ij)), excluding
positions outside the attention mask; the score is the dot product of query and document weights. Reference: Formal et
al., SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval, 2021, equation 6 (max pooling).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.index_cache import cached_index, content_hash
from modeling_tsarank.eval.selection import TopSelector
from modeling_tsarank.eval.types import Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.models.sentence_encoders import load_encoder, load_sparse_encoder, normalized
from modeling_tsarank.ranking_errors import ModelError


_ENCODE_DOCUMENTS = 4096
_SEARCH_VALUES = 1 << 26
"""Maximum number of scores in memory at once; it limits how many queries are searched together."""


class EncoderIndex:
    """Embeddings of one corpus and the model that made them; create one with `build` of a subclass.

    Attributes:
        kind, default_model: Name of the first stage, and its default model.
        encoded: Embeddings of texts, shape (texts, dimensions), float32, from the encoder's method, the texts and the
            batch size. Raises `ModelError` unless all are finite.
    """

    kind: ClassVar[str]
    default_model: ClassVar[str]
    encoded: ClassVar[Any]
    _load_encoder: ClassVar[Any]
    _write: ClassVar[Any]
    _read: ClassVar[Any]

    def __init__(self, encoder: Any, vectors: Any, ids: Sequence[str], batch_size: int) -> None:
        self._encoder, self._by_dimension, self._batch_size = encoder, self._transposed(vectors), batch_size
        self._selector = TopSelector(ids)

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        texts: Sequence[str],
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        device: str | None = None,
        show_progress: bool | None = None,
    ) -> EncoderIndex:
        """Encodes a corpus, or loads the embeddings of the same corpus and model from the cache.

        Args:
            ids: Document ids, unique.
            texts: Their texts, including titles; truncated to the model's maximum length, for SPLADE to 256 tokens.
            cache_dir: See `files.caches.cache_root`.
            model: Folder or Hub id of a sentence-transformers model; for SPLADE, of a masked language model.
            batch_size: Texts per batch.
            device: Torch device of the encoder; chosen by sentence-transformers by default.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Raises:
            InputError: No documents, or duplicate ids.
            ModelError: The model cannot be loaded, or its embeddings are not finite.
            ResourceError: sentence-transformers or SciPy is not installed, or the cache cannot be written.
        """
        package = require("sentence_transformers", extra="dense", purpose=f"The {cls.kind} first stage")
        name = os.fspath(model or cls.default_model)
        encoder = cls._load_encoder(name, device)
        backbone = getattr(encoder[0], "auto_model", None)
        commit = getattr(getattr(backbone, "config", None), "_commit_hash", None)
        made_from = {
            **model_fingerprint(name, commit),
            "sentence_transformers": package.__version__,
            "max_tokens": encoder.max_seq_length,
            "content": content_hash(ids, texts),
        }

        def build(folder: Path) -> None:
            hidden = None if show_progress is None else not show_progress
            parts = []
            with tqdm(total=len(texts), desc=f"{cls.kind} index", unit="doc", disable=hidden) as bar:
                for start in range(0, len(texts), _ENCODE_DOCUMENTS):
                    part = list(texts[start : start + _ENCODE_DOCUMENTS])
                    parts.append(cls.encoded(encoder.encode_document, part, batch_size))
                    bar.update(len(part))
            cls._write(folder, parts)
            write_json(folder / "ids.json", list(ids))

        def load(folder: Path) -> EncoderIndex:
            return cls(encoder, cls._read(folder), read_json(folder / "ids.json"), batch_size)

        return cached_index(cls.kind, made_from, build, load, cache_dir)

    def search(self, queries: Mapping[str, str], depth: int = 100, show_progress: bool | None = None) -> Run:
        """The documents with the highest cosine or dot product for each query; a dot product of 0 is not returned.

        Args:
            queries: Query id to text.
            depth: Maximum number of documents per query, 1 or more.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Returns:
            Query id to document id to score, best first; ties are ordered by document id, descending.
        """
        if not queries:
            return {}
        query_ids = list(queries)
        vectors = self.encoded(self._encoder.encode_query, list(queries.values()), self._batch_size)
        size = max(1, _SEARCH_VALUES // self._by_dimension.shape[1])
        hidden = None if show_progress is None else not show_progress
        run: Run = {}
        for start in tqdm(range(0, len(query_ids), size), desc=self.kind, unit="batch", disable=hidden):
            products = vectors[start : start + size] @ self._by_dimension
            for row, query_id in enumerate(query_ids[start : start + size]):
                scores, positions = self._scores(products, row)
                run[query_id] = self._selector.select(scores, depth, positions)
        return run

    @staticmethod
    def _transposed(vectors: Any) -> Any:
        return vectors.T

    @staticmethod
    def _scores(products: Any, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores of one query and the indices of their documents; None for all documents."""
        return products[row], None


class DenseIndex(EncoderIndex):
    """Normalized embeddings of a bi-encoder."""

    kind = "dense"
    default_model = "sentence-transformers/all-MiniLM-L6-v2"
    _load_encoder = staticmethod(load_encoder)

    @staticmethod
    def encoded(encode: Any, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Unit vectors; see `EncoderIndex.encoded`."""
        return normalized(encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True))

    @staticmethod
    def _write(folder: Path, parts: list[Any]) -> None:
        np.save(folder / "embeddings.npy", np.concatenate(parts))

    @staticmethod
    def _read(folder: Path) -> Any:
        return np.load(folder / "embeddings.npy", mmap_mode="r")


class SpladeIndex(EncoderIndex):
    """Weights of vocabulary entries, as sparse matrices without explicit zeros."""

    kind = "splade"
    default_model = "prithivida/Splade_PP_en_v1"
    _load_encoder = staticmethod(load_sparse_encoder)

    @staticmethod
    def encoded(encode: Any, texts: Sequence[str], batch_size: int) -> Any:
        """A `scipy.sparse.csr_array`; see `EncoderIndex.encoded`."""
        sparse = require("scipy.sparse", extra="eval", purpose="The SPLADE first stage")
        found = encode(texts, batch_size=batch_size, show_progress_bar=False, save_to_cpu=True).coalesce()
        weights = found.values().float().numpy()
        if not np.isfinite(weights).all():
            raise ModelError("the SPLADE model returned a weight that is not finite; try another device")
        return sparse.csr_array((weights, tuple(found.indices().numpy())), shape=tuple(found.shape))

    @staticmethod
    def _write(folder: Path, parts: list[Any]) -> None:
        from scipy import sparse

        sparse.save_npz(folder / "documents.npz", sparse.vstack(parts, format="csr"), compressed=False)

    @staticmethod
    def _read(folder: Path) -> Any:
        return require("scipy.sparse", extra="eval", purpose="The SPLADE first stage").load_npz(
            folder / "documents.npz"
        )

    @staticmethod
    def _transposed(vectors: Any) -> Any:
        return vectors.T.tocsr()

    @staticmethod
    def _scores(products: Any, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        inside = slice(products.indptr[row], products.indptr[row + 1])
        scores, positions = products.data[inside], products.indices[inside]
        return scores[scores > 0], positions[scores > 0]

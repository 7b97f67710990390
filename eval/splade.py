"""SPLADE: learned sparse retrieval with sentence-transformers' `SparseEncoder`, over a sparse matrix.

The weight of vocabulary entry j for a text is max over its positions i of log(1 + ReLU(logit_ij)), positions outside
the attention mask left out; the score is the dot product of query and document weights. Reference: Formal et al.,
SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval, 2021, equation 6 (max pooling).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_tsarank.eval.dense import hub_commit_of
from modeling_tsarank.eval.index_cache import cached_index, content_hash
from modeling_tsarank.eval.selection import TopSelector
from modeling_tsarank.eval.types import Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.models.sentence_encoders import load_sparse_encoder
from modeling_tsarank.ranking_errors import ModelError
from modeling_tsarank.ranking_options import whole_number


if TYPE_CHECKING:
    from scipy.sparse import csr_array

DEFAULT_MODEL = "prithivida/Splade_PP_en_v1"

_ENCODE_DOCUMENTS = 1024
_SEARCH_QUERIES = 64


class SpladeIndex:
    """Sparse document vectors of one corpus and the model that made them; make one with `build`."""

    def __init__(self, encoder: Any, documents: csr_array, ids: Sequence[str], batch_size: int) -> None:
        self._encoder = encoder
        self._by_term = documents.T.tocsr()
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
        max_tokens: int = 256,
        batch_size: int = 32,
        device: str | None = None,
        show_progress: bool | None = None,
    ) -> SpladeIndex:
        """Encodes a corpus, or loads the index of the same corpus, model and length from the cache.

        Args:
            ids: Document ids, unique.
            texts: Their texts, title included.
            cache_dir: See `files.caches.cache_root`.
            model: Folder or Hub id of a masked language model in safetensors.
            max_tokens: Longest text, special tokens included; the rest is cut off.
            batch_size: Texts encoded at once.
            device: Torch device of the encoder.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Raises:
            InputError: No documents, ids that are not unique, or a parameter out of range.
            ModelError: The model cannot be loaded.
            ResourceError: SciPy or sentence-transformers is not installed, or the cache cannot be written.
        """
        sparse = require("scipy.sparse", extra="eval", purpose="The SPLADE first stage")
        name = os.fspath(model)
        encoder = load_sparse_encoder(name, device, whole_number(max_tokens, "max_tokens", 3))
        made_from = {
            **model_fingerprint(name, hub_commit_of(encoder)),
            "sentence_transformers": require("sentence_transformers").__version__,
            "max_tokens": encoder.max_seq_length,
            "content": content_hash(ids, texts),
        }

        def build(folder: Path) -> None:
            documents = encoded(encoder.encode_document, texts, batch_size, show_progress)
            sparse.save_npz(folder / "documents.npz", documents, compressed=False)
            write_json(folder / "ids.json", list(ids))

        def load(folder: Path) -> SpladeIndex:
            return cls(encoder, sparse.load_npz(folder / "documents.npz"), read_json(folder / "ids.json"), batch_size)

        return cached_index("splade", made_from, build, load, cache_dir)

    def search(self, queries: Mapping[str, str], depth: int = 100, show_progress: bool | None = None) -> Run:
        """The documents with the highest dot product with every query; a product of 0 is no result.

        Args:
            queries: Query id to text.
            depth: Documents a query at most, 1 or more.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Returns:
            Query id to document id to score, best first; ties by document id descending.
        """
        query_ids = list(queries)
        if not query_ids:
            return {}
        vectors = encoded(self._encoder.encode_query, list(queries.values()), self._batch_size, show_progress)
        run: Run = {}
        for start in range(0, len(query_ids), _SEARCH_QUERIES):
            part = query_ids[start : start + _SEARCH_QUERIES]
            products: Any = (vectors[start : start + len(part)] @ self._by_term).tocsr()
            for row, query_id in enumerate(part):
                inside = slice(products.indptr[row], products.indptr[row + 1])
                scores, positions = products.data[inside], products.indices[inside]
                run[query_id] = self._selector.select(scores[scores > 0], depth, positions[scores > 0])
        return run


def encoded(encode: Any, texts: Sequence[str], batch_size: int = 32, show_progress: bool | None = None) -> csr_array:
    """Weights of every text: a sparse float32 matrix of shape (texts, vocabulary), no explicit zeros.

    Raises:
        ModelError: A weight is not finite.
    """
    from scipy.sparse import csr_array, vstack

    parts = []
    for start in range(0, len(texts), _ENCODE_DOCUMENTS):
        batch = list(texts[start : start + _ENCODE_DOCUMENTS])
        found = encode(batch, batch_size=batch_size, show_progress_bar=show_progress, save_to_cpu=True).coalesce()
        weights = found.values().float().numpy()
        if not np.isfinite(weights).all():
            raise ModelError("the SPLADE model gave a weight that is not finite; try another device")
        parts.append(csr_array((weights, tuple(found.indices().numpy())), shape=tuple(found.shape)))
    return vstack(parts, format="csr")

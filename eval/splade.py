"""SPLADE: learned sparse retrieval with any masked language model, over a sparse matrix.

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
from tqdm.auto import tqdm

from modeling_tsarank.eval.index_cache import cached_index, content_hash
from modeling_tsarank.eval.selection import TopSelector
from modeling_tsarank.eval.types import Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.ranking_errors import ModelError
from modeling_tsarank.ranking_options import whole_number


if TYPE_CHECKING:
    from scipy.sparse import csr_array

DEFAULT_MODEL = "prithivida/Splade_PP_en_v1"

_SEARCH_QUERIES = 64


class SpladeEncoder:
    """Texts to sparse vectors over the vocabulary.

    Args:
        model: Folder or Hub id of a masked language model in safetensors. Nothing is unpickled.
        max_tokens: Longest text; the rest is cut off. The model's own limit holds as well.
        batch_size: Texts encoded at once; longer and shorter ones are kept apart.
        device: Torch device; the first GPU, else the CPU, by default.

    Raises:
        ModelError: The model cannot be loaded, or lacks the masked-language-model head.
    """

    def __init__(
        self, model: str | os.PathLike[str], max_tokens: int = 256, batch_size: int = 32, device: str | None = None
    ) -> None:
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        from modeling_tsarank.ranking_checkpoints import first_line, some_of

        max_tokens, batch_size = whole_number(max_tokens, "max_tokens", 3), whole_number(batch_size, "batch_size")
        self.name = os.fspath(model)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.name)
            self._model, loading = AutoModelForMaskedLM.from_pretrained(
                self.name, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # the libraries check few fields of the files they read
            raise ModelError(
                f"{self.name!r} cannot be loaded as a masked language model: {first_line(error)}"
            ) from error
        if loading["missing_keys"]:
            missing = some_of(loading["missing_keys"])
            raise ModelError(f"{self.name!r} is no masked language model: it lacks the weights {missing}")
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = self._model.eval().to(self._device)
        positions = getattr(self._model.config, "max_position_embeddings", None) or max_tokens
        self.max_tokens = min(max_tokens, positions, self._tokenizer.model_max_length)
        self.commit: str | None = getattr(self._model.config, "_commit_hash", None)
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str], label: str = "SPLADE", show_progress: bool | None = None) -> csr_array:
        """Weights of every text: a sparse float32 matrix of shape (texts, vocabulary), no explicit zeros."""
        from scipy.sparse import csr_array, vstack

        hidden = None if show_progress is None else not show_progress
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        parts = []
        with tqdm(total=len(texts), desc=label, unit="text", disable=hidden) as bar:
            for start in range(0, len(order), self._batch_size):
                batch = [texts[index] for index in order[start : start + self._batch_size]]
                parts.append(csr_array(self._weights(batch)))
                bar.update(len(batch))
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return vstack(parts, format="csr")[back]

    def _weights(self, texts: Sequence[str]) -> np.ndarray:
        """Dense weights of one batch, (texts, vocabulary)."""
        import torch

        inputs = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()
            # log(1 + ReLU(x)) grows with x, so the maximum over positions may be taken first.
            masked = logits.masked_fill(inputs["attention_mask"].unsqueeze(-1) == 0, 0.0)
            weights = torch.log1p(torch.relu(masked.amax(dim=1)))
        if not torch.isfinite(weights).all():
            raise ModelError(f"{self.name!r} gave a weight that is not finite; try another device")
        return weights.cpu().numpy()


class SpladeIndex:
    """Sparse document vectors of one corpus and the model that made them; make one with `build`."""

    def __init__(self, encoder: SpladeEncoder, documents: csr_array, ids: Sequence[str]) -> None:
        self._encoder = encoder
        self._by_term = documents.T.tocsr()
        self._selector = TopSelector(ids)

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
            model: Folder or Hub id of a masked language model.
            max_tokens: Longest text, special tokens included; the rest is cut off.
            batch_size: Texts encoded at once.
            device: Torch device of the encoder.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Raises:
            InputError: No documents, ids that are not unique, or a parameter out of range.
            ModelError: The model cannot be loaded.
            ResourceError: SciPy is not installed, or the cache cannot be written.
        """
        sparse = require("scipy.sparse", extra="eval", purpose="The SPLADE first stage")
        transformers = require("transformers")
        encoder = SpladeEncoder(model, max_tokens, batch_size, device)
        made_from = {
            **model_fingerprint(encoder.name, encoder.commit),
            "transformers": transformers.__version__,
            "max_tokens": encoder.max_tokens,
            "content": content_hash(ids, texts),
        }

        def build(folder: Path) -> None:
            documents = encoder.encode(texts, "SPLADE index", show_progress)
            sparse.save_npz(folder / "documents.npz", documents, compressed=False)
            write_json(folder / "ids.json", list(ids))

        def load(folder: Path) -> SpladeIndex:
            loaded_ids = read_json(folder / "ids.json")
            return cls(encoder, sparse.load_npz(folder / "documents.npz"), loaded_ids)

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
        vectors = self._encoder.encode([queries[query_id] for query_id in query_ids], "SPLADE", show_progress)
        run: Run = {}
        for start in range(0, len(query_ids), _SEARCH_QUERIES):
            part = query_ids[start : start + _SEARCH_QUERIES]
            products: Any = (vectors[start : start + len(part)] @ self._by_term).tocsr()
            for row, query_id in enumerate(part):
                inside = slice(products.indptr[row], products.indptr[row + 1])
                scores, positions = products.data[inside], products.indices[inside]
                run[query_id] = self._selector.select(scores[scores > 0], depth, positions[scores > 0])
        return run

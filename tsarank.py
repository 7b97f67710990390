"""tsarank: LLM text rerankers native to the Hugging Face Hub. `import tsarank` is short for `import modeling_tsarank`.

import tsarank

model = tsarank.load_ranker()
model.rank("how long does a flea live", documents, top_k=3)
"""

from modeling_tsarank import __all__, __dir__, __getattr__, __version__  # noqa: F401

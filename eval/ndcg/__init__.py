"""The `evaluate` module for nDCG and related measures; `modeling_tsarank.eval.metrics` uses the same computation."""

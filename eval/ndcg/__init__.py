"""The `evaluate` module for nDCG and its companions; also the computation behind `modeling_tsarank.eval.metrics`."""

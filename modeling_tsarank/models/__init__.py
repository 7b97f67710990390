"""Loading models by name: the embedded default, releases, checkpoints."""

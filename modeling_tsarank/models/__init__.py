"""From a name to a model: the embedded default, releases, checkpoints."""

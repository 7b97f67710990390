"""Publishing of ranking models: cards and uploads."""

"""How a ranking model is published: cards and uploads."""

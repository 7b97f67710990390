"""Ways to put a list in order: pointwise scorers, listwise rankers, services behind an address."""

"""Ways to put a list in order: pointwise scorers, rankers of whole lists, services behind an address."""

RANKERS = ("pointwise", "listwise", "first", "setwise", "pairwise", "attention", "one-pass")

"""Ways to order a list: pointwise scorers, rankers of whole lists, services behind a URL."""

RANKERS = ("pointwise", "listwise", "first", "setwise", "pairwise", "attention", "one-pass")

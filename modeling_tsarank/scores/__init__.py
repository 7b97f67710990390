"""Processing a ranker's scores: long documents, fusion with the first stage, probabilities."""

RAW_SCORES = (
    "Scores order the documents of one query; they are not probabilities of relevance, and not comparable between "
    "queries or models."
)
"""What a score means, in the same words in help, documentation, cards and the app."""

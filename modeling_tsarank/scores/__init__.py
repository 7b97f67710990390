"""What is made of a ranker's scores: scores of long documents, fusion with the first stage's, probabilities."""

RAW_SCORES = (
    "Scores order the documents of one query; they are not probabilities of relevance, and not comparable between "
    "queries or models."
)
"""What a score means, in the same words in help, documentation, cards and the app."""

"""Training data from raw text: weak pairs, hard negatives, queries and distillation lists, with their provenance."""

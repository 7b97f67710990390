"""Recipes as YAML files, and the preparation of a release's training data."""

"""Evaluation of ranking models: metrics, test collections, first stages, run files, significance tests."""

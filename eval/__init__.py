"""How a ranking model is measured: metrics, collections, first stages, run files, significance."""

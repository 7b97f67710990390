"""One resumable scoring job for any number of pairs."""

"""The HTTP service: `tsarank serve`."""

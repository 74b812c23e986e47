"""From the tracking store to tidy frames."""

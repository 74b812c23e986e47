"""Files: written whole or not at all, here or at a URL."""

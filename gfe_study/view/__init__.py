"""What is shown of a study while it runs and when it has ended: on a terminal, in a notebook, as data."""

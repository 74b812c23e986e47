"""The commands: what is typed, and where it is passed on."""

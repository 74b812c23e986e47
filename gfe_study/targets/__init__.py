"""Distributions that latents are pulled to. One file each; registered in `config.CHOICES`."""

"""Distributions that latents are pulled to. One file each; found by `gfe_study.registry`."""

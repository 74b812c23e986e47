"""Latent solvers: given a flow and a batch, find z*. One file per family; found by `gfe_study.registry`."""

"""Latent solvers: given a flow and a batch, find z*. One file per family; registered in `config.CHOICES`."""

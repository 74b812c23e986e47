"""Kernel density estimates in latent spaces, and what is measured with them."""

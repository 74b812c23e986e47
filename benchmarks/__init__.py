"""What the solvers, the gradients and training cost here. `make bench`; ratios of one run, one thread."""

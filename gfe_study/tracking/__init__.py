"""MLflow: the runs of studies. Importing this package imports no MLflow; importing `client` does.

`Tracker` writes the runs: directly to an sqlite file, and to other stores by MLflow's client.
"""

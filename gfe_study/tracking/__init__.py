"""MLflow: the runs of studies. Importing this package imports no MLflow; importing `client` does.

`Tracker` writes the runs: directly to sqlite and PostgreSQL, and to other stores by MLflow's client.
"""

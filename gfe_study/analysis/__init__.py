"""From the tracking store to tables and figures. Reads the store and nothing else."""

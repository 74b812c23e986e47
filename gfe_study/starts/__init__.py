"""Where the flow of a sample starts, z₀. One file each; found by `gfe_study.registry`."""

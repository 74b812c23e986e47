"""What a trial is measured by beside its losses. One file each; found by `gfe_study.registry`."""

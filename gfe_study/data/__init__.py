"""Datasets: splits that are fixed, disjoint and seeded. One file per family; found by `gfe_study.registry`."""

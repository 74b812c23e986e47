"""Datasets: splits that are fixed, disjoint and seeded. One file per family; registered in `config.CHOICES`."""

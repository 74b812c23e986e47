"""Where the flow of a sample starts, z₀. One file each; registered in `config.CHOICES`."""

"""What a trial is measured by beside its losses. One file each; registered in `config.CHOICES`."""

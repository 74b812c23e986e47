"""`python -m gfe_study`."""

from gfe_study.cli import main

main()

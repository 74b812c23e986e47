"""Entry point of `gfe-study` and of `python -m gfe_study`."""

from gfe_study import interrupts


def main() -> None:
    """Run the command line. Signals are handled before the imports, which take most of a second."""
    interrupts.install()
    try:
        with interrupts.deferred():
            from gfe_study.cli.app import main as run
        run()
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()

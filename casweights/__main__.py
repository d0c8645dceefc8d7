"""``python -m casweights``: the command line."""

from casweights.cli import main

if __name__ == "__main__":
    main()

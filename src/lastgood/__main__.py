"""`python -m lastgood`: the same as the command `lastgood`."""

from lastgood.cli import main

if __name__ == "__main__":
    main()

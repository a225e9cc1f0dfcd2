"""``python -m morphogen``: the command line, where its script is not on the path."""

from morphogen.cli.main import main

if __name__ == "__main__":
    main()

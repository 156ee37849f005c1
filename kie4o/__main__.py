"""`python -m kie4o`: the command line."""

from kie4o.cli import main

if __name__ == "__main__":
    main()

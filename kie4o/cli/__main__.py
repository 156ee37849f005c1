"""`python -m kie4o.cli`: the same as `python -m kie4o`."""

from .main import main

if __name__ == "__main__":
    main()

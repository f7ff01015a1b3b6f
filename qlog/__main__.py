"""`python -m qlog` is the `qlog` command."""

from qlog.tools.entry import main

if __name__ == "__main__":
    main()

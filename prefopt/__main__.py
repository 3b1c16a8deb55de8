"""Lets `python -m prefopt` and `accelerate launch -m prefopt` start the command line."""

from prefopt.cli import main

if __name__ == "__main__":
    main()

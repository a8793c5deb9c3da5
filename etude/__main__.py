"""`python -m etude` and `torchrun -m etude`: the command line."""

from etude.cli import main

if __name__ == "__main__":
    main()

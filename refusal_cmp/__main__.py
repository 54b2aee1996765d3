"""`python -m refusal_cmp`: the command line, where its script is not on the path."""

from refusal_cmp.cli import main

if __name__ == "__main__":
    main()

"""`python -m lakeclip` is `lakeclip`, and so is `torchrun … -m lakeclip`."""

from lakeclip.cli.app import main

if __name__ == "__main__":
    main()

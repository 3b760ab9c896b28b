"""`python -m prebinder`."""

from prebinder.cli import main

if __name__ == "__main__":
    main()

"""`python -m llamoot` is `llamoot`."""

from llamoot.cli.main import main

if __name__ == "__main__":
    main()

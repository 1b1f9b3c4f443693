"""`python -m genview`."""

from genview.cli import main

main()

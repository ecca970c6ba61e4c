"""`python -m spectrum`."""

from spectrum.cli import command

command()

"""Converts SAEs between saejax and published formats, with proof of parity."""

from saejax import command

if __name__ == "__main__":
  command.run("convert")

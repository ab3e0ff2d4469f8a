"""Splits the error of SAEs into a linear part and a rest, over their widths."""

from saejax import command

if __name__ == "__main__":
  command.run("dark_matter")

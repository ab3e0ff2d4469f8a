"""Scaling laws of TopK SAEs: harvest, train a grid, fit L(n, k), report."""

from saejax import command

if __name__ == "__main__":
  command.run("scaling")

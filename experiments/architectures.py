"""Compares all methods on the same activations, at several L0, with seeds."""

from saejax import command

if __name__ == "__main__":
  command.run("architectures")

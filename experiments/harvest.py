"""Harvests activations of a model into a training and a held-out store."""

from saejax import command

if __name__ == "__main__":
  command.run("harvest")

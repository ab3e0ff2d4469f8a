"""Evaluates SAEs in the model: loss recovered, reconstruction, controls."""

from saejax import command

if __name__ == "__main__":
  command.run("evaluate")

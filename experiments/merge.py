"""Merges stores of one model and site into one store."""

from saejax import command

if __name__ == "__main__":
  command.run("merge")

"""Trains SAEs on stores that experiments/harvest.py wrote, or online."""

from saejax import command

if __name__ == "__main__":
  command.run("train")

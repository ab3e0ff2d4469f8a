"""Measures claims of papers about their methods over paired seeds."""

from saejax import command

if __name__ == "__main__":
  command.run("claims")

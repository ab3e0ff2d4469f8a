"""Shows what stores hold, and what is missing of those being written."""

from saejax import command

if __name__ == "__main__":
  command.run("info")

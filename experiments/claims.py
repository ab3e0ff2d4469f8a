"""What papers claim of their methods, measured here over paired seeds."""

from saejax import command

if __name__ == "__main__":
  command.run("claims")

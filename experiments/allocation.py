"""Token choice, mutual choice and feature choice on the same activations."""

from saejax import command

if __name__ == "__main__":
  command.run("allocation")

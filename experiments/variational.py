"""Variational SAEs against TopK and an L2 control, over the KL weight."""

from saejax import command

if __name__ == "__main__":
  command.run("variational")

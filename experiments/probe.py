"""Probes SAEs with labels of texts: what latents, one or a few, tell of classes."""

from saejax import command

if __name__ == "__main__":
  command.run("probe")

"""Writes a page to look at latents: examples, histograms, neighbours."""

from saejax import command

if __name__ == "__main__":
  command.run("dashboard")

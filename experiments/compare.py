"""Writes a page to compare two SAEs: latents matched, split, absorbed, unmatched."""

from saejax import command

if __name__ == "__main__":
  command.run("compare")

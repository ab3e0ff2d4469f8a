"""Writes a page to look at latents, or files of them for other tools."""

from saejax import command

if __name__ == "__main__":
  command.run("dashboard")

"""Matches the latents of SAEs of two models and compares their geometry."""

from saejax import command

if __name__ == "__main__":
  command.run("universality")

"""Geometry of an SAE's decoder rows: crystals, lobes or the galaxy, with their nulls."""

from saejax import command

if __name__ == "__main__":
  command.run("geometry")

"""Geometry of an SAE's decoder rows: crystals, lobes or the galaxy."""

from saejax import command

if __name__ == "__main__":
  command.run("geometry")

"""Verifies stores, saved SAEs and run folders: every byte against its checksum."""

from saejax import command

if __name__ == "__main__":
  command.run("verify")

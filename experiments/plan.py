"""Says what a run needs and takes on devices that need not be here."""

from saejax import command

if __name__ == "__main__":
  command.run("plan")

"""Starts the processes of a command on this machine, and watches them."""

from saejax import launching

if __name__ == "__main__":
  launching.main()

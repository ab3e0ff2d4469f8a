"""Bagging and boosting of TopK SAEs against one SAE and one wider SAE."""

from saejax import command

if __name__ == "__main__":
  command.run("ensembling")

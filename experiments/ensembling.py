"""Bagging and boosting of TopK SAEs against one SAE and one wider SAE."""

from saejax import interrupt

if __name__ == "__main__":  # before jax is imported
  interrupt.install()

from saejax import config
from saejax.studies.ensembling import Config, main

if __name__ == "__main__":
  config.run(main, Config)

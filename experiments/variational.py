"""Variational SAEs against TopK and an L2 control, over the KL weight."""

from saejax import interrupt

if __name__ == "__main__":  # before jax is imported
  interrupt.install()

from saejax import config
from saejax.studies.variational import Config, main

if __name__ == "__main__":
  config.run(main, Config)

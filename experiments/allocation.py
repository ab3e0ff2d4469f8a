"""Token choice, mutual choice and feature choice on the same activations."""

from saejax import interrupt

if __name__ == "__main__":  # before jax is imported
  interrupt.install()

from saejax import config
from saejax.studies.allocation import Config, main

if __name__ == "__main__":
  config.run(main, Config)

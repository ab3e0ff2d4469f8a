"""Every method on the same activations, at several L0, with seeds."""

from saejax import interrupt

if __name__ == "__main__":  # before jax is imported
  interrupt.install()

from saejax import config
from saejax.studies.architectures import Config, main

if __name__ == "__main__":
  config.run(main, Config)

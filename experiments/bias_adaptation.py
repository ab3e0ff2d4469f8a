"""Group Bias Adaptation on planted dictionaries and on real activations."""

from saejax import interrupt

if __name__ == "__main__":  # before jax is imported
  interrupt.install()

from saejax import config
from saejax.studies.bias_adaptation import Config, main

if __name__ == "__main__":
  config.run(main, Config)

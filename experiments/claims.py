"""What papers claim of their methods, measured here over paired seeds."""

from saejax import interrupt

if __name__ == "__main__":  # before jax is imported
  interrupt.install()

from saejax import config
from saejax.studies.claims.study import Config, main

if __name__ == "__main__":
  config.run(main, Config)

"""Verifies stores: every byte is read and compared with its checksum.

    python experiments/verify.py --path=runs/stores/store-0123456789abcdef

Prints a line for each folder; a damage is one line that names the file, and
exit code 2.
"""

import dataclasses

from saejax import config
from saejax.data.store import reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What to verify."""

  path: tuple[str, ...]  # folders of stores


def main(config: Config) -> None:
  for path in config.path:
    store = reader.open(path)
    store.verify()
    print(f"{store.path}: {store.rows} rows, content {store.content}: sound")


if __name__ == "__main__":
  config.run(main, Config)

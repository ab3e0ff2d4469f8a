"""The pass over a store behind a dashboard: its folder, its share, its progress."""

import time
from typing import Any

from saejax import terminal
from saejax.data.store.reader import Store
from saejax.data.store.share import Share
from saejax.features import parts, reading
from saejax.sae.sae import SAE


def kept(
  root: str,
  share: Share,
  seconds: float,
  kind: str,
  sae: SAE,
  store: Store,
  **settings: Any,
) -> parts.Pass:
  """Returns where a pass is kept: a folder named by what it depends on.

  Args:
    root: folder of passes.
    share: which process this is, of how many.
    seconds: time between saves.
    kind: what is made of the pass.
    sae, store: the SAE and the rows.
    **settings: JSON-serialisable settings of the pass.
  """
  about = reading.identity(kind, sae, store, **settings)
  return parts.Pass(parts.folder(root, about), share, seconds)


class Meter:
  """Shows what is done of a stage, about once a second.

  Args:
    screen: where.
  """

  def __init__(self, screen: terminal.Screen):
    self._screen, self._next = screen, 0.0
    self._pause = 1.0 if screen.is_terminal else 10.0

  def __call__(self, stage: str, done: int, total: int) -> None:
    """Shows the status, where it is time to, or the stage is done.

    Args:
      stage: what is counted.
      done, total: number done, and of all.
    """
    now = time.monotonic()
    if now < self._next and done < total:
      return
    self._next = now + self._pause
    self._screen.status([f"dashboard: {stage} {done:,} of {total:,}"])
    if done >= total:
      self._screen.end()

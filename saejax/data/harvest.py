"""Harvests a model's activations on a corpus into two stores.

The training store is shuffled inside buckets; the held-out store keeps
documents whole and in order. `data.fill` writes them, `data.text.rows` makes
the rows.
"""

from saejax.data import fill, spec
from saejax.data.fill import Progress
from saejax.data.spec import HarvestConfig as HarvestConfig
from saejax.data.spec import meta as meta
from saejax.data.spec import path as path
from saejax.data.store import reader
from saejax.data.text import corpus as text
from saejax.data.text import rows, subject


def harvest(
  config: HarvestConfig,
  *,
  source: subject.Subject | None = None,
  target: subject.Subject | None = None,
  progress: Progress | None = None,
) -> tuple[reader.Store, reader.Store]:
  """Harvests the training and the held-out store, or opens them if complete.

  The same call goes on after a kill at any moment. A corpus with fewer rows
  than wanted gives a smaller store.

  Args:
    config: what and how.
    source: the model; that of config.model by default.
    target: the model at the site of the target column; by default that of
      config.target_point, where it is given.
    progress: called about once a second, see `fill.fill`.

  Returns:
    (training store, held-out store).

  Raises:
    InputError: settings, model, corpus or disk do not allow it; buckets that
      were finished are kept.
  """
  source = source or subject.of(config.model, config.layer, config.point)
  target = target or spec.target(config)
  corpus = text.documents(config.corpus, field=config.field)
  found: list[reader.Store] = []
  for part in (text.TRAIN, text.HELD_OUT):
    about = meta(config, part, source=source, corpus=corpus, target=target)
    # One threshold for both: the median norm is that of the training part.
    calibration = found[0].stats["calibration"] if found else None
    of_part = rows.TextRows(
      config, source, corpus, part, about, calibration, target
    )
    store = fill.fill(of_part, path(config, about), about, progress=progress)
    found.append(store)
  return found[0], found[1]

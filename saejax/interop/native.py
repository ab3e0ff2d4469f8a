"""saejax's own folders, as a format among the others.

References:
  saejax.sae.files.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from saejax.errors import InputError
from saejax.interop import record as records
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import Record, Site
from saejax.sae import files as sae_files
from saejax.sae.sae import SAE


def matches(files: Files) -> bool:
  """Whether it is a folder that saejax saved.

  Args:
    files: the files.
  """
  return files.has(sae_files.STRUCTURE)


def read(files: Files, hints: Hints) -> Record:
  """Reads the inference form of a saved SAE.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: the folder is damaged, a part has no form in a record, or the
      SAE diverged in training.
  """
  about = sae_files.about(files.folder)
  if sae_files.is_diverged(about):
    raise InputError(
      "sae",
      files.name,
      f"{about['status']} of its training, and its weights are those before it",
      "train it at a lower learning rate, or read it with saejax.load",
    )
  site = {**_site(about), **hints.site}
  sae = sae_files.load(files.folder)
  return records.from_sae(sae, site=Site(**site), name=files.name)


def _site(about: dict[str, Any]) -> dict[str, Any]:
  if "interop" in about:  # written by `save`
    return about["interop"]["site"]
  data = about.get("data") or about.get("store") or {}
  data = data if isinstance(data, dict) else {}
  known = {"model": data.get("model"), "hook": data.get("site")}
  return {k: v for k, v in known.items() if isinstance(v, str)}


def forward(files: Files, hints: Hints) -> Forward:
  """The SAE itself.

  Args:
    files, hints: as for `read`.
  """
  del hints
  return running(sae_files.load(files.folder))


def running(sae: SAE) -> Forward:
  """The latents and reconstructions of an SAE, as NumPy arrays.

  Args:
    sae: the SAE.
  """

  def run(x):
    z, x_hat = _both(sae, jnp.asarray(x, jnp.float32))
    return np.asarray(z), np.asarray(x_hat)

  return run


@jax.jit
def _both(sae: SAE, x: Array) -> tuple[Array, Array]:
  return sae.encode(x), sae.reconstruct(x)


def save(record: Record, folder: pathlib.Path) -> None:
  """Saves the SAE of a record.

  Args:
    record: the record.
    folder: the folder.
  """
  about = {"site": record.site.known(), "source": vars(record.source)}
  sae_files.save(record.to_sae(), folder, about={"interop": about})

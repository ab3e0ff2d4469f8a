"""Llama, a pre-norm decoder with rotary positions and shared key heads.

Touvron et al., LLaMA, 2023, arXiv:2302.13971; Grattafiori et al., The Llama 3
Herd of Models, 2024, arXiv:2407.21783.

h = token; per layer
  mid = h + attn(RMS(h)),  post = mid + W_down (act(W_gate x) * W_up x),
  x = RMS(mid);
out = RMS(h); logits = out W_head^T.
"""

import collections.abc
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax.models import config_file, ops, weights

# point: (name of the module in transformers, port, index of its output tuple)
SITES = {
  "resid_pre": ("model.layers.{}", "in", None),
  "resid_mid": ("model.layers.{}.post_attention_layernorm", "in", None),
  "resid_post": ("model.layers.{}", "out", 0),
  "attn_out": ("model.layers.{}.self_attn", "out", 0),
  "mlp_out": ("model.layers.{}.mlp", "out", None),
}
# Other modules with the same output.
ALIASES = {
  "model.layers.{}.self_attn.o_proj": "attn_out",
  "model.layers.{}.mlp.down_proj": "mlp_out",
}
HEAD = "lm_head.weight"
PREFIX = "model."


@dataclasses.dataclass(frozen=True)
class Rope:
  """Settings of rotary positions: base theta and rescaling of the frequencies.

  Attributes:
    theta: base of the frequencies.
    kind: "default", "linear" (all frequencies divided by `factor`) or "llama3".
    factor: divisor of frequencies.
    low, high, original: for "llama3", frequencies of wavelengths above
      original / low are divided by `factor`, those of wavelengths below
      original / high are unchanged, and between them the two are interpolated
      linearly in 1 / wavelength.
  """

  theta: float
  kind: str = "default"
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: float = 8192.0


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.json that the forward pass uses.

  Attributes:
    max_positions: the training length; longer rows are possible.
    tied: whether the head is the token table.
    has_head: whether the weights must have a head where it is untied; weights of
      a base model or a classifier may lack it.
  """

  family: ClassVar[str] = "llama"
  vocabulary: int
  d: int
  layers: int
  heads: int
  key_heads: int
  head: int
  d_mlp: int
  max_positions: int
  eps: float
  activation: str
  attention_bias: bool
  mlp_bias: bool
  tied: bool
  has_head: bool
  rope: Rope


def read_config(file: config_file.ConfigFile) -> Config:
  """Reads the settings of a Llama model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  file.refuse_unknown()
  d, heads = file.integer("hidden_size"), file.integer("num_attention_heads")
  config = Config(
    vocabulary=file.integer("vocab_size"),
    d=d,
    layers=file.integer("num_hidden_layers"),
    heads=heads,
    key_heads=file.integer("num_key_value_heads", heads),
    head=file.integer("head_dim", max(d // heads, 1)),
    d_mlp=file.integer("intermediate_size"),
    max_positions=file.integer("max_position_embeddings", 2048),
    eps=file.number("rms_norm_eps", 1e-6),
    activation=file.choice("hidden_act", ops.ACTIVATIONS, "silu"),
    attention_bias=file.flag("attention_bias", False),
    mlp_bias=file.flag("mlp_bias", False),
    tied=file.flag("tie_word_embeddings", False),
    has_head=file.has_head,
    rope=_read_rope(file),
  )
  if config.heads % config.key_heads:
    raise file.refusal("num_key_value_heads", f"must divide {config.heads}")
  if config.head % 2:
    raise file.refusal("head_dim", "must be even")
  return config


def _read_rope(file: config_file.ConfigFile) -> Rope:
  # rope_scaling is the older form; as in transformers, it takes precedence.
  scaling = file.values.get("rope_scaling")
  key = "rope_scaling" if scaling else "rope_parameters"
  values = scaling or file.values.get("rope_parameters") or {}
  if not isinstance(values, dict) or any(
    isinstance(v, dict) for v in values.values()
  ):
    raise file.refusal(key, "must be one set of numbers for all layers")
  default_theta = file.number("rope_theta", 10000.0)
  values = dict(values)
  values.setdefault("rope_type", values.get("type"))
  rope = config_file.ConfigFile(file.folder, values)
  rope.refuse_unknown()
  kind = rope.choice("rope_type", ("default", "linear", "llama3"), "default")
  theta = rope.number("rope_theta", default_theta)
  if kind == "default":
    return Rope(theta)
  if kind == "linear":
    return Rope(theta, kind, rope.number("factor"))
  return Rope(
    theta,
    kind,
    rope.number("factor"),
    rope.number("low_freq_factor"),
    rope.number("high_freq_factor"),
    rope.number(
      "original_max_position_embeddings",
      file.number("max_position_embeddings", 2048),
    ),
  )


def read_params(w: weights.Weights, config: Config) -> dict[str, Any]:
  """Reads the weights by role.

  Args:
    w: the tensors of the checkpoint.
    config: the settings.

  Raises:
    InputError: a tensor is missing or has another shape or type.
  """
  w.strip_prefix("embed_tokens.weight", PREFIX, "")
  d, d_mlp, head = config.d, config.d_mlp, config.head
  inner, shared = config.heads * head, config.key_heads * head

  def attention(name: str, i: int, *o: int) -> weights.Linear:
    names = [f"{name}.{n}_proj" for n in ("qkv" if len(o) == 3 else "o")]
    return w.linear(*names, i=i, o=o, bias=config.attention_bias)

  def mlp(*names: str, i: int, o: int) -> weights.Linear:
    return w.linear(*names, i=i, o=o, bias=config.mlp_bias)

  def layer(at: str) -> dict[str, Any]:
    return {
      "norm_pre": w.take(f"{at}.input_layernorm.weight", d),
      "qkv": attention(f"{at}.self_attn", d, inner, shared, shared),
      "out": attention(f"{at}.self_attn", inner, d),
      "norm_mid": w.take(f"{at}.post_attention_layernorm.weight", d),
      "up": mlp(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj", i=d, o=d_mlp),
      "down": mlp(f"{at}.mlp.down_proj", i=d_mlp, o=d),
    }

  params = {
    "token": w.take("embed_tokens.weight", config.vocabulary, d),
    "layers": tuple(layer(f"layers.{l}") for l in range(config.layers)),
    "norm": w.take("norm.weight", d),
  }
  if not config.tied and (config.has_head or w.holds(HEAD)):
    params["head"] = w.take(HEAD, config.vocabulary, d, absolute=True)
  return params


def forward(
  params: dict[str, Any],
  config: Config,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  tap: collections.abc.Callable[[str, Array], Array],
  view: ops.View | None = None,
) -> Float[Array, "B T d"]:
  """Computes the last hidden state, after the last norm.

  Args:
    params: the result of `read_params`.
    config: the settings.
    ids: token ids.
    mask: which tokens are real.
    tap: called with name and h at every point, returns h, see `Model.hidden`.
    view: positions and attention; by default each token sees all before it.
  """
  act = ops.ACTIVATIONS[config.activation]
  h = ops.embed(params["token"], ids)
  view = view or ops.whole(mask)
  angles = view.positions[..., None].astype(jnp.float32)
  angles = angles * frequencies(config.rope, config.head)[None, None]
  for l, p in enumerate(params["layers"]):
    h = tap(f"layers.{l}.resid_pre", h)
    qkv = ops.linear(ops.rms_norm(h, p["norm_pre"], config.eps), p["qkv"])
    q, k, v = _heads(qkv, config)
    q, k = rotate(q, angles), rotate(k, angles)
    a = view.attend(l, q, k, v, config.head**-0.5)
    a = tap(f"layers.{l}.attn_out", ops.linear(a, p["out"]))
    h = tap(f"layers.{l}.resid_mid", h + a)
    up = ops.linear(ops.rms_norm(h, p["norm_mid"], config.eps), p["up"])
    gate, up = jnp.split(up, 2, axis=-1)
    m = tap(f"layers.{l}.mlp_out", ops.linear(act(gate) * up, p["down"]))
    h = tap(f"layers.{l}.resid_post", h + m)
  return ops.rms_norm(h, params["norm"], config.eps)


def _heads(
  qkv: Float[Array, "B T o"], config: Config
) -> tuple[Array, Array, Array]:
  B, T, _ = qkv.shape
  parts = qkv.reshape(B, T, -1, config.head)
  keys = config.heads + config.key_heads
  return (
    parts[:, :, : config.heads],
    parts[:, :, config.heads : keys],
    parts[:, :, keys:],
  )


def frequencies(rope: Rope, head: int) -> Float[np.ndarray, "h/2"]:
  """Returns the angular frequencies theta^(-2i/head), rescaled, per position.

  Args:
    rope: base and rescaling.
    head: width of a head.

  >>> frequencies(Rope(theta=100.0), 4).round(6).tolist()
  [1.0, 0.10000000149011612]
  """
  f = np.float32
  exponents = np.arange(0, head, 2, dtype=f) / f(head)
  omega = (1 / np.power(f(rope.theta), exponents)).astype(f)
  if rope.kind == "default":
    return omega
  slow = omega / f(rope.factor)
  if rope.kind == "linear":
    return slow
  wavelength = 2 * np.pi / omega
  mix = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
  mix = np.clip(mix, 0, 1).astype(f)
  return (1 - mix) * slow + mix * omega


def rotate(
  x: Float[Array, "B T H h"], angles: Float[Array, "B T h/2"]
) -> Float[Array, "B T H h"]:
  """Rotates each pair (x_i, x_(i+h/2)) by its angle.

  Args:
    x: queries or keys.
    angles: angles in radians.

  References:
    Su et al., RoFormer, 2021, arXiv:2104.09864, with halves instead of adjacent
    pairs.
  """
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)

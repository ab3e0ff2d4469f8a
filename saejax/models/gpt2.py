"""GPT-2, a pre-norm decoder with learned positions.

Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

h = wte + wpe; per layer
  mid = h + attn(LN(h)),  post = mid + W2 act(W1 LN(mid));
out = LN(h); logits = out wte^T (out W_head^T where the head is untied).
"""

import collections.abc
import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Bool, Float, Int

from saejax.models import config_file, ops, weights

# point: (name of the module in transformers, port, index of its output tuple)
SITES = {
  "resid_pre": ("transformer.h.{}", "in", None),
  "resid_mid": ("transformer.h.{}.ln_2", "in", None),
  "resid_post": ("transformer.h.{}", "out", 0),
  "attn_out": ("transformer.h.{}.attn", "out", 0),
  "mlp_out": ("transformer.h.{}.mlp", "out", None),
}
# Other modules with the same output.
ALIASES = {
  "transformer.h.{}.attn.c_proj": "attn_out",
  "transformer.h.{}.mlp.c_proj": "mlp_out",
}
HEAD = "lm_head.weight"
PREFIX = "transformer."


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.json that the forward pass uses.

  Attributes:
    scale: whether scores are divided by sqrt(head width).
    scale_by_layer: whether scores are also divided by the layer's number from 1.
    tied: whether the head is the token table.
    has_head: whether the weights must have a head where it is untied; weights of
      a base model or a classifier may lack it.
  """

  family: ClassVar[str] = "gpt2"
  vocabulary: int
  d: int
  layers: int
  heads: int
  d_mlp: int
  max_positions: int
  eps: float
  activation: str
  scale: bool
  scale_by_layer: bool
  tied: bool
  has_head: bool


def read_config(file: config_file.ConfigFile) -> Config:
  """Reads the settings of a GPT-2 model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  file.refuse_unknown()
  d = file.integer("n_embd")
  config = Config(
    vocabulary=file.integer("vocab_size"),
    d=d,
    layers=file.integer("n_layer"),
    heads=file.integer("n_head"),
    d_mlp=file.integer("n_inner", 4 * d),
    max_positions=file.integer("n_positions", 1024),
    eps=file.number("layer_norm_epsilon", 1e-5),
    activation=file.choice("activation_function", ops.ACTIVATIONS, "gelu_new"),
    scale=file.flag("scale_attn_weights", True),
    scale_by_layer=file.flag("scale_attn_by_inverse_layer_idx", False),
    tied=file.flag("tie_word_embeddings", True),
    has_head=file.has_head,
  )
  if config.d % config.heads:
    raise file.refusal("n_head", f"must divide {config.d}")
  return config


def read_params(w: weights.Weights, config: Config) -> dict[str, Any]:
  """Reads the weights by role; GPT-2 stores linear maps as [in, out] (Conv1D).

  Args:
    w: the tensors of the checkpoint.
    config: the settings.

  Raises:
    InputError: a tensor is missing or has another shape or type.
  """
  w.strip_prefix("wte.weight", PREFIX, "")
  d, d_mlp = config.d, config.d_mlp

  def conv(name: str, i: int, o: int) -> weights.Linear:
    W, b = w.take(f"{name}.weight", i, o), w.take(f"{name}.bias", o)
    return weights.Linear(W, b)

  def layer(at: str) -> dict[str, weights.Linear | weights.Norm]:
    return {
      "norm_pre": w.norm(f"{at}.ln_1", d),
      "qkv": conv(f"{at}.attn.c_attn", d, 3 * d),
      "out": conv(f"{at}.attn.c_proj", d, d),
      "norm_mid": w.norm(f"{at}.ln_2", d),
      "up": conv(f"{at}.mlp.c_fc", d, d_mlp),
      "down": conv(f"{at}.mlp.c_proj", d_mlp, d),
    }

  params = {
    "token": w.take("wte.weight", config.vocabulary, d),
    "position": w.take("wpe.weight", config.max_positions, d),
    "layers": tuple(layer(f"h.{l}") for l in range(config.layers)),
    "norm": w.norm("ln_f", d),
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
  B, T = ids.shape
  act = ops.ACTIVATIONS[config.activation]
  h = ops.embed(params["token"], ids)
  view = view or ops.whole(mask)
  h = h + ops.embed(params["position"], view.positions)
  head = config.d // config.heads
  for l, p in enumerate(params["layers"]):
    scale = head**-0.5 if config.scale else 1.0
    scale = scale / (l + 1) if config.scale_by_layer else scale
    h = tap(f"layers.{l}.resid_pre", h)
    a = ops.linear(ops.layer_norm(h, p["norm_pre"], config.eps), p["qkv"])
    a = a.reshape(B, T, 3, config.heads, head)
    a = view.attend(l, a[:, :, 0], a[:, :, 1], a[:, :, 2], scale)
    a = tap(f"layers.{l}.attn_out", ops.linear(a, p["out"]))
    h = tap(f"layers.{l}.resid_mid", h + a)
    m = ops.linear(ops.layer_norm(h, p["norm_mid"], config.eps), p["up"])
    m = tap(f"layers.{l}.mlp_out", ops.linear(act(m), p["down"]))
    h = tap(f"layers.{l}.resid_post", h + m)
  return ops.layer_norm(h, params["norm"], config.eps)

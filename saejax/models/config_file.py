"""config.json of a model folder, read strictly.

What a family does not implement is refused, never ignored: a setting that
would change the forward raises InputError with the values that are known.
"""

import collections.abc
import dataclasses
import pathlib
import reprlib
import sys
from typing import Any

from saejax import errors
from saejax.models import hub

# Settings that change the forward in models akin to the three families, with
# the values under which they change nothing.
INERT = {
  "add_cross_attention": (False,),
  "attention_chunk_size": (),
  "attention_multiplier": (),
  "attn_logit_softcapping": (),
  "auto_map": ({},),
  "embedding_multiplier": (1,),
  "final_logit_softcapping": (),
  "is_decoder": (False,),
  "is_encoder_decoder": (False,),
  "logit_scale": (1,),
  "logits_scaling": (1,),
  "no_rope_layers": ([],),
  "num_experts": (0,),
  "num_local_experts": (0,),
  "partial_rotary_factor": (1,),
  "position_embedding_type": ("absolute",),
  "pruned_heads": ({},),
  "qk_norm": (False,),
  "quantization_config": ({},),
  "residual_multiplier": (1,),
  "sliding_window": (),
  "use_parallel_residual": (False,),
  "use_qk_norm": (False,),
}
# Ends of the names of architectures that have a language head.
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")


@dataclasses.dataclass(frozen=True)
class ConfigFile:
  """The values of one config.json; null counts as absent."""

  folder: pathlib.Path
  values: dict[str, Any]

  def integer(self, key: str, default: int | None = None) -> int:
    """A positive whole number; without a default it must be there."""
    value = self._value(key, default)
    if type(value) is not int or value < 1:
      raise self.refusal(key, "must be a whole number, at least 1")
    return value

  def number(self, key: str, default: float | None = None) -> float:
    """A positive number."""
    value = self._value(key, default)
    if type(value) not in (int, float) or not (0 < value <= sys.float_info.max):
      raise self.refusal(key, "must be a number above 0")
    return float(value)

  def flag(self, key: str, default: bool) -> bool:
    value = self._value(key, default)
    if type(value) is not bool:
      raise self.refusal(key, "must be true or false")
    return value

  def choice(
    self, key: str, known: collections.abc.Collection, default: str
  ) -> str:
    """One of the `known` values."""
    value = self._value(key, default)
    if not isinstance(value, str) or value not in known:
      raise self.refusal(key, f"must be one of {', '.join(sorted(known))}")
    return value

  def refuse_unknown(self, **inert: tuple) -> None:
    """Refuses settings that are not implemented; `inert` adds to INERT."""
    for key, allowed in (INERT | inert).items():
      value = self.values.get(key)
      if value is not None and value not in allowed:
        known = " or ".join(str(v) for v in (*allowed, "absent"))
        raise self.refusal(key, f"must be {known}: nothing else is implemented")
    layer_types = self.values.get("layer_types") or []
    if not isinstance(layer_types, list) or any(
      kind != "full_attention" for kind in layer_types
    ):
      raise self.refusal("layer_types", "must all be full_attention")

  @property
  def has_head(self) -> bool:
    """Whether an architecture that is named has a language head."""
    names = self.values.get("architectures") or []
    if not isinstance(names, list):
      raise self.refusal("architectures", "must be a list of names")
    return any(str(name).endswith(LANGUAGE_MODELS) for name in names)

  def refusal(self, key: str, rule: str) -> errors.InputError:
    """The error for a value of this file."""
    return errors.InputError(
      hub.FIELD,
      self.folder,
      f"config.json: {key} {rule}, is {reprlib.repr(self.values.get(key))}",
      "choose another model",
    )

  def _value(self, key: str, default: Any) -> Any:
    value = self.values.get(key)
    if value is None and default is None:
      raise self.refusal(key, "must be given")
    return default if value is None else value


def read(folder: pathlib.Path) -> ConfigFile:
  """Reads config.json.

  Raises:
    InputError: missing, not JSON, not an object.
  """
  return ConfigFile(folder, hub.read_json(folder / "config.json"))

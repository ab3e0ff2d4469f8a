"""Strict reading of the settings of a model: config.json, or metadata.

A setting that would change the forward pass and is not implemented raises
InputError with the implemented values; it is never ignored.
"""

import collections.abc
import dataclasses
import pathlib
import reprlib
import sys
from typing import Any, TypeVar

from saejax import errors
from saejax.models import hub

# Settings that change the forward pass in models related to the families, with
# the values under which they have no effect. A family may implement some.
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
  "use_bidirectional_attention": (False,),
  "use_parallel_residual": (False,),
  "use_qk_norm": (False,),
  "use_sliding_window": (False,),
}
# Suffixes of the names of architectures with a language head.
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LAYER_TYPES = FULL, SLIDING = ("full_attention", "sliding_attention")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ConfigFile:
  """The values of a config.json, where null counts as absent.

  Attributes:
    folder: folder or file of the model, for errors.
    values: the settings.
    source: name of the part of the model that has them, for errors.
  """

  folder: pathlib.Path
  values: collections.abc.Mapping[str, Any]
  source: str = "config.json"

  def integer(self, key: str, default: int | None = None) -> int:
    """Returns a positive integer.

    Args:
      key: name of the setting.
      default: value where it is absent; None if it is required.

    Raises:
      InputError: the value is invalid, or absent and required.
    """
    value = self._value(key, default)
    if type(value) is not int or value < 1:
      raise self.refusal(key, "must be a whole number, at least 1")
    return value

  def number(self, key: str, default: float | None = None) -> float:
    """Returns a positive number.

    Args:
      key: name of the setting.
      default: value where it is absent; None if it is required.

    Raises:
      InputError: the value is invalid, or absent and required.
    """
    value = self._value(key, default)
    if type(value) not in (int, float) or not (0 < value <= sys.float_info.max):
      raise self.refusal(key, "must be a number above 0")
    return float(value)

  def numbers(self, key: str, count: int) -> tuple[float, ...]:
    """Returns a required list of positive numbers.

    Args:
      key: name of the setting.
      count: how many there must be.

    Raises:
      InputError: the value is invalid or absent.
    """
    values = self._value(key, None)
    if not isinstance(values, list) or len(values) != count:
      raise self.refusal(key, f"must be {count} numbers")
    one = lambda v: dataclasses.replace(self, values={key: v}).number(key)
    return tuple(one(v) for v in values)

  def optional(
    self,
    read: collections.abc.Callable[[str, Any], T],
    key: str,
    default: T | None = None,
  ) -> T | None:
    """Returns a setting that null turns off, which is not the same as absent.

    Args:
      read: method that reads it, such as `integer`.
      key: name of the setting.
      default: value where it is absent.

    Raises:
      InputError: the value is invalid.
    """
    if self.values.get(key, default) is None:
      return None
    return read(key, default)

  def windowed(
    self, layers: int, default: collections.abc.Sequence[bool]
  ) -> tuple[bool, ...]:
    """Returns which layers attend within the sliding window, by `layer_types`.

    Args:
      layers: number of layers.
      default: the layers, where it is absent.

    Raises:
      InputError: it is not one known kind per layer.
    """
    kinds = self.values.get("layer_types")
    if kinds is None:
      return tuple(default)
    if not isinstance(kinds, list) or len(kinds) != layers:
      raise self.refusal("layer_types", f"must be a list of {layers}")
    if any(kind not in LAYER_TYPES for kind in kinds):
      known = " or ".join(LAYER_TYPES)
      raise self.refusal("layer_types", f"must each be {known}")
    return tuple(kind == SLIDING for kind in kinds)

  def flag(self, key: str, default: bool) -> bool:
    """Returns a boolean.

    Args:
      key: name of the setting.
      default: value where it is absent.

    Raises:
      InputError: the value is not a boolean.
    """
    value = self._value(key, default)
    if type(value) is not bool:
      raise self.refusal(key, "must be true or false")
    return value

  def choice(
    self, key: str, known: collections.abc.Collection, default: str
  ) -> str:
    """Returns a string that is one of the known values.

    Args:
      key: name of the setting.
      known: the known values.
      default: value where it is absent.

    Raises:
      InputError: the value is not known.
    """
    value = self._value(key, default)
    if not isinstance(value, str) or value not in known:
      raise self.refusal(key, f"must be one of {', '.join(sorted(known))}")
    return value

  def refuse_unknown(self, *implemented: str) -> None:
    """Checks that settings that are not implemented have inert values.

    Args:
      *implemented: settings in `INERT`, or "layer_types", that the family
        implements.

    Raises:
      InputError: a setting has another value.
    """
    for key, allowed in INERT.items():
      value = None if key in implemented else self.values.get(key)
      if value is not None and value not in allowed:
        known = " or ".join(str(v) for v in (*allowed, "absent"))
        raise self.refusal(key, f"must be {known}; others are not implemented")
    kinds = self.values.get("layer_types") or []
    if "layer_types" in implemented:
      return
    if not isinstance(kinds, list) or any(kind != FULL for kind in kinds):
      raise self.refusal("layer_types", f"must all be {FULL}")

  @property
  def has_head(self) -> bool:
    """Whether one of the file's architectures has a language head."""
    names = self.values.get("architectures") or []
    if not isinstance(names, list):
      raise self.refusal("architectures", "must be a list of names")
    return any(str(name).endswith(LANGUAGE_MODELS) for name in names)

  def refusal(self, key: str, rule: str) -> errors.InputError:
    """Returns the error for a value of this file.

    Args:
      key: name of the setting.
      rule: the violated rule.
    """
    return errors.InputError(
      hub.FIELD,
      self.folder,
      f"{self.source}: {key} {rule}, is {reprlib.repr(self.values.get(key))}",
      "choose another model",
    )

  def _value(self, key: str, default: Any) -> Any:
    value = self.values.get(key)
    if value is None and default is None:
      raise self.refusal(key, "is required")
    return default if value is None else value

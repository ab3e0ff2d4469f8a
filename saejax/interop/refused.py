"""Formats that are recognised and refused by name, as saejax has no form of them."""

from collections.abc import Callable

from saejax.errors import InputError
from saejax.interop.files import Files
from saejax.interop.record import FIELD


def _keys(files: Files) -> set[str]:
  return set().union(*map(files.keys, files.matching(".safetensors")))


def _temporal(files: Files) -> bool:
  if files.has("conf.yaml") and files.has("latest_ckpt.safetensors"):
    return True
  config = files.has("cfg.json") and files.json("cfg.json")
  return bool(config) and config.get("architecture") == "temporal"


def _cross_layer(files: Files) -> bool:
  layers = [
    name for name in files.names if name.startswith(("W_enc_", "W_dec_"))
  ]
  return bool(layers) or "/clt/" in f"/{files.name}/"


def _crosscoder(files: Files) -> bool:
  weights = files.has("config.json") and files.has("model.safetensors")
  return weights and {"encoder.weight", "decoder.bias"} <= _keys(files)


def _saex(files: Files) -> bool:
  return bool({"s_gate", "tgt_mean_norm"} & _keys(files))


_KINDS: dict[str, tuple[Callable[[Files], bool], str]] = {
  "a temporal SAE": (_temporal, "its latents depend on the tokens before"),
  "a cross-layer transcoder": (_cross_layer, "it writes to several layers"),
  "a crosscoder": (_crosscoder, "it reads several layers or models"),
  "a file of saex": (_saex, "its gates and norms are not documented"),
}


def check(files: Files) -> None:
  """Refuses files that are known and have no form in saejax.

  Args:
    files: the files.

  Raises:
    InputError: it names what they are.
  """
  for what, (found, why) in _KINDS.items():
    if found(files):
      rule = f"is {what}, of which saejax has no form: {why}"
      raise InputError(FIELD, files.name, rule, "choose an SAE or transcoder")

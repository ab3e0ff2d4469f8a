"""PyTorch models as subjects: their modules, tensors, and identity.

PyTorch is imported where it is used, and nowhere else in the library.
"""

import collections.abc
import difflib
import hashlib
import importlib
import inspect
import json
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from saejax import durable, errors

_NEAR = 30  # paths that an error lists


def find(model: Any, path: str) -> Any:
  """Returns a submodule by its path; "" is the model itself.

  A prefix may be missing or too many, as between LlamaModel (`layers.3`) and
  LlamaForCausalLM (`model.layers.3`).

  Args:
    model: a module of PyTorch.
    path: dotted path.

  Raises:
    InputError: there is no such module, with similar paths; or it is part of a
      DataParallel, compiled or scripted module, where hooks do not run.
  """
  modules = dict(model.named_modules())
  found = [path] if path in modules else []
  found = found or [name for name in modules if name.endswith(f".{path}")]
  found = found or [n for n in modules if n and path.endswith(f".{n}")]
  found = [n for n in found if path.count(".") - n.count(".") in (-1, 0, 1)]
  if len(found) != 1:
    names = [name for name in modules if name]
    near = difflib.get_close_matches(path, names, n=_NEAR, cutoff=0.4)
    more = [name for name in names if name not in near][: _NEAR - len(near)]
    raise errors.InputError(
      "site.module",
      path,
      f"must be the path of one of the {len(names)} modules of the model",
      f"choose one, such as {', '.join(near + more)}",
    )
  _refuse_without_hooks(modules)
  return modules[found[0]]


def _refuse_without_hooks(modules: collections.abc.Mapping[str, Any]) -> None:
  torch = library()
  kinds = (torch.nn.DataParallel, torch.jit.ScriptModule)
  for name, module in modules.items():
    if isinstance(module, kinds) or hasattr(module, "_orig_mod"):
      raise errors.InputError(
        "site.module",
        name or type(module).__name__,
        f"must be a module whose hooks run, not {type(module).__name__}",
        "give the module inside it",
      )


def library() -> Any:
  """Imports PyTorch.

  Raises:
    InputError: it is not installed.
  """
  try:
    return importlib.import_module("torch")
  except ImportError as error:
    raise errors.InputError(
      "torch",
      "missing",
      "hooks need PyTorch, which is not installed",
      "run: pip install 'saejax[torch]'",
    ) from error


def to_jax(x: Any) -> Array:
  """Gives a tensor to JAX; memory is shared where JAX has its device and dtype.

  Shared memory must not be changed in place afterwards.

  Args:
    x: a tensor of PyTorch. Without jax_enable_x64, float64 becomes float32.
  """
  torch = library()
  x = x.detach()
  if x.dtype == torch.float64 and not jax.config.read("jax_enable_x64"):
    x = x.float()
  if x.device.type != "cpu" and not _has_platform(x.device.type):
    x = x.cpu()
  return jax.dlpack.from_dlpack(x.contiguous())


def _has_platform(kind: str) -> bool:
  try:
    return bool(jax.devices(kind))
  except RuntimeError:
    return False


def to_torch(x: Array) -> Any:
  """Copies an array of JAX into a tensor, which may be changed in place.

  Args:
    x: the array.
  """
  return library().from_dlpack(x).clone()


def run(model: Any, ids: Any, mask: Any) -> Any:
  """Runs a model of tokens by the usual names of arguments.

  Args:
    model: a module whose forward takes input_ids and attention_mask, as those of
      transformers do; a cache is not made where it takes use_cache.
    ids: tokens [B, T] int64.
    mask: which are real [B, T] int64.

  Raises:
    InputError: its forward takes other arguments.
  """
  taken = set(inspect.signature(model.forward).parameters)
  if not {"input_ids", "attention_mask"} <= taken:
    raise errors.InputError(
      "call",
      "the default",
      f"needs a model that takes input_ids and attention_mask, and "
      f"{type(model).__name__} takes {', '.join(sorted(taken))}",
      "give a function of model, ids and mask that runs it",
    )
  more = {"use_cache": False} if "use_cache" in taken else {}
  return model(input_ids=ids, attention_mask=mask, **more)


def digest(model: Any) -> str:
  """Returns the SHA-256 of a model: its modules, settings, weights and buffers.

  Args:
    model: a module of PyTorch.
  """
  torch = library()
  found = hashlib.sha256(repr(model).encode())
  config: Any = getattr(model, "config", None)
  if hasattr(config, "to_dict"):
    settings = dict(config.to_dict())
    for name in ("_name_or_path", "transformers_version"):
      settings.pop(name, None)
    settings["attention"] = getattr(config, "_attn_implementation", None)
    text = json.dumps(settings, sort_keys=True, default=str)
    found.update(durable.digest(text).encode())
  tensors = (*model.named_parameters(), *model.named_buffers())
  for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
    kind = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
    found.update(kind.encode())
    whole = tensor.detach().cpu().contiguous().reshape(-1)
    found.update(np.asarray(whole.view(torch.uint8)).data)
  return found.hexdigest()

"""The Hugging Face Hub: everything that is downloaded or uploaded passes here."""

import pathlib
import re

from saejax.errors import InputError

PREFIX = "hf:"
INSTALL = "pip install 'saejax[models]'"
_NAME = re.compile(
  r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<path>.+))?"
)


def split(name: str) -> tuple[str, str | None, str]:
  """Splits ORG/REPO[@REVISION][/PATH].

  Args:
    name: the name, without `hf:`.

  Raises:
    InputError: it has another form.

  >>> split("google/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59")[2]
  'layer_3/width_16k/average_l0_59'
  """
  found = _NAME.fullmatch(name.strip("/"))
  if found is None or ".." in name.split("/"):
    rule = "must be hf:ORG/REPO, with /PATH of a folder or file"
    raise InputError("input", PREFIX + name, rule, "correct the name")
  return found["repo"], found["revision"], found["path"] or ""


def download(name: str) -> pathlib.Path:
  """Returns a folder or file of a repository, downloaded or from the cache.

  Args:
    name: ORG/REPO[@REVISION][/PATH].

  Raises:
    InputError: it cannot be downloaded and is not in the cache.
  """
  repo, revision, path = split(name)
  try:
    import huggingface_hub
  except ImportError as error:
    rule = "needs huggingface_hub, which is not installed"
    raise InputError("input", PREFIX + name, rule, INSTALL) from error
  try:
    root = huggingface_hub.snapshot_download(
      repo, revision=revision, allow_patterns=_patterns(path)
    )
  except Exception as error:  # network, cache and name errors of many types
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    rule = f"could not be downloaded, and is not in the cache ({reason})"
    include = f" --include '{path}*'" if path else ""
    remedy = (
      "correct the name or go online (HF_HUB_OFFLINE unset, HF_TOKEN for gated "
      f"repositories); or run elsewhere: hf download {repo}{include} "
      "--local-dir DIR, and give its folder"
    )
    raise InputError("input", PREFIX + name, rule, remedy) from error
  found = pathlib.Path(root, path)
  if not found.exists():
    rule = f"must be in the repository {repo}; {path!r} is not"
    raise InputError("input", PREFIX + name, rule, "correct the path")
  return found


def _patterns(path: str) -> list[str] | None:
  """What belongs to a folder or file, with the settings beside and above it."""
  if not path:
    return None
  above = path.rpartition("/")[0]
  places = {"", f"{above}/" if above else ""}
  settings = ("config.json", "config.yaml")
  beside = [place + name for place in sorted(places) for name in settings]
  return [path, f"{path}/*", f"{path.removesuffix('.pt')}_cfg.json", *beside]


def upload(
  folder: str | pathlib.Path, name: str, readme: str, *, private: bool
) -> str:
  """Uploads a folder with its README.md, and returns its address.

  Args:
    folder: the folder.
    name: ORG/REPO[@REVISION][/PATH].
    readme: text of README.md.
    private: whether a new repository is private.

  Raises:
    InputError: the upload fails.
  """
  repo, revision, path = split(name.removeprefix(PREFIX))
  try:
    import huggingface_hub
  except ImportError as error:
    rule = "needs huggingface_hub, which is not installed"
    raise InputError("push", name, rule, INSTALL) from error
  try:
    api = huggingface_hub.HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    to = {"repo_id": repo, "revision": revision}
    # The README replaces one in the folder: it comes last.
    api.upload_folder(folder_path=str(folder), path_in_repo=path or None, **to)
    api.upload_file(
      path_or_fileobj=readme.encode(),
      path_in_repo=f"{path}/README.md".lstrip("/"),
      **to,
    )
  except Exception as error:  # network, permissions and names, of many types
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    rule = f"could not be uploaded ({reason})"
    remedy = "log in (hf auth login, or HF_TOKEN) and go online"
    raise InputError("push", name, rule, remedy) from error
  return f"https://huggingface.co/{repo}" + (
    f"/tree/main/{path}" if path else ""
  )

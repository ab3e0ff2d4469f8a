"""Prompts of judges: text files of the package, which may be copied and edited.

A file has the instructions, a line `===`, and the form of the question, in which
`$name` stands for what is asked about.
"""

import dataclasses
import pathlib
import string

from saejax.errors import InputError

FOLDER = pathlib.Path(__file__).resolve().parent / "prompts"
NAMES = (
  *("explain", "detection", "fuzzing", "list", "intruder", "simulation"),
  *("meaning", "topic"),
)
_FIELDS = {
  "explain": {"windows", "silent"},
  "detection": {"explanation", "windows", "count"},
  "fuzzing": {"explanation", "windows", "count"},
  "list": {"explanation", "windows", "count"},
  "intruder": {"windows", "count"},
  "simulation": {"explanation", "tokens", "count"},
  "meaning": {"text"},
  "topic": {"explanation"},
}
_LINE = "\n===\n"


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Instructions, and the form of a question."""

  system: str
  user: str

  def filled(self, **values: object) -> tuple[str, str]:
    """The instructions and the question.

    Args:
      **values: what stands for each `$name`.
    """
    return (
      string.Template(self.system).substitute(values),
      string.Template(self.user).substitute(values),
    )


def read(name: str, folder: str = "") -> Prompt:
  """Reads a prompt.

  Args:
    name: one of `NAMES`.
    folder: folder of edited prompts; those that it lacks are the package's.

  Raises:
    InputError: there is no such prompt, or it lacks its line `===` or has other
      names than those of the package's.
  """
  if name not in NAMES:
    rule = f"must be one of {', '.join(NAMES)}"
    raise InputError("prompt", name, rule, "choose one")
  file = FOLDER / f"{name}.txt"
  own = pathlib.Path(folder).expanduser() / f"{name}.txt"
  if folder and own.exists():
    file = own
  try:
    text = file.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    remedy = f"write it like {FOLDER / name}.txt"
    raise InputError(
      "prompts", file, f"cannot be read ({error})", remedy
    ) from error
  system, line, user = f"\n{text}".partition(_LINE)
  if not line:
    rule = "must have a line === between instructions and question"
    raise InputError("prompts", file, rule, f"see {FOLDER / name}.txt")
  whole = string.Template(system + user)
  used = set(whole.get_identifiers())
  if used - _FIELDS[name] or not whole.is_valid():
    rule = f"must use only ${', $'.join(sorted(_FIELDS[name]))}"
    remedy = "write $$ for a dollar sign"
    raise InputError("prompts", file, f"{rule}, not {sorted(used)}", remedy)
  return Prompt(system.strip(), user.strip("\n"))

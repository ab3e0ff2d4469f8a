"""Damages files at random and asks whether anyone could be misled.

  python benchmarks/damage.py
  python benchmarks/damage.py --trials=2000 --seed=1 --out=damage.md

Each trial copies a small folder, changes one file in it and calls the function
that a command reads it with. The outcomes:

  refused    an InputError that names a file or folder
  named      another result, and a line that says what is damaged: an earlier
             checkpoint is restored, a record of metrics is left out
  harmless   the result of the undamaged folder, bit for bit
  crashed    another exception, a traceback for a user
  silent     another result without a word

Prints a table and exits with 1 where anything crashed or was silent.
"""

import dataclasses
import pathlib
import pickle
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter

from damage_kinds import IGNORED, KINDS, Kind

from saejax import config as flags
from saejax import durable
from saejax.errors import InputError

OUTCOMES = ("refused", "named", "harmless", "crashed", "silent")
DAMAGES = (
  "flip",
  "digit",
  "truncate",
  "zero",
  "delete",
  "duplicate",
  "swap",
  "append",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DamageConfig:
  """How many files are damaged."""

  trials: int = 1000  # over all kinds of files
  seed: int = 0  # of the damages
  out: str = ""  # file that the table is written to as well; empty: none
  show: int = 5  # silent and crashed trials that are printed in full

  def __post_init__(self):
    if self.trials < 1:
      raise InputError("trials", self.trials, "must be at least 1", "give more")


def damage(rng: random.Random, how: str, path: pathlib.Path) -> str:
  """Damages a file.

  Args:
    rng: of the place.
    how: one of DAMAGES.
    path: the file.

  Returns:
    What was done; "" where it changes nothing.
  """
  before = path.read_bytes()
  if how == "delete" and rng.random() < 0.3:
    path.unlink()
    return "the file is deleted"
  if how == "swap" and rng.random() < 0.5:
    others = [p for p in _files(path.parent) if p != path]
    if not others:
      return ""
    other = rng.choice(others)
    there = other.read_bytes()
    other.write_bytes(before)
    path.write_bytes(there)
    return f"contents exchanged with {other.name}" * (before != there)
  after = _changed(rng, how, before)
  path.write_bytes(after)
  return f"{len(before)} bytes became {len(after)}" * (before != after)


def _changed(rng: random.Random, how: str, content: bytes) -> bytes:
  size = len(content)
  if how == "append" or not size:
    lines = content.splitlines(keepends=True)
    return content + (
      rng.choice(lines) if lines and rng.random() < 0.5 else rng.randbytes(8)
    )
  if how == "truncate":
    return content[: rng.randrange(size)]
  if how == "digit":
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if digits:
      at = rng.choice(digits)
      return content[:at] + str(rng.randrange(10)).encode() + content[at + 1 :]
  if how in ("delete", "duplicate", "swap", "zero"):
    lines = content.splitlines(keepends=True)
    if len(lines) > 1 and how != "zero" and rng.random() < 0.7:
      return b"".join(_moved(rng, how, lines))
    start = rng.randrange(size)
    span = content[start : start + rng.randint(1, 32)]
    head, tail = content[:start], content[start + len(span) :]
    middle = {
      "delete": b"",
      "duplicate": span * 2,
      "swap": span[::-1],
      "zero": bytes(len(span)),
    }[how]
    return head + middle + tail
  at = rng.randrange(size)
  flipped = content[at] ^ 1 << rng.randrange(8)
  return content[:at] + bytes([flipped]) + content[at + 1 :]


def _moved(rng: random.Random, how: str, lines: list[bytes]) -> list[bytes]:
  i, j = sorted(rng.sample(range(len(lines)), 2))
  if how == "delete":
    return lines[:i] + lines[i + 1 :]
  if how == "duplicate":
    return lines[:j] + [lines[i]] + lines[j:]
  return lines[:i] + [lines[j]] + lines[i + 1 : j] + [lines[i]] + lines[j + 1 :]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    p
    for p in folder.rglob("*")
    if p.is_file() and not {p.name, p.parent.name} & {*IGNORED}
  )


def trial(
  rng: random.Random, kind: Kind, whole: pathlib.Path, expected: bytes
) -> tuple[str, str]:
  """Damages a copy of a folder and reads it.

  Returns the outcome, and what was done and came of it in words.
  """
  folder = whole.with_name("trial")
  done = ""
  while not done:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = rng.choice(_files(folder))
    how = rng.choice(DAMAGES)
    name = path.relative_to(folder)
    done = damage(rng, how, path)
  what = f"{kind.name}: {how} in {name}: {done}"
  try:
    found, said = kind.read(folder)
  except InputError as error:
    return "refused", f"{what}: {error}"
  except Exception:
    return "crashed", f"{what}:\n{traceback.format_exc()}"
  if pickle.dumps(found) == expected:
    return "harmless", what
  return ("named" if said else "silent"), f"{what}: {said}"


def measure(config: DamageConfig) -> dict[str, Counter]:
  """Outcomes by kind."""
  rng = random.Random(config.seed)
  counts: dict[str, Counter] = {}
  left = config.show
  for kind in KINDS:
    counts[kind.name] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
      whole = pathlib.Path(temporary, "whole")
      whole.mkdir()
      kind.make(whole)
      copy = whole.with_name("trial")
      shutil.copytree(whole, copy)
      expected = pickle.dumps(kind.read(copy)[0])
      for _ in range(max(1, round(config.trials * kind.share))):
        outcome, what = trial(rng, kind, whole, expected)
        counts[kind.name][outcome] += 1
        if outcome in ("crashed", "silent") and left:
          left -= 1
          print(f"{outcome}: {what}", file=sys.stderr, flush=True)
  return counts


def table(counts: dict[str, Counter], seed: int) -> str:
  """The outcomes as a table in Markdown."""
  total = sum(counts.values(), Counter())
  lines = [
    "| files | trials | " + " | ".join(OUTCOMES) + " |",
    "|---|" + "---:|" * (1 + len(OUTCOMES)),
  ]
  for name, found in {**counts, "all": total}.items():
    numbers = [sum(found.values()), *(found[o] for o in OUTCOMES)]
    lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
  bad = f"{total['silent']} silent, {total['crashed']} tracebacks"
  lines += ["", f"{sum(total.values())} damages (seed {seed}): {bad}"]
  return "\n".join(lines)


def main(config: DamageConfig) -> int:
  counts = measure(config)
  text = table(counts, config.seed)
  print(text)
  if config.out:
    head = "# Damaged files\n\nWritten by `python benchmarks/damage.py"
    head += f" --trials={config.trials} --seed={config.seed}`.\n\n"
    durable.write_file(config.out, (head + text + "\n").encode(), field="out")
  total = sum(counts.values(), Counter())
  return 1 if total["silent"] or total["crashed"] else 0


if __name__ == "__main__":
  flags.run(main, DamageConfig)

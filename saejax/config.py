"""Converts frozen config dataclasses to absl flags and back.

A config is a frozen, keyword-only dataclass; a field may be another config.
Each leaf field is one flag under its dotted name: `--train.batch_rows=2048` is
`Config(train=Train(batch_rows=2048))`. A run writes all its flags to a file,
and `--flagfile=run.flags` gives an equal config. Types: int, float, bool, str,
Literal, tuples, Optional (`none`) of those; `__post_init__` checks the ranges.
"""

import contextlib
import difflib
import locale
import os
import pathlib
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, TypeVar

from absl import app, flags, logging

from saejax import (
  choices,
  durable,
  fields,
  flagfiles,
  interrupt,
  presets,
  usage,
)
from saejax.errors import InputError

Config = TypeVar("Config")
RUN_FLAGS = "run.flags"  # the flagfile that a run leaves in its folder

# absl's own help would list the flags of every library that is imported.
HELP = {"-h", "-?", "-help", "--help", "--helpshort", "--helpfull"}


def define(
  config_cls: type,
  flag_values: flags.FlagValues = flags.FLAGS,
  prefix: str = "",
) -> None:
  """Defines one flag for every leaf field of `config_cls`.

  Args:
    config_cls, flag_values: the dataclass, and the flags to define them in.
    prefix: prefix of the names, e.g. "train.".

  Raises:
    TypeError: a field has a type that no flag can hold.
  """
  for leaf in fields.leaves(config_cls, prefix):
    default = None if leaf.default is fields.MISSING else leaf.default
    kinds = {bool: _BoolFlag}
    make = kinds.get(leaf.kind, _Repeated if leaf.repeated else flags.Flag)
    parser = _Parser(leaf)
    flag = make(parser, None, leaf.name, default, leaf.comment or leaf.name)
    flags.DEFINE_flag(flag, flag_values)


def widened(config_cls: type, argv: Sequence[str]) -> type:
  """Returns the config class with the fields that a command line selects.

  Args:
    config_cls, argv: the class, and the command line with the program first.

  Raises:
    InputError: there is no such choice, see `choices`.
  """
  flagfiles.check(argv[1:])

  def chosen(name: str, default: Any) -> Any:
    scratch = flags.FlagValues()
    flags.DEFINE_string("flagfile", "", "", flag_values=scratch)
    kind = "bool" if type(default) is bool else "string"
    getattr(flags, f"DEFINE_{kind}")(name, default, "", flag_values=scratch)
    scratch.set_gnu_getopt(True)  # values after a blank do not end the flags
    with contextlib.suppress(flags.Error, ValueError, OSError):
      scratch(list(argv), known_only=True)  # `parse` reports what is wrong
    return scratch[name].value

  return choices.widened(config_cls, chosen)


def from_flags(
  config_cls: type[Config],
  flag_values: flags.FlagValues = flags.FLAGS,
  prefix: str = "",
) -> Config:
  """Builds the config from the flags.

  Args:
    config_cls, flag_values, prefix: as for `define`.

  Raises:
    InputError: a missing or refused value; its field is the full dotted name.
  """
  values = {}
  for field, kind in fields.typed(config_cls):
    name = prefix + field.name
    if fields.is_config(kind):
      values[field.name] = from_flags(kind, flag_values, name + ".")
      continue
    values[field.name] = _home(flag_values[name].value)
    if flag_values[name].value is None and not fields.is_optional(kind):
      raise InputError(name, "", "must be given", f"add --{name}=VALUE")
  try:
    return config_cls(**values)
  except InputError as error:
    # A nested config knows only its own, short field names.
    if error.field.split(".")[0] not in values:
      raise
    raise error.renamed(prefix + error.field) from error


def _home(value: Any) -> Any:
  """A value with `~/` at its start replaced by the home directory."""
  if isinstance(value, tuple):
    return tuple(_home(element) for element in value)
  if isinstance(value, str) and (value == "~" or value.startswith("~/")):
    return os.path.expanduser(value)
  return value


def write(
  path: str | os.PathLike[str], config: Any, *, omit: Sequence[str] = ()
) -> None:
  """Writes all flags of `config`, one per line, so that they can be replayed.

  Args:
    path: the file, in the run folder; it appears whole or not at all.
    config, omit: an instance of a config class, and names of flags left out.

  Raises:
    InputError: a value would not be read back equal (a line break, blanks at
      its edges, a comma in a tuple of strings, another type), or the file
      cannot be written. Nothing is written.
  """
  lines = [
    line + "\n"
    for leaf in fields.leaves_of(config)
    if leaf.name not in omit
    for line in _lines(leaf, config)
  ]
  # absl reads flagfiles in the encoding of the locale.
  text = flagfiles.sealed("".join(lines), locale.getencoding())
  durable.write_file(path, text, field="run_dir")


def run(
  main: Callable[[Config], int | None],
  config_cls: type[Config],
  argv: list[str] | None = None,
) -> None:
  """Runs a script: flags from the command line, then `main(config)`.

  Each failure prints one line on stderr. Invalid input (flag, value, rule and
  remedy) exits with code 2, any other exception (file of its traceback) with 1,
  SIGINT, SIGTERM and SIGHUP with 128 + signal; see `interrupt`.

  Args:
    main, config_cls: the script, which returns the exit code, and its config.
    argv: the command line, with the program first; by default `sys.argv`.
  """
  with _one_line():
    expanded = presets.expanded(sys.argv if argv is None else argv)
    config_cls = widened(config_cls, expanded)
  define(config_cls)

  def parse_flags(args: Sequence[str]) -> list[str]:
    with _one_line():
      args = presets.expanded(args)
    if HELP & set(args[1:]):
      print(
        usage.text(config_cls, sys.modules[main.__module__].__doc__, args[0])
      )
      sys.exit(0)
    with _one_line():
      parse(args, explain=partial(choices.explain, config_cls))
    if flags.FLAGS["verbosity"].using_default_value:
      flags.FLAGS.verbosity = logging.WARNING  # app.run would make it INFO
    return list(args)

  def run_main(_: Sequence[str]) -> int | None:
    with _one_line():
      config = from_flags(config_cls)
      if getattr(config, "run_dir", None) == "":
        rule = "must name a folder"
        raise InputError("run_dir", "", rule, "such as runs/first")
      with _traceback_in_file(getattr(config, "run_dir", None)):
        return main(config)

  with interrupt.installed():
    app.run(run_main, argv, flags_parser=parse_flags)


@contextlib.contextmanager
def _traceback_in_file(folder: str | None) -> Iterator[None]:
  """Converts an unexpected exception to one line with the traceback's file."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    text = traceback.format_exc()
    path = _written(text, folder) or _written(text, tempfile.gettempdir())
    shown = " ".join(f"{type(error).__name__}: {error}".split())
    where = f"the traceback is in {path}" if path else "its traceback:\n" + text
    print(f"error: {shown[:300]}; {where}", file=sys.stderr, flush=True)
    raise SystemExit(1) from error


def _written(text: str, folder: str | None) -> pathlib.Path | None:
  """The file in an existing folder that holds a traceback."""
  if folder is None or not os.path.isdir(folder):
    return None
  path = pathlib.Path(folder, f"traceback-{os.getpid()}.txt").absolute()
  try:
    path.write_text(text)
  except OSError:
    return None
  return path


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
  """Turns InputError into one line on stderr and exit code 2."""
  try:
    yield
  except InputError as error:
    # The library names its own arguments: batch_rows is --train.batch_rows.
    meant = [f for f in flags.FLAGS if f.split(".")[-1] == error.field]
    if error.field in flags.FLAGS:
      error = error.renamed("--" + error.field)
    elif len(meant) == 1:
      error = error.renamed("--" + meant[0])
    print(error, file=sys.stderr, flush=True)
    raise SystemExit(2) from error


def parse(
  argv: Sequence[str],
  flag_values: flags.FlagValues = flags.FLAGS,
  explain: Callable[[str], tuple[str, str]] = lambda name: ("", ""),
) -> None:
  """Parses a command line, with the program's name first.

  Args:
    argv, flag_values: the command line, and the flags that there are.
    explain: from an unknown flag to rule and remedy, "" where there is none.

  Raises:
    InputError: unknown flag, bad value, unreadable flagfile, stray argument.
  """
  given = [a for a in argv[1:] if re.match(r"--?flagfile(=|$)", a)]
  flagfile = given[-1].partition("=")[2] if given else ""
  if any(a.endswith("flagfile=") for a in given):  # absl would pass over it
    raise InputError("--flagfile", "", "must not be empty", "give a path")
  flagfiles.check(argv[1:])
  try:
    rest = flag_values(list(argv))[1:]
  except flags.UnrecognizedFlagError as error:
    value = str(error.flagvalue).partition("=")[2]
    unknown = "unknown flag", _suggestion(error.flagname, list(flag_values))
    found = explain(error.flagname)
    rule, remedy = found if found[0] else unknown
    raise InputError("--" + error.flagname, value, rule, remedy) from None
  except flags.CantOpenFlagFileError as error:
    cause = error.__context__
    if isinstance(cause, OSError):
      flagfile = cause.filename
    raise InputError(
      "--flagfile",
      flagfile,
      f"cannot be opened ({getattr(cause, 'strerror', error)})",
      "give the path of a file with one flag per line",
    ) from None
  except UnicodeDecodeError:
    rule, remedy = "is not text", "give a file of flags"
    raise InputError("--flagfile", flagfile, rule, remedy) from None
  except (flags.Error, ValueError) as error:
    if isinstance(error.__context__, InputError):
      raise error.__context__ from None
    raise _absl_error(error) from None
  _imply_run_dir(flag_values, flagfile)
  if rest:
    name = rest[0].partition("=")[0]
    remedy = f"write --{rest[0]}" if name in flag_values else "see --help"
    rule = "is not a flag; settings are given as --name=value"
    raise InputError("argument", rest[0], rule, remedy)


def _imply_run_dir(flag_values: flags.FlagValues, flagfile: str) -> None:
  """A run's own flagfile names its folder, wherever that was moved to."""
  path = pathlib.Path(flagfile).expanduser()
  if path.name != RUN_FLAGS or "run_dir" not in flag_values:
    return
  if flag_values["run_dir"].using_default_value:
    flag_values["run_dir"].value = str(path.parent)


def _absl_error(error: Exception) -> InputError:
  """Parses an absl message into name, value and rule."""
  text = " ".join(str(error).split())
  if found := re.fullmatch(r"flag --([^=]+)=(.*?): (.*)", text):
    return InputError("--" + found[1], found[2], found[3], "see --help")
  if found := re.fullmatch(r"Missing value for flag -*(.*)", text):
    return InputError("--" + found[1], "", "needs a value", "write it after =")
  if found := re.fullmatch(r"--?([^=]+)=(.*) (does not take .*)", text):
    return InputError("--" + found[1], found[2], found[3], "leave it out")
  if text.startswith("--flagfile"):
    return InputError("--flagfile", "", "needs a value", "write it after =")
  return InputError("flags", "", text, "see --help")


def _suggestion(name: str, names: list[str]) -> str:
  """Suggests flags with an equal last word or a similar name."""
  last = lambda n: n.split(".")[-1]
  same = [n for n in names if last(n) == last(name)]
  words = difflib.get_close_matches(last(name), map(last, names), 9, 0.7)
  near = difflib.get_close_matches(name, names, n=3, cutoff=0.8)
  near = [n for n in near if last(n) in words]
  shown = " or ".join("--" + n for n in dict.fromkeys([*near, *same][:3]))
  return f"did you mean {shown}?" if shown else "--help lists the flags"


def _lines(leaf: fields.Leaf, config: Any) -> list[str]:
  """Formats `--name=value`, for each element where the flag is repeated."""
  value = reduce(getattr, leaf.name.split("."), config)
  if leaf.repeated:
    return [_line(leaf, leaf.element, one) for one in value]
  return [_line(leaf, leaf.kind, value)]


def _line(leaf: fields.Leaf, kind: Any, value: Any) -> str:
  """Formats `--name=value`; checks that it parses to the value."""
  text, line, again = "", "", fields.MISSING
  with contextlib.suppress(TypeError, ValueError):
    text = fields.show(kind, value)
    line = f"--{leaf.name}={text}"
    line.encode()  # a lone surrogate has no bytes
    again = fields.read(kind, text)
  if again != value or text != text.strip() or {"\n", "\r"} & set(line):
    raise InputError(
      leaf.name,
      repr(value),
      f"must be {fields.describe(kind)}, on one line, with no blanks at its "
      "edges and no comma inside an element",
      "choose a value that a flagfile can hold",
    )
  return line


class _Parser(flags.ArgumentParser):
  """Text of a flag -> value, by the type of the field."""

  def __init__(self, leaf: fields.Leaf):
    super().__init__()
    self.leaf = leaf

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):  # absl parses the default too
      return argument
    if self.leaf.repeated:
      return (self._read(self.leaf.element, argument),)
    return self._read(self.leaf.kind, argument)

  def _read(self, kind: Any, argument: str) -> Any:
    try:
      return fields.read(kind, argument)
    except ValueError as error:
      remedy = "see --help"
      if self.leaf.default is not fields.MISSING:
        default = fields.show(self.leaf.kind, self.leaf.default)
        remedy = f"for example --{self.leaf.name}={default}"
      raise InputError(self.leaf.name, argument, str(error), remedy) from None

  def flag_type(self) -> str:
    return fields.describe(self.leaf.kind)


class _BoolFlag(flags.Flag):
  """A flag that may stand without a value, and with `no` before its name."""

  def __init__(self, *args: Any):
    super().__init__(*args, boolean=True)


class _Repeated(flags.Flag):
  """A flag whose values are collected; a comma does not divide one."""

  def parse(self, argument: Any) -> None:
    before = self.value if self.present else None
    super().parse(argument)
    self.value = (*(before or ()), *(self.value or ()))

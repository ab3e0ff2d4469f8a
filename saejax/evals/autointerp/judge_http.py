"""A judge behind an address: any server with the chat interface of OpenAI.

`Chat` asks one question; it repeats it where the server is late, busy or failing, and
keeps answers in a folder, so that a stopped run resumes without asking again. `Http`
is the judge: it writes questions from the prompts of `judge_prompts`, a few windows
at a time, and reads the answers strictly. One of another form or length, a late or a
missing one gives NaN for each window of its question.

Where a server returns log-probabilities, scores of windows are P(1) / (P(0) + P(1))
from the five likeliest tokens at each number of the answer; otherwise 0 or 1.

References:
  github.com/EleutherAI/delphi, scorers/classifier.
"""

import concurrent.futures
import dataclasses
import http.client
import json
import math
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax import durable
from saejax.errors import InputError
from saejax.evals.autointerp import judge_prompts
from saejax.evals.autointerp.judge import FUZZING, LIST
from saejax.evals.autointerp.windows import LEVELS, Window

_MOST_BYTES = 2**22  # of an answer
_TRY_AGAIN = (408, 409, 425, 429)  # and all from 500
_LINE = re.compile(r"EXPLANATION:[ \t]*(.+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
  """A chat server.

  Attributes:
    url: of its completions, such as http://localhost:8000/v1/chat/completions.
    model: name of the model.
    key_name: environment variable that holds the key; empty for no key.
    temperature: of the answers.
    max_tokens: largest length of an answer.
    timeout_s: seconds until an answer is late.
    tries: how often a question is asked at most.
    wait_s: seconds before the second try, doubled before each further one.
    cache: folder of answers; none where empty.
    logprobs: whether to ask for log-probabilities of answers.
  """

  url: str
  model: str
  key_name: str = ""
  temperature: float = 0.0
  max_tokens: int = 1000
  timeout_s: float = 60.0
  tries: int = 4
  wait_s: float = 1.0
  cache: str = ""
  logprobs: bool = False

  def __post_init__(self):
    if not re.match(r"https?://[^\s/]+", self.url):
      rule = "must be an address that begins with http:// or https://"
      remedy = "give that of the chat completions"
      raise InputError("judge.url", self.url, rule, remedy)
    if self.key_name and not os.environ.get(self.key_name):
      rule = "must be an environment variable that holds the server's key"
      remedy = "set it, or leave the name out"
      raise InputError("judge.key_name", self.key_name, rule, remedy)
    for name, least in (("timeout_s", 0), ("tries", 1), ("max_tokens", 1)):
      value = getattr(self, name)
      if not value >= least or (name == "timeout_s" and not value):
        rule = f"must be {'above' if not least else 'at least'} {least}"
        raise InputError(f"judge.{name}", value, rule, "raise it")

  def ask(self, system: str, user: str, *, number: int = 0) -> "Answer | None":
    """Asks a question; None where no try has given an answer.

    Args:
      system: the instructions.
      user: the question.
      number: tells several answers to one question apart.

    Raises:
      InputError: the server refuses the request itself, such as the key.
    """
    body: dict[str, Any] = {
      "model": self.model,
      "messages": [
        {"role": role, "content": text}
        for role, text in (("system", system), ("user", user))
        if text
      ],
      "temperature": self.temperature,
      "max_tokens": self.max_tokens,
    }
    if self.logprobs:
      body |= {"logprobs": True, "top_logprobs": 5}
    about = {"url": self.url, "body": body, "number": number}
    digest = durable.digest(about)
    file = pathlib.Path(self.cache).expanduser() / digest[:2] / f"{digest}.json"
    if self.cache and file.exists():
      found = durable.read_json(file, field="judge.cache", remedy="remove it")
      if isinstance(found.get("text"), str):
        return Answer(found["text"], found.get("tokens") or [])
    answer = self._tried(json.dumps(body).encode())
    if answer is not None and self.cache:
      record = json.dumps(dataclasses.asdict(answer)).encode()
      durable.write_file(file, record, field="judge.cache")
    return answer

  def _tried(self, body: bytes) -> "Answer | None":
    for attempt in range(self.tries):
      wait = self.wait_s * 2**attempt
      try:
        return _answer(self._posted(body))
      except urllib.error.HTTPError as error:
        with error:
          self._refuse(error)
          wait = max(wait, _seconds(error.headers.get("Retry-After")))
      except (OSError, http.client.HTTPException, ValueError):
        pass  # late, no connection, or no answer in what came
      if attempt + 1 < self.tries:
        time.sleep(min(wait, self.timeout_s))
    return None

  def _refuse(self, error: urllib.error.HTTPError) -> None:
    """Raises what another try would not change."""
    if error.code in _TRY_AGAIN or error.code >= 500:
      return
    said = error.read(300).decode("utf-8", "replace")
    where = "judge.key_name" if error.code in (401, 403) else "judge.url"
    value = self.key_name if error.code in (401, 403) else self.url
    rule = f"must be taken by the server, which says {error.code}: {said}"
    raise InputError(where, value, rule, "correct the address, model or key")

  def _posted(self, body: bytes) -> bytes:
    """The server's reply, within the time."""
    headers = {"Content-Type": "application/json"}
    if self.key_name:
      headers["Authorization"] = f"Bearer {os.environ[self.key_name]}"
    request = urllib.request.Request(self.url, body, headers)
    end, found = time.monotonic() + self.timeout_s, b""
    with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
      while part := reply.read1(2**16):
        found += part
        # A server that sends a byte now and then never times out by itself.
        if time.monotonic() > end:
          raise TimeoutError("the answer is late")
        if len(found) > _MOST_BYTES:
          raise ValueError("the answer is too long")
    return found


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server answered.

  Attributes:
    text: the text.
    tokens: of each token {"token", "top_logprobs"}; empty where not given.
  """

  text: str
  tokens: list[dict[str, Any]]


def _answer(reply: bytes) -> Answer:
  try:
    choice = json.loads(reply)["choices"][0]
    text = choice["message"]["content"]
    tokens = (choice.get("logprobs") or {}).get("content") or []
  except (LookupError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError("the reply has no answer") from error
  if not isinstance(text, str):
    raise ValueError("the answer is no text")
  return Answer(text, tokens if isinstance(tokens, list) else [])


def _seconds(text: str | None) -> float:
  try:
    return max(0.0, float(text or 0))
  except ValueError:  # a date
    return 0.0


# --- the judge ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Http:
  """Judges by the answers of a chat server.

  Attributes:
    chat: the server.
    prompts: folder of edited prompts; those of the package by default.
    per_prompt: windows of a question; all of a "list".
    workers: questions at once.
    number: tells several explanations of the same windows apart.
  """

  chat: Chat
  prompts: str = ""
  per_prompt: int = 5
  workers: int = 4
  number: int = 0
  threshold: float = 0.5

  def __post_init__(self):
    for name in ("per_prompt", "workers"):
      if getattr(self, name) < 1:
        rule = "must be at least 1"
        raise InputError(f"judge.{name}", getattr(self, name), rule, "raise it")
    for name in judge_prompts.NAMES:
      judge_prompts.read(name, self.prompts)

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    shown = _numbered(windows, marks=True)
    rest = _numbered(silent, marks=False) or "(none are shown)"
    answer = self._ask("explain", windows=shown, silent=rest)
    lines = _LINE.findall(answer.text) if answer else []
    return lines[-1].strip() if lines else ""

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    size = len(windows) if question == LIST else self.per_prompt
    parse = _chosen if question == LIST else _yes_or_no

    def one(some: Sequence[Window]) -> np.ndarray:
      answer = self._ask(
        question,
        explanation=explanation,
        windows=_numbered(some, marks=question == FUZZING),
        count=len(some),
      )
      return _or_failed(parse, answer, len(some))

    parts = [windows[i : i + size] for i in range(0, len(windows), size or 1)]
    found = self._each(one, parts)
    return np.concatenate(found) if found else np.zeros(0)

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    def one(window: Window) -> np.ndarray:
      answer = self._ask(
        "simulation",
        explanation=explanation,
        tokens=json.dumps(list(window.tokens), ensure_ascii=False),
        count=len(window.tokens),
      )
      return _or_failed(_levels, answer, len(window.tokens))

    return self._each(one, windows)

  def odd(self, windows: Sequence[Window]) -> int:
    shown = _numbered(windows, marks=True)
    answer = self._ask("intruder", windows=shown, count=len(windows))
    numbers = re.findall(r"\d+", answer.text) if answer else []
    if len(numbers) != 1 or not 1 <= int(numbers[0]) <= len(windows):
      return -1
    return int(numbers[0]) - 1

  def _ask(self, name: str, **values: object) -> Answer | None:
    prompt = judge_prompts.read(name, self.prompts)
    return self.chat.ask(*prompt.filled(**values), number=self.number)

  def _each(
    self, function: Callable[[Any], np.ndarray], items: Sequence[Any]
  ) -> list[np.ndarray]:
    """Applies a function, several at once, in order."""
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      return list(pool.map(function, items))


def _numbered(windows: Sequence[Window], *, marks: bool) -> str:
  """The windows, one below another."""
  none = lambda w: w.marked(np.zeros(len(w.tokens), bool))
  return "\n".join(
    f"{i}. {(w if marks else none(w)).shown()}"
    for i, w in enumerate(windows, 1)
  )


def _or_failed(
  parse: Callable[[Answer, int], list[float]], answer: Answer | None, count: int
) -> Float[np.ndarray, "count"]:
  """The numbers of an answer, or NaN where it is none or of another form."""
  failed = np.full(count, np.nan)
  if answer is None:
    return failed
  try:
    found = np.array(parse(answer, count), float)
  except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
    return failed
  return found if found.shape == (count,) else failed


def _list(text: str, most: int) -> list[float]:
  """A JSON list of whole numbers in 0..most, the only one of a text."""
  lists = re.findall(r"\[[^\[\]]*\]", text)
  if len(lists) != 1:
    raise ValueError("must be one list")
  found = json.loads(lists[0])
  whole = all(type(v) is int and 0 <= v <= most for v in found)
  if not whole:
    raise ValueError(f"must be whole numbers in 0..{most}")
  return [float(value) for value in found]


def _yes_or_no(answer: Answer, count: int) -> list[float]:
  plain = _list(answer.text, 1)
  graded = [
    _share(token)
    for token in answer.tokens
    if str(token.get("token", "")).strip() in ("0", "1")
  ]
  usable = len(graded) == count and all(math.isfinite(g) for g in graded)
  return graded if usable else plain


def _share(token: dict[str, Any]) -> float:
  """P(1) / (P(0) + P(1)) of a token's likeliest alternatives."""
  p = {"0": 0.0, "1": 0.0}
  for other in token.get("top_logprobs") or []:
    name = str(other.get("token", "")).strip()
    if name in p:
      p[name] += math.exp(min(0.0, float(other["logprob"])))
  total = sum(p.values())
  return p["1"] / total if total else math.nan


def _levels(answer: Answer, count: int) -> list[float]:
  return _list(answer.text, LEVELS)


def _chosen(answer: Answer, count: int) -> list[float]:
  """1 for the numbers that are named, 0 for the others."""
  text = answer.text.strip().rstrip(".")
  if text.lower() == "none":
    return [0.0] * count
  if not re.fullmatch(r"\[?\s*\d+(\s*,\s*\d+)*\s*\]?", text):
    raise ValueError("must be numbers, or None")
  numbers = {int(number) for number in re.findall(r"\d+", text)}
  if not all(1 <= number <= count for number in numbers):
    raise ValueError(f"must be in 1..{count}")
  return [float(i in numbers) for i in range(1, count + 1)]

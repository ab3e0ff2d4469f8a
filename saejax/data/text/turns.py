"""Tokens of conversations, and which of them are of chosen roles.

For a harvest of what an assistant says, in the context of the whole:

    pairs = [turns.tokens(t, template, words) for t in conversations_]
    name = corpus.write_ids("chat.jsonl", *zip(*pairs))  # ids, rows
    source = conversations.as_conversations(subject.at_site(...))
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from saejax.data.text import conversations
from saejax.errors import InputError
from saejax.models import tokenizer

Template = Callable[[Sequence[conversations.Turn]], str]
_MARK = "\ue000"  # for private use: in no template


def tokens(
  turns: Sequence[conversations.Turn],
  template: Template,
  words: tokenizer.Tokenizer,
  *,
  roles: Sequence[str] = ("assistant",),
) -> tuple[Int[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
  """Encodes a conversation as one text, and finds the tokens of roles.

  A token is of a role if its last character is in the content of a turn of this
  role; what the template adds, such as headers and ends of turns, is not.

  Args:
    turns: the turns, each with "role" and "content".
    template: turns -> text, such as one of `conversations.TEMPLATES` or
      `functools.partial(conversations.render, path)`. The text of the first
      turns must be the beginning of that of all.
    words: the tokenizer.
    roles: roles whose tokens are wanted.

  Returns:
    (ids [T] int32, whether a token is of one of the roles [T]).

  Raises:
    InputError: the template is none in which contents can be found.
  """
  text = tokenizer.well_formed(template(turns))
  wanted = np.zeros(len(text) + 1, bool)
  start = 0
  for number, turn in enumerate(turns):
    before = turns[:number]
    marked = template([*before, {**turn, "content": _MARK}])
    own = tokenizer.well_formed(template([*before, turn]))
    head, found, tail = marked.partition(_MARK)
    stop = len(own) - len(tail)
    if (
      not found
      or not text.startswith(own)
      or not own.startswith(head)
      or not own.endswith(tail)
      or not start <= len(head) <= stop
    ):
      raise InputError(
        "template",
        turn["role"],
        f"must write turn {number} unchanged behind those before it",
        "use one of conversations.TEMPLATES",
      )
    wanted[len(head) : stop] = turn["role"] in roles
    start = stop
  encoding = words.backend.encode(text, add_special_tokens=False)
  offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
  ids = np.asarray(encoding.ids, np.int32)
  # An empty span ends where it starts, and has no character of its own.
  has_text = offsets[:, 1] > offsets[:, 0]
  return ids, has_text & wanted[np.maximum(offsets[:, 1] - 1, 0)]

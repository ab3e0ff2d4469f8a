"""Replies of a language model to conversations, by its chat template."""

from collections.abc import Sequence
from typing import Any

from saejax.data.text import conversations
from saejax.models import generate, hub, tokenizer
from saejax.models import model as models


def reply(
  model: models.Model,
  turns: Sequence[Sequence[conversations.Turn]],
  *,
  max_tokens: int,
  **settings: Any,
) -> generate.Samples:
  """Samples the next turn of each conversation with the model's chat template.

  Args:
    model: a language model with a chat template, by the name that it was loaded
      by.
    turns: the conversations, each a sequence of turns.
    max_tokens: maximum number of tokens per reply.
    **settings: further settings of `generate.generate`.

  Raises:
    InputError: as `render` and `generate.generate`.
  """
  path = hub.resolve(model.name)
  words = tokenizer.load(path)
  # The template has the tokens before a text that the tokenizer adds.
  ids = words.encode_batch(conversations.render_all(path, turns, reply=True))
  return generate.generate(
    model, ids, max_tokens=max_tokens, words=words, **settings
  )

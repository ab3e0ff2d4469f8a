"""saejax/data/text/chat.py: replies follow the model's chat template."""

import importlib.util

import numpy as np
from absl.testing import absltest

from saejax import models
from saejax.data.text import chat, conversations
from saejax.models import generate, tokenizer
from tests.models import gguf_files

TURNS = ({"role": "user", "content": "then"},)


@absltest.skipIf(
  importlib.util.find_spec("transformers") is None,
  "pip install 'saejax[models]'",
)
class ReplyTest(absltest.TestCase):
  def test_a_reply_is_what_the_model_says_after_the_rendered_turns(self):
    model = models.load(str(gguf_files.GOLDEN))
    words = tokenizer.load(gguf_files.GOLDEN)
    text = conversations.render(gguf_files.GOLDEN, TURNS, reply=True)
    plain = conversations.render(gguf_files.GOLDEN, TURNS)
    self.assertStartsWith(text, plain)
    settings = {"max_tokens": 4, "temperature": 0, "end": ()}
    found = chat.reply(model, [TURNS, TURNS], **settings)
    want = generate.generate(
      model, [words.encode(text)] * 2, words=words, **settings
    )
    np.testing.assert_array_equal(found.ids, want.ids)
    self.assertEqual(found.texts, want.texts)
    self.assertEqual(found.texts[0], words.decode(found.ids[0]))


if __name__ == "__main__":
  absltest.main()

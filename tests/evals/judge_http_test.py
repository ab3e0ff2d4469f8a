"""Tests of saejax.evals.autointerp.judge_http and judge_prompts, against a server here."""

import contextlib
import http.server
import json
import os
import pathlib
import threading
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.autointerp import judge_http, judge_prompts
from saejax.evals.autointerp.windows import plain


@contextlib.contextmanager
def served(reply):
  """A chat server: reply(body, number) -> (status, text of the answer or bytes)."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      length = int(self.headers["Content-Length"])
      body = json.loads(self.rfile.read(length))
      asked.append(body | {"key": self.headers.get("Authorization")})
      status, said = reply(body, len(asked))
      if callable(said):
        said(self)
        return
      if isinstance(said, str):
        choice = {"message": {"role": "assistant", "content": said}}
        said = json.dumps({"choices": [choice]}).encode()
      self.send_response(status)
      self.send_header("Content-Length", str(len(said)))
      self.end_headers()
      self.wfile.write(said)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", asked
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def right(body, number):
  """Answers detection of "cat" rightly."""
  user = body["messages"][-1]["content"]
  lines = [x for x in user.splitlines() if x[:1].isdigit()]
  return 200, json.dumps([int("cat" in line) for line in lines])


def chat(url, **more):
  return judge_http.Chat(url=url, model="m", wait_s=0.001, **more)


WINDOWS = [plain(f"a {'cat' if i % 3 else 'dog'} of {i}") for i in range(12)]
LABEL = np.array([bool(i % 3) for i in range(12)], float)


def ask(url, question="detection", windows=WINDOWS, **more):
  one = judge_http.Http(chat=chat(url, **more))
  return one.score("cat", windows, question)


class ScoreTest(parameterized.TestCase):
  def test_a_partial_last_question_is_answered_like_the_others(self):
    with served(right) as (url, asked):
      np.testing.assert_array_equal(ask(url), LABEL)
    self.assertLen(asked, 3)  # 5, 5 and 2 windows

  @parameterized.parameters(
    "yes", "[1, 0]", "[1, 0, 1, 2, 0]", "[1, 0, 1, true, 0]", "", "[[1]]",
    "[1,0,1,0,1] or [0,1,0,1,0]",
  )  # fmt: skip
  def test_nonsense_is_a_failure_of_each_window(self, said):
    with served(lambda *_: (200, said)) as (url, asked):
      score = ask(url, windows=WINDOWS[:5])
    self.assertTrue(np.isnan(score).all())
    self.assertLen(score, 5)
    self.assertLen(asked, 1)

  @parameterized.parameters(
    ("2, 3", [0, 1, 1]), ("None", [0, 0, 0]), ("[1]", [1, 0, 0]),
    ("4", None), ("all", None), ("0", None),
  )  # fmt: skip
  def test_a_list_names_windows(self, said, want):
    with served(lambda *_: (200, said)) as (url, asked):
      score = ask(url, "list", WINDOWS[:3])
    np.testing.assert_array_equal(score, [np.nan] * 3 if want is None else want)
    self.assertLen(asked, 1)

  def test_log_probabilities_grade_scores(self):
    def token(text, **p):
      top = [{"token": t, "logprob": float(np.log(v))} for t, v in p.items()]
      return {"token": text, "top_logprobs": top}

    tokens = [
      *(token("["), {"token": "1", "top_logprobs": [
        {"token": "1", "logprob": float(np.log(0.6))},
        {"token": "0", "logprob": float(np.log(0.2))}]}),
      {"token": " 0", "top_logprobs": [{"token": "0", "logprob": -0.1}]},
    ]  # fmt: skip
    reply = {
      "choices": [
        {"message": {"content": "[1, 0]"}, "logprobs": {"content": tokens}}
      ]
    }
    with served(lambda *_: (200, json.dumps(reply).encode())) as (url, asked):
      score = ask(url, windows=WINDOWS[:2], logprobs=True)
    np.testing.assert_allclose(score, [0.75, 0])
    self.assertEqual(asked[0]["top_logprobs"], 5)

  def test_log_probabilities_of_another_form_are_a_failure(self):
    for content in (
      ["0", "1"],
      [{"token": "1", "top_logprobs": [{"token": "1"}]}],
    ):
      choice = {"message": {"content": "[1]"}, "logprobs": {"content": content}}
      reply = json.dumps({"choices": [choice]}).encode()
      with served(lambda *_, reply=reply: (200, reply)) as (url, _):
        score = ask(url, windows=WINDOWS[:1], logprobs=True)
      np.testing.assert_array_equal(score, [np.nan])

  def test_simulation_explanations_and_intruders_are_parsed(self):
    said = iter(["[0, 10]", "I see.\nEXPLANATION: cats ", "3", "2 or 3"])
    with served(lambda *_: (200, next(said))) as (url, asked):
      one = judge_http.Http(chat=chat(url))
      (levels,) = one.simulate("cat", [plain("a cat")])
      self.assertEqual(levels.tolist(), [0, 10])
      shown = plain("a black cat").marked(np.array([False, True, True]))
      self.assertEqual(one.explain([shown]), "cats")
      self.assertIn("1. a <<black cat>>", asked[-1]["messages"][-1]["content"])
      self.assertEqual(one.odd(WINDOWS[:3]), 2)
      self.assertEqual(one.odd(WINDOWS[:3]), -1)


class ChatTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_a_stopped_run_asks_only_what_it_lacks(self):
    cache = str(self.folder / "answers")
    down = {"from": 2, "until": 3}

    def reply(body, number):
      if down["from"] <= number <= down["until"]:
        return 503, "down"
      return right(body, number)

    with served(reply) as (url, asked):
      first = judge_http.Http(chat=chat(url, cache=cache, tries=1), workers=1)
      score = first.score("cat", WINDOWS, "detection")
      self.assertEqual(np.isnan(score).tolist(), [False] * 5 + [True] * 7)
      again = judge_http.Http(chat=chat(url, cache=cache), workers=1)
      for _ in range(2):  # the second time all are in the folder
        score = again.score("cat", WINDOWS, "detection")
        np.testing.assert_array_equal(score, LABEL)
        self.assertLen(asked, 3 + 2)
      other = judge_http.Http(chat=chat(url, cache=cache), number=1)
      other.score("cat", WINDOWS, "detection")
      self.assertLen(asked, 5 + 3)

  @parameterized.parameters(429, 500, 503)
  def test_a_busy_server_is_asked_again(self, status):
    busy = lambda body, n: right(body, n) if n == 3 else (status, "later")
    with served(busy) as (url, asked):
      score = ask(url, windows=WINDOWS[:2])
    np.testing.assert_array_equal(score, LABEL[:2])
    self.assertLen(asked, 3)

  @parameterized.parameters(b"{}", b"no json", b'{"choices": []}', b"[1]")
  def test_a_reply_without_answer_is_tried_again_then_a_failure(self, reply):
    with served(lambda *_: (200, reply)) as (url, asked):
      score = ask(url, windows=WINDOWS[:2], tries=2)
    self.assertTrue(np.isnan(score).all())
    self.assertLen(asked, 2)

  def test_a_server_that_is_gone_is_a_failure(self):
    with served(right) as (url, _):
      pass
    self.assertTrue(np.isnan(ask(url, windows=WINDOWS[:2])).all())

  def test_a_late_answer_is_a_failure_though_bytes_keep_coming(self):
    def slow(handler):
      handler.send_response(200)
      handler.send_header("Content-Length", "1000")
      handler.end_headers()
      with contextlib.suppress(OSError):
        for _ in range(100):
          handler.wfile.write(b" ")
          handler.wfile.flush()
          time.sleep(0.02)

    with served(lambda *_: (200, slow)) as (url, _):
      start = time.monotonic()
      score = ask(url, windows=WINDOWS[:2], timeout_s=0.1, tries=1)
      self.assertLess(time.monotonic() - start, 1)
    self.assertTrue(np.isnan(score).all())

  @parameterized.parameters((401, "key_name"), (404, "url"), (400, "url"))
  def test_what_the_server_refuses_is_refused_at_once(self, status, field):
    with (
      served(lambda *_: (status, "no such model")) as (url, asked),
      self.assertRaisesRegex(InputError, f"judge.{field}=.*{status}"),
    ):
      ask(url, windows=WINDOWS[:2])
    self.assertLen(asked, 1)

  def test_the_key_is_in_an_environment_variable(self):
    with (
      served(right) as (url, asked),
      mock.patch.dict(os.environ, SAEJAX_TEST_KEY="abc"),
    ):
      ask(url, windows=WINDOWS[:1], key_name="SAEJAX_TEST_KEY")
      self.assertEqual(asked[0]["key"], "Bearer abc")
    with self.assertRaisesRegex(InputError, "judge.key_name=SAEJAX_TEST_KEY"):
      chat("http://x", key_name="SAEJAX_TEST_KEY")

  @parameterized.parameters(
    ("file:///etc/passwd", {}, "judge.url=file"),
    ("http://x", {"tries": 0}, "judge.tries=0"),
    ("http://x", {"timeout_s": 0}, "judge.timeout_s=0"),
  )
  def test_wrong_settings_are_refused(self, url, more, said):
    with self.assertRaisesRegex(InputError, said):
      chat(url, **more)


class PromptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_every_prompt_can_be_filled(self):
    for name in judge_prompts.NAMES:
      prompt = judge_prompts.read(name)
      values = dict.fromkeys(
        ("windows", "silent", "explanation", "count", "tokens", "text"), "XYZ"
      )
      self.assertIn("XYZ", prompt.filled(**values)[1], name)

  def test_an_edited_prompt_is_used_and_a_wrong_one_refused(self):
    file = self.folder / "detection.txt"
    file.write_text("Be brief.\n===\n$windows: $explanation?")
    with served(lambda *_: (200, "[1]")) as (url, asked):
      one = judge_http.Http(chat=chat(url), prompts=str(self.folder))
      one.score("cats", [plain("a cat")], "detection")
    content = [m["content"] for m in asked[0]["messages"]]
    self.assertEqual(content, ["Be brief.", "1. a cat: cats?"])
    for text, said in (
      ("$windows", "a line ==="),
      ("a\n===\n$x", r"\$windows"),
      ("costs $5\n===\n$windows", r"write \$\$"),
    ):
      file.write_text(text)
      with self.assertRaisesRegex(InputError, said):
        judge_http.Http(chat=chat("http://x"), prompts=str(self.folder))


if __name__ == "__main__":
  absltest.main()

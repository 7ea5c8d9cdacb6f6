"""Streaming and progress in a chat: a small web page that shows an answer while it is drafted, changed and settled.

`python cookbook/08_chat_ui.py serve` and open http://127.0.0.1:8321. Without `serve` the recipe asks itself one
question, and prints the events that the page gets. Text that the search has committed is never taken back: the page
shows it in full colour, and what may still change in grey. A browser that goes away cancels its search.

Real model and GPU: replace `Engine.tiny(...)` by
    Engine(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", reward=ArithmeticSteps())
For many users, and clients that speak OpenAI's protocol, run `nabla serve` instead of this server.
"""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import urlopen

from nabla_agents import ArithmeticSteps, Budget, Engine, ImplicitReward, NablaError, Step

PAGE = Path(__file__).with_suffix(".html")
ALLOWED = 8  # rollouts
PORT = 8321

engine = Engine.tiny(reward=ImplicitReward.from_pretrained("tiny") + ArithmeticSteps(), budget=Budget(rollouts=ALLOWED))


def events(question: str) -> Iterator[tuple[str, object]]:
    """What the page is told: each step, then the result, or why there is none."""
    try:
        run = engine.steps(question)
    except NablaError as e:
        yield "failed", str(e)
        return
    best = ""
    try:
        for step in run:
            best = step.text if step.accepted else best
            shown = {"text": best, "committed": step.committed_text, "note": noted(step)}
            yield "step", {**shown, "rollouts": step.usage.rollouts, "allowed": ALLOWED}
        result = run.result
        score = result.score
        yield "result", {"text": result.text, "verified": score.verified, "note": f"{score.explanation}"}
    finally:
        run.cancel()  # no effect on a search that has ended


def noted(step: Step) -> str:
    if step.kind == "refine":
        return f"tried {step.new_token!r} for {step.old_token!r}: {'better' if step.accepted else 'no better'}"
    return "drafted" if step.kind == "rollout" else "done"


class Handler(BaseHTTPRequestHandler):
    """The page under `/`, a search as server-sent events under `/ask`."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path not in ("/", "/ask"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if url.path == "/" else "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if url.path == "/":
            self.wfile.write(PAGE.read_bytes())
            return
        try:
            for kind, data in events(parse_qs(url.query).get("question", [""])[0]):
                self.wfile.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the reader has gone; closing the generator has cancelled the search

    def log_message(self, *args: object) -> None:
        """No line for every request."""


if __name__ == "__main__" and "serve" in sys.argv:
    print(f"http://127.0.0.1:{PORT}")
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
elif __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    question = "Ella has 59 stamps. She sells 47. She then has 2 times as many. She loses 21. How many stamps are left?"
    with urlopen(f"http://127.0.0.1:{server.server_port}/ask?question={quote(question)}") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                print(f"{event['note']}: {event['text'].splitlines()[-1]}")
    server.shutdown()

# Prints:
# drafted: Answer: 1
# tried '3' for '1': better: Answer: 3
# done: Answer: 3
# 3 equations right: Answer: 3

"""Two GPUs and more: one samples behind a server, the other has the gradient and the rewards.

A search spends most of its time sampling, which inference servers do best. `ServerRollouts` hands that to one, and sees
by its first call whether both ends hold the same model. Here the second process is this file itself, started with
`serve`: a stand-in of some lines that speaks the part of vLLM's protocol that is used.

Real model and GPU: `CUDA_VISIBLE_DEVICES=1 vllm serve Qwen/Qwen2.5-7B-Instruct`, and on the other GPU
    model = LanguageModel.from_pretrained("Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16")
    rollouts = ServerRollouts("http://127.0.0.1:8000/v1", model)
More GPUs: let the server shard or replicate (`--tensor-parallel-size`, `--data-parallel-size`), or run an engine on
each: `python -m nabla_agents.scale` for a data set, `serve run nabla_agents.scale:app` for requests (Ray).
"""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import torch

from nabla_agents import Budget, Engine, ImplicitReward, LanguageModel, NablaParallel, Prompt, Sampling, ServerRollouts
from nabla_agents.models.decoding import RolloutJob

model = LanguageModel.from_pretrained("tiny")


class StandIn(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/completions`, with token ids in and out."""

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "tiny", "max_model_len": model.context_length}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, room = Prompt((), "", tuple(asked["prompt"])), asked["max_tokens"]
        sampling = Sampling(temperature=asked["temperature"], stop=asked["stop"])
        randoms = [
            torch.rand(room, generator=torch.Generator().manual_seed(asked["seed"] + i)) for i in range(asked["n"])
        ]
        rollouts = model.rollout([RolloutJob(prompt, (), sampling, room, numbers) for numbers in randoms])
        choices = [
            {
                "index": i,
                "text": rollout.text,
                "finish_reason": str(rollout.finish_reason),
                "token_ids": rollout.completion_ids,
                "logprobs": {"token_logprobs": rollout.log_probs.tolist()},
            }
            for i, rollout in enumerate(rollouts)
        ]
        self.reply({"object": "text_completion", "model": "tiny", "choices": choices})

    def reply(self, content: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args: object) -> None:
        """No line for every request."""


def search(**parts: object) -> Engine:
    return Engine(model=model, reward=ImplicitReward.from_pretrained("tiny"), strategy=NablaParallel(), **parts)


if "serve" in sys.argv:
    server = HTTPServer(("127.0.0.1", 0), StandIn)
    print(server.server_port, flush=True)
    server.serve_forever()

question = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)
other = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
try:
    port = int(other.stdout.readline())
    with ServerRollouts(f"http://127.0.0.1:{port}/v1", model) as rollouts:
        split = search(rollouts=rollouts).generate(question, budget=Budget(rollouts=6))
finally:
    other.terminate()
    other.wait()
print(split.text)
print("rollouts by the server:", split.usage.rollouts, "gradient passes here:", split.usage.gradient_passes)
print("the same as in one process:", split.text == search().generate(question, budget=Budget(rollouts=6)).text)

# Prints:
# 59 - 42 = 17
# 17 - 5 = 12
# 12 * 2 = 24
# 24 - 21 = 3
# 3 + 77 = 80
# Answer: 80
# rollouts by the server: 4 gradient passes here: 3
# the same as in one process: True

#!/usr/bin/env bash
# A stranger's first hour, step by step, on the embedded model: the command, agents, a query engine, a server, a reward and
# a comparison of one's own. Each step says what it does and ends everything where it does not come out.
#
#     tests/first_hour.sh                       # with .venv/bin/python, as `make hour` does
#     PYTHON=python3 tests/first_hour.sh        # with an environment of your own: pip install '.[all]' and both adapters
#     NABLA_GGUF=model.gguf tests/first_hour.sh # a model of your own too (minutes for its first loading)
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
python="$(command -v "${PYTHON:-$root/.venv/bin/python}")" ||
    { echo "There is no Python at ${PYTHON:-$root/.venv/bin/python}: make test makes one, PYTHON=... names another"; exit 1; }
folder="$(mktemp -d)"
cd "$folder"
export HF_HUB_OFFLINE=1 NABLA_SANDBOX_BUILD=0 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

server=""
step="before the first step"
finish() {
    status=$?
    [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }
    cd "$root"
    rm -rf "$folder"
    [ "$status" = 0 ] && echo "All of it works: ${SECONDS} s." || echo "FAILED: $step"
}
trap finish EXIT

nabla() { "$python" -c 'import sys; from nabla_agents.cli import main; sys.exit(main())' "$@"; }

begin() {
    step="$1"
    printf '%3d s  %s\n' "$SECONDS" "$step"
}

expect() { # TEXT: that what came in has; all of it is shown where it has not
    text="$(cat)"
    grep -qF -- "$1" <<<"$text" || { printf 'expected "%s" in:\n%s\n' "$1" "$text"; return 1; }
}

question="Tom has 12 apples. He then has 3 times as many. He gives away 17. How many apples are left?"
hard="At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. \
Ella finds 77 more. What is the number of stamps now?"
export question hard

begin "make demo: a wrong draft becomes a right answer"
nabla solve --sample 28 | expect "answer correct"

begin "a question of your own, by a pipe"
echo "$question" | nabla solve - --reward arithmetic --json |
    "$python" -c 'import json, sys; r = json.load(sys.stdin); print(r["text"], r["score"]["verified"])' |
    expect "Answer: 19 True"

if [ -n "${NABLA_GGUF:-}" ]; then
    begin "a model of your own: $NABLA_GGUF"
    nabla solve "What is 17 + 25?" --model "$NABLA_GGUF" --reward arithmetic --rollouts 2 --max-tokens 48 | expect "spent:"
fi

begin "LangChain: an agent whose final answers are refined"
"$python" - <<'END' | expect "Answer: 80"
import os

from langchain.agents import create_agent

from langchain_nabla import ChatNabla, NablaRefineMiddleware
from nabla_agents import ArithmeticSteps, Engine

llm = ChatNabla(engine=Engine.tiny(reward=ArithmeticSteps()), rollouts=4)
agent = create_agent(ChatNabla(model="tiny", rollouts=1), [], middleware=[NablaRefineMiddleware(llm)])
print(agent.invoke({"messages": [("human", os.environ["hard"])]})["messages"][-1].text)
END

begin "LlamaIndex: a query engine over a document"
"$python" - <<'END' | expect "Answer: 19"
import os

from llama_index.core import Document, MockEmbedding, PromptTemplate, VectorStoreIndex

from llama_index.llms.nabla import NablaLLM, NablaQueryEngine

pages = [Document(text=os.environ["question"])]
index = VectorStoreIndex.from_documents(pages, embed_model=MockEmbedding(embed_dim=8))
bare = PromptTemplate("{context_str}")
print(NablaQueryEngine(index.as_query_engine(llm=NablaLLM(model="tiny"), text_qa_template=bare)).query("How many apples?"))
END

begin "a server, asked by OpenAI's client"
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$python" -c 'import sys; from nabla_agents.cli import main; sys.exit(main())' \
    serve --model tiny --offer arithmetic --port "$port" >server.log 2>&1 &
server=$!
PORT="$port" "$python" - <<'END' | expect "Answer: 19 True" || { cat server.log; exit 1; }
import os
import time

import httpx

url = f"http://127.0.0.1:{os.environ['PORT']}"
asked = {"model": "tiny", "seed": 0, "messages": [{"role": "user", "content": os.environ["question"]}]}
nabla = {"reward": "arithmetic", "budget": {"rollouts": 4}}
for _ in range(240):
    try:
        httpx.get(f"{url}/ready").raise_for_status()
        break
    except httpx.HTTPError:
        time.sleep(0.25)
try:
    from openai import OpenAI
except ImportError:  # the same request by hand
    answer = httpx.post(f"{url}/v1/chat/completions", json={**asked, "nabla": nabla}, timeout=60).raise_for_status()
    [choice] = answer.json()["choices"]
    print(choice["message"]["content"], choice["nabla"]["verified"])
else:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    [choice] = client.chat.completions.create(**asked, extra_body={"nabla": nabla}).choices
    print(choice.message.content, choice.nabla["verified"])
END
kill "$server"
wait "$server" || true
server=""

begin "a reward of your own"
"$python" - <<'END' | expect "Answer: 19 | 2 equations right; the lines are short"
import os

from nabla_agents import ArithmeticSteps, Engine, Score, reward


@reward
def brief(completion: str) -> Score:
    short = all(len(line) < 20 for line in completion.splitlines())
    return Score(float(short), explanation="the lines are short" if short else "a line is long")


result = Engine.tiny(reward=ArithmeticSteps() + 0.5 * brief).generate(os.environ["question"], seed=0)
print(result.text.splitlines()[-1], "|", result.score.explanation)
END

begin "a comparison of your own, from one file"
cat >questions.jsonl <<END
{"question": "$question", "answer": "#### 19"}
{"question": "$hard", "answer": "#### 80"}
END
cat >compare.toml <<'END'
[task]
path = "questions.jsonl"

[rewards]
calculator = "arithmetic"

[strategies.greedy]

[strategies.nabla]
END
nabla bench compare.toml >bench.log || { cat bench.log; exit 1; }
expect "nabla" <table.md

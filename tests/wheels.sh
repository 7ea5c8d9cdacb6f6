#!/usr/bin/env bash
# The three wheels as users install them, each host in a fresh environment: what pip resolves fits together, nothing of the
# checkout is imported, and the README of the wheel is true there. At the end both hosts side by side, and the main README.
#
#     tests/wheels.sh    # minutes, installs three times
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 PYTHONSAFEPATH=1

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip wheel -q --no-deps --wheel-dir "$folder/dist" . integrations/langchain-nabla integrations/llama-index-llms-nabla

install() { # ENVIRONMENT REQUIREMENT...: ours come from the wheels, by name, as they will from an index
    local python="$folder/$1/bin/python"
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder/$1"
    "$python" -m pip install -q --constraint constraints.txt --find-links "$folder/dist" "${@:2}"
    "$python" -m pip check
}

try() { # ENVIRONMENT README...
    (cd "$folder" && "$folder/$1/bin/python" "$root/tests/pages.py" "${@:2}")
}

install langchain 'nabla-agents[langchain]'
"$folder/langchain/bin/python" -c 'import langchain_nabla
try:
    import llama_index
except ImportError:
    print("LangChain alone:", langchain_nabla.__file__.split("/lib/")[1])'
try langchain "$root/integrations/langchain-nabla/README.md"

install llama-index 'nabla-agents[llama-index]'
"$folder/llama-index/bin/python" -c 'import llama_index.core, llama_index.llms.nabla as ours
try:
    import langchain_core
except ImportError:
    print("LlamaIndex alone:", ours.__file__.split("/lib/")[1])'
try llama-index "$root/integrations/llama-index-llms-nabla/README.md"

install llama-index 'nabla-agents[langchain,llama-index]'
try llama-index "$root/README.md" "$root/integrations/langchain-nabla/README.md" "$root/integrations/llama-index-llms-nabla/README.md"
(cd "$folder" && "$folder/llama-index/bin/nabla" solve --sample 28 | grep -q "answer correct") && echo "The command answers."

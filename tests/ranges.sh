#!/usr/bin/env bash
# The adapters' tests on the oldest and on the newest releases of their hosts that the ranges in pyproject.toml allow, each
# in an environment of its own under build/ranges. torch stays the one in constraints.txt.
#
#     tests/ranges.sh oldest newest    # ten minutes and more for each
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1

hosts="langchain langchain-core langgraph llama-index-core transformers llguidance"
theirs="huggingface_hub tokenizers" # follow transformers
adapters=(--editable integrations/langchain-nabla --editable integrations/llama-index-llms-nabla)

pinned() { # END: constraints.txt with the hosts at this end of their ranges
    grep -vE "^(${theirs// /|})==" constraints.txt | "${PYTHON:-python3}" -c "$pin" "$1" $hosts
}

pin='
import re, sys, tomllib
from pathlib import Path

end, hosts, lowest = sys.argv[1], sys.argv[2:], {}
for file in [Path("pyproject.toml"), *sorted(Path("integrations").glob("*/pyproject.toml"))]:
    project = tomllib.loads(file.read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    for wanted in [*project.get("dependencies", []), *(each for extra in extras for each in extra)]:
        if (found := re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", wanted)) and found[1] in hosts:
            lowest[found[1]] = found[2]
for line in sys.stdin.read().splitlines():
    name = line.partition("==")[0]
    if name not in hosts:
        print(line)
    elif end == "oldest" and name in lowest:
        print(f"{name}=={lowest[name]}")
'

for end in "$@"; do
    folder="build/ranges/$end"
    mkdir -p build/ranges
    pinned "$end" >"$folder.txt"
    [ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
    "$folder/bin/python" -m pip install -qq --upgrade --upgrade-strategy eager --constraint "$folder.txt" --editable '.[test]' "${adapters[@]}"
    echo "$end: $("$folder/bin/python" -m pip list 2>/dev/null | grep -E "^(${hosts// /|}) " | tr -s ' ' '=' | tr '\n' ' ')"
    "$folder/bin/python" -m pytest -q tests/integrations tests/chat tests/models -p no:cacheprovider \
        -W "ignore::pydantic.warnings.UnsupportedFieldAttributeWarning" # of LlamaIndex' oldest beside the newest pydantic
done

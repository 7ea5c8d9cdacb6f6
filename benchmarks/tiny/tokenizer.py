"""The tokenizer of the tiny models: byte-level BPE with one token a digit, and a ChatML template with tools."""

import json
from collections.abc import Iterator
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nabla_agents.tiny.code_tasks import code_tasks
from nabla_agents.tiny.word_problems import problems

CONTEXT_TOKENS: Final = 8192
VOCABULARY: Final = 1024
PAD: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
MARKERS: Final = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.",
    "Solve the problem step by step.",
    "Answer the question. Write one equation on each line.",
    "You are a careful assistant. Think step by step, then write the answer on the last line.",
    "You solve arithmetic word problems.\nEnd with a line of the form: Answer: number",
    "Please help the user with the question and be brief.",
    "Work out the answer. Show your work, one step a line, and finish with the answer.",
)

CHAT_TEMPLATE: Final = r"""
{%- set first = messages[0] if messages else none %}
{%- set system = first.content if first and first.role == 'system' else '' %}
{%- if tools or system %}
    {{- '<|im_start|>system\n' + system }}
    {%- if tools %}
        {{- '\n\n' if system else '' }}
        {{- '# Tools\n\nYou may call one or more of these functions:\n<tools>' }}
        {%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}
        {{- '\n</tools>\n\nFor each call write a JSON object between <tool_call> and </tool_call>:\n' }}
        {{- '<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'system' and loop.first %}
    {%- elif message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' + ('\n' + content if content else '') }}
        {%- for call in message.tool_calls %}
            {%- set function = call.function if call.function else call %}
            {{- '\n<tool_call>\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {{- function.arguments if function.arguments is string else (function.arguments | tojson) }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
""".strip()

EXAMPLE_TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Return the value of an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "The expression, such as 34 + 27."}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search for a query and return the best results.",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string"}, "limit": {"type": "integer", "description": "How many."}},
                "required": ["query"],
            },
        },
    },
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer learnt from generated problems and tasks: any text round-trips exactly, and each digit is one token.

    It has at most VOCABULARY tokens; fewer when the text runs out of pairs to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[PAD, TURN_START, TURN_END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(seed), trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        extra_special_tokens=[TURN_START],
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _training_text(seed: int) -> Iterator[str]:
    for problem in problems(4000, seed=seed):
        yield f"user\n{problem.question}\n"
        yield f"assistant\n{problem.solution}\n"
    for task in code_tasks(2000, seed=seed):
        yield f"user\n{task.question}\n"
        yield f"assistant\n{task.solution}\n"
    for _ in range(40):  # often enough that the words of prompts and tools become tokens too
        for prompt in SYSTEM_PROMPTS:
            yield f"system\n{prompt}\n"
        for tool in EXAMPLE_TOOLS:
            yield json.dumps(tool)
        yield (
            "Tools You may call one or more of these functions For each call write a JSON object between tool response"
        )

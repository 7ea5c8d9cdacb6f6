"""The smallest context in which LlamaIndex's own prompts leave room for a query over one short document.

    python benchmarks/llama_index_context.py

Windows are tried in steps of 8 tokens; one is large enough if the query ends with an answer, within 100 calls of the
model. Prompts are packed by LlamaIndex's default tokenizer, for a chat model that always says the same, so that the
numbers are those of LlamaIndex alone, and the same on every machine.
"""

from importlib.metadata import version
from typing import Any

from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms import ChatMessage, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.response_synthesizers import CompactAndRefine, get_response_synthesizer

STEP, MOST_TOKENS, MOST_CALLS = 8, 1600, 100
SENTENCE = "Anna has 12 hens and 7 ducks on her farm. "


class Answering(MockLLM):
    """A chat model with a context of its own, which counts its calls."""

    window: int = 0
    output: int = 0
    calls: int = 0

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self.window, num_output=self.output, is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise ValueError(f"more than {MOST_CALLS} calls")
        return ChatResponse(message=ChatMessage(role="assistant", content="She has 12 hens."))


def main() -> None:
    index = VectorStoreIndex.from_documents([Document(text=SENTENCE * 6)], embed_model=MockEmbedding(embed_dim=8))
    print(f"llama-index-core {version('llama-index-core')}\n\n| num_output | mode | padding | window | calls |")
    print("|---:|---|---:|---:|---:|")
    for output in (64, 256):
        for mode, padding in (("compact", 500), ("compact", 50), ("tree_summarize", None)):
            window, calls = smallest(index, output, mode, padding)
            print(f"| {output} | {mode} | {padding or '–'} | {window} | {calls} |")


def smallest(index: VectorStoreIndex, output: int, mode: str, padding: int | None) -> tuple[int, int]:
    """The first window that is large enough, and the calls that are made in it."""
    for window in range(output + STEP, MOST_TOKENS, STEP):
        llm = Answering().model_copy(update={"window": window, "output": output})
        synthesizer: Any = get_response_synthesizer(llm=llm, response_mode=mode)  # type: ignore[arg-type]
        if isinstance(synthesizer, CompactAndRefine):
            synthesizer._response_padding_size = padding
        try:
            index.as_query_engine(llm=llm, response_synthesizer=synthesizer).query("How many hens has Anna?")
        except ValueError:
            continue
        return window, llm.calls
    raise RuntimeError(f"No window below {MOST_TOKENS} tokens is enough for {mode}.")


if __name__ == "__main__":
    main()

"""Every error the package raises on purpose. Each says what was got, what was expected and what to do."""

from __future__ import annotations


class NablaError(Exception):
    """Base of all errors raised by nabla-agents."""


class ConfigurationError(NablaError, ValueError):
    """A setting, option or combination of parts that cannot work; raised before any weight is loaded where possible."""


class GrammarError(ConfigurationError):
    """A grammar or JSON schema that cannot be compiled or followed; raised before a pass is paid where possible."""


class ModelLoadError(NablaError, OSError):
    """A model or tokenizer that cannot be loaded, or whose architecture the engine cannot run faithfully."""


class PromptError(NablaError, ValueError):
    """A prompt that cannot be turned into token ids: empty, of an unknown role, or refused by the chat template."""


class ContextOverflowError(PromptError):
    """A text that does not fit into a model's context: a prompt with one completion token, or what a reward reads."""


class VocabularyMismatchError(ConfigurationError):
    """A reward that compares token by token with the language model, but has another vocabulary."""


class ModelMismatchError(ConfigurationError):
    """A server that has another model, tokenizer or kind of log-probabilities than the local model."""


class RolloutError(NablaError, RuntimeError):
    """A rollout backend that broke its contract, for example by returning the wrong number, or a server that failed."""


class RewardError(NablaError, RuntimeError):
    """A reward that broke its contract, for example by returning the wrong number of scores."""


class ProgramError(NablaError, ValueError):
    """A program for the sandbox that cannot be started: code that is not text, or data that is not JSON."""


class SandboxError(NablaError, RuntimeError):
    """No sandbox can be had that contains untrusted code on this machine, or a closed one was used."""


class RemoteError(NablaError, RuntimeError):
    """A server that cannot be reached, refused the key, failed, or broke off its answer."""


def to_install(extra: str) -> str:
    """The command that brings what an extra has, from an index and from a clone."""
    return f"pip install 'nabla-agents[{extra}]', or in a clone: pip install '.[{extra}]'"

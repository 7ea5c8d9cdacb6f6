"""LlamaCppRollouts: completions sampled by llama.cpp in this process, while the local model has the gradient."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.errors import (
    ConfigurationError,
    ModelLoadError,
    RolloutError,
    VocabularyMismatchError,
    to_install,
)
from nabla_agents.functional import choose_each, token_log_probs
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.rows import RolloutJob, Row
from nabla_agents.types import Rollout

_BATCH: Final = 512  # tokens of one call
_PROBE: Final = "def f(x):\n    return [x ** 2, 'ä', \"→\"]  # 12.5 %"
Fed = tuple[int, int, int, bool]  # sequence, position, token, whether its logits are wanted


class LlamaCppRollouts:
    """A rollout backend for `Engine(rollouts=...)`: llama.cpp samples from the GGUF file that the local model was made
    of, in its few bits, several times as fast on a CPU; directions and acceptance are of the unpacked weights.

    Every token is chosen as the local model would choose it, by the job's own random numbers, from llama.cpp's logits;
    these depend on what else it reads at once, so a text may depend on what shares its batch. Log π is read by the
    local model, one forward for each completion. Prompts are read once for as long as they are among the
    newest. Jobs with a grammar run on the local model. The ledger counts as if all had run there.

    Args:
        file: the GGUF file.
        model: the language model of the engine, from the same file.
        rows: completions that are written together.
        context: tokens that all rows and their prompts hold together; 12 kB each for a model of 0.5 B.
        threads: of llama.cpp; by default as many as torch has.
        repack: llama.cpp lays weights out anew for the processor (AMX among others); False where its build does not run
            on this one, which ends the process.

    Raises:
        ConfigurationError: llama-cpp-python is not installed, or a setting is none.
        ModelLoadError, VocabularyMismatchError: llama.cpp cannot read the file, or it has other tokens.
        RolloutError: from `rollout`, where a job does not fit into `context`.
    """

    def __init__(
        self,
        file: str | Path,
        model: LanguageModel,
        *,
        rows: int = 8,
        context: int = 16_384,
        threads: int | None = None,
        repack: bool = True,
    ) -> None:
        for name, value in (("rows", rows), ("context", context), ("threads", 1 if threads is None else threads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} is {value!r}; expected a whole number of at least 1.")
        self._model, self._rows, self._context = model, rows, context
        self._lock = threading.Lock()
        self._cpp = cpp = _library()
        if not Path(file).is_file():
            raise ModelLoadError(f"There is no file {str(file)!r}; expected a GGUF file.")
        loading = cpp.llama_model_default_params()
        loading.use_extra_bufts = repack
        self._weights = cpp.llama_model_load_from_file(str(file).encode(), loading)
        if not self._weights:
            raise ModelLoadError(f"llama.cpp cannot read {str(file)!r}; expected a GGUF file that it supports.")
        self._check_tokens(str(file))
        options = cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max, options.kv_unified = context, _BATCH, 2 * rows, True
        options.n_threads = options.n_threads_batch = threads or torch.get_num_threads()
        self._state = cpp.llama_init_from_model(self._weights, options)
        if not self._state:
            raise ModelLoadError(f"llama.cpp has no memory for {context} tokens of {str(file)!r}; lower context.")
        self._memory = cpp.llama_get_memory(self._state)
        self._batch = cpp.llama_batch_init(_BATCH, 0, 1)
        self._prompts: dict[tuple[int, ...], int] = {}  # what is read of each, by the sequence that holds it
        self._apart, self._compared = 0.0, 0

    @property
    def nats_apart(self) -> float:
        """By how much log-probabilities of the written tokens differ between the file's weights and the local model's:
        mean of |log q - log π| over all of them so far, in nats; NaN before the first.
        """
        return self._apart / self._compared if self._compared else float("nan")

    def close(self) -> None:
        """Gives the memory back; the backend cannot be used any more."""
        with self._lock:
            if self._state:
                self._cpp.llama_batch_free(self._batch)
                self._cpp.llama_free(self._state)
                self._cpp.llama_model_free(self._weights)
                self._state = None

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        """One rollout per job, in the order of the jobs."""
        with_grammar = [i for i, job in enumerate(jobs) if job.sampling.grammar is not None]
        rollouts = dict(zip(with_grammar, self._model.rollout([jobs[i] for i in with_grammar]), strict=True))
        rows = {i: Row(job, list(job.prefix_ids)) for i, job in enumerate(jobs) if i not in rollouts}
        for row in rows.values():
            if row.ids:  # the end of the prefix may be one already
                row.close_if_finished(self._model)
        unwritten = [row for row in rows.values() if row.finish is None]
        with self._lock:
            if not self._state:
                raise RolloutError("These LlamaCppRollouts are closed; make others.")
            for first in range(0, len(unwritten), self._rows):
                self._write(unwritten[first : first + self._rows])
        read = self._model.reread([row.rollout(self._model) for row in rows.values()])
        for (i, row), rollout in zip(rows.items(), read, strict=True):
            self._compare(row.log_probs, rollout.log_probs)
            rollouts[i] = rollout
        return [rollouts[i] for i in range(len(jobs))]

    def _write(self, rows: Sequence[Row]) -> None:
        """Completes each, with log q of its new tokens."""
        self._read_prompts(rows)
        fed: list[Fed] = []
        for seq, row in enumerate(rows):
            first, tokens = len(row.job.prompt.ids) - 1, (row.job.prompt.ids[-1], *row.ids)
            fed += [(seq, first + k, token, k + 1 == len(tokens)) for k, token in enumerate(tokens)]
            row.prefilled_tokens += len(tokens)
            row.computed_tokens += len(tokens) - 1
        writing = list(range(len(rows)))
        while writing:
            logits, own = torch.stack(self._decoded(fed)), [rows[seq] for seq in writing]
            uniforms = torch.tensor([row.uniforms[len(row.ids)] for row in own], dtype=torch.float64)
            tokens = choose_each(logits, [row.job.sampling for row in own], uniforms)
            for row, token, log_q in zip(own, tokens.tolist(), token_log_probs(logits, tokens).tolist(), strict=True):
                row.ids.append(token)
                row.log_probs.append(log_q)
                row.computed_tokens += 1
                row.computed_rows += 1
                row.close_if_finished(self._model)
            writing = [seq for seq in writing if rows[seq].finish is None]
            fed = [(s, len(rows[s].job.prompt.ids) + len(rows[s].ids) - 1, rows[s].ids[-1], True) for s in writing]

    def _read_prompts(self, rows: Sequence[Row]) -> None:
        """Has each row's sequence hold its prompt but the last token."""
        jobs, cpp, memory = [row.job for row in rows], self._cpp, self._memory
        needed = sum(job.max_tokens for job in jobs) + sum(map(len, {job.prompt.ids for job in jobs}))
        if needed > self._context:
            raise RolloutError(
                f"{len(jobs)} rows may come to {needed} tokens with their prompts, but llama.cpp's context has "
                f"{self._context}. Lower max_tokens or rows, or give a larger context."
            )
        wanted, held = {job.prompt.ids[:-1] for job in jobs}, sum(map(len, self._prompts))
        for ids in [ids for ids in self._prompts if ids not in wanted]:  # the oldest first
            if held + needed <= self._context and len(self._prompts) + len(wanted) <= self._rows:
                break
            cpp.llama_memory_seq_rm(memory, self._prompts.pop(ids), -1, -1)
            held -= len(ids)
        for seq, row in enumerate(rows):
            ids = row.job.prompt.ids[:-1]
            if ids not in self._prompts:
                home = next(h for h in range(self._rows, 2 * self._rows) if h not in self._prompts.values())
                cpp.llama_memory_seq_rm(memory, home, -1, -1)  # of a reading that failed
                self._decoded([(home, position, token, False) for position, token in enumerate(ids)])
                self._prompts[ids] = home
                row.prefilled_tokens = row.computed_tokens = len(ids)
            cpp.llama_memory_seq_rm(memory, seq, -1, -1)
            cpp.llama_memory_seq_cp(memory, self._prompts[ids], seq, -1, -1)

    def _decoded(self, fed: Sequence[Fed]) -> list[Float[Tensor, "vocab"]]:
        """The logits that are wanted, in order."""
        batch, logits = self._batch, list[Tensor]()
        for first in range(0, len(fed), _BATCH):
            part = fed[first : first + _BATCH]
            batch.n_tokens = len(part)
            for i, (seq, position, token, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, seq
            if failed := self._cpp.llama_decode(self._state, batch):
                raise RolloutError(f"llama.cpp could not read {len(part)} tokens (llama_decode gave {failed}).")
            for i in (i for i, (*_, wanted) in enumerate(part) if wanted):
                row = self._cpp.llama_get_logits_ith(self._state, i)
                logits.append(torch.from_numpy(np.ctypeslib.as_array(row, (self._model.vocab_size,)).copy()))
        return logits

    def _compare(self, sampled: Sequence[float], log_probs: Tensor | None) -> None:
        if sampled and log_probs is not None:
            own = log_probs[-len(sampled) :].tolist()
            self._apart += sum(abs(a - b) for a, b in zip(sampled, own, strict=True))
            self._compared += len(sampled)

    def _check_tokens(self, file: str) -> None:
        """Raises VocabularyMismatchError where llama.cpp reads other ids than the local model."""
        cpp, text = self._cpp, _PROBE.encode()
        vocabulary = cpp.llama_model_get_vocab(self._weights)
        ids = (cpp.llama_token * len(text))()
        count = cpp.llama_tokenize(vocabulary, text, len(text), ids, len(text), False, False)
        size, model = cpp.llama_vocab_n_tokens(vocabulary), self._model
        if size != model.vocab_size or list(ids[: max(count, 0)]) != model.tokenizer.encode(_PROBE):
            raise VocabularyMismatchError(
                f"{file} has {size} tokens for llama.cpp and {model.name} has {model.vocab_size}, and both must read a "
                "text alike; expected the file that the model was made of."
            )


@cache
def _library() -> Any:
    try:
        library: Any = importlib.import_module("llama_cpp")
    except ImportError as e:
        raise ConfigurationError(
            f"LlamaCppRollouts needs llama-cpp-python, which is built in minutes: {to_install('llama-cpp')}."
        ) from e
    library.llama_backend_init()
    library.llama_log_set(_say_nothing(library), None)
    return library


@cache
def _say_nothing(library: Any) -> Any:
    """A callback for its messages, kept for as long as it may be called."""
    return library.llama_log_callback(lambda *_: None)

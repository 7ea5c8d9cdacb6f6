"""The command `nabla`. Only here do strings select parts, each through one table; nothing heavy is imported before it
is needed.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

import nabla_agents as na
from nabla_agents import tiny
from nabla_agents.errors import ConfigurationError, NablaError
from nabla_agents.named import LEARNED_REWARDS, REWARDS, STRATEGIES, known, reward_of, terms_of

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED, BAD_INPUT, NO_SANDBOX = 130, 2, 1

app = typer.Typer(
    help="Answers refined by gradients: a language model's answer, improved while you watch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The script entry."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal that lacks a character shows `?` instead of ending the run
            reconfigure(errors="replace")
    app()


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Errors of ours and of files become one line and exit code 2, Ctrl-C becomes exit code 130; foreign warnings are
    silenced.
    """

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> None:
        try:
            with _own_warnings_only(), _lasting_interrupt():
                function(*args, **options)
        except (NablaError, OSError) as e:
            if isinstance(e, OSError) and e.errno == errno.EPIPE:
                raise  # the reader has seen enough, which click ends without a word
            _console(stderr=True).print(f"error: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from e
        except KeyboardInterrupt:
            _console().show_cursor(True)
            _console(stderr=True).print("Interrupted.", style="yellow")
            raise typer.Exit(INTERRUPTED) from None

    return command


@contextmanager
def _lasting_interrupt() -> Iterator[None]:
    """Ctrl-C stays an interrupt where a library, half imported by then, makes some other error of it."""
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(signum, frame)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nobody else has set one
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as e:
        if pressed:
            raise KeyboardInterrupt from e
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"nabla-agents {na.__version__}")
        raise typer.Exit


@app.command()
@_command
def solve(
    question: Annotated[str | None, typer.Argument(help="What to ask.", show_default=False)] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Ask the N-th test problem and check the answer.")
    ] = None,
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a folder or a hub id.")] = "tiny",
    reward: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(REWARDS)}, none, {', '.join(f'{k}:MODEL' for k in LEARNED_REWARDS)}, or a sum such as "
            "`tiny+2*arithmetic`. Default: tiny for the tiny model, else none.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "nabla",
    rollouts: Annotated[int, typer.Option(help="Completions that may be sampled.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Length limit of the answer.")] = 1024,
    temperature: Annotated[float | None, typer.Option(help="Default: the strategy's own.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.", show_default=False)] = None,
    formatted: Annotated[
        bool, typer.Option("--formatted", help="Take the question verbatim, without the chat template.")
    ] = False,
    likelihood_weight: Annotated[
        float, typer.Option(help="Weight of the log-likelihood beside the reward (1 / the paper's λ).")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write what was tried, and why, as one HTML page.", show_default=False)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's own.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="For example bfloat16.", show_default=False)] = None,
    device_map: Annotated[str | None, typer.Option(help="Needs accelerate.", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default=False)] = None,
) -> None:
    """Answer one question, and show how the answer is refined."""
    if (question is None) == (sample is None):
        raise ConfigurationError("Give either a question or --sample N, for example: nabla solve --sample 1")
    problem = None if sample is None else tiny.problems(sample, seed=0, split="test")[-1]
    asked = problem.question if problem is not None else question or ""
    if formatted and system is not None:
        raise ConfigurationError("--formatted takes the question verbatim: write the system prompt into it.")
    if not asked.strip():
        raise ConfigurationError("The question is empty; expected some text, for example: nabla solve 'What is 3 * 4?'")
    if report is not None and (report.is_dir() or not os.access(report.parent, os.W_OK)):
        raise ConfigurationError(f"--report {report} cannot be written; expected a file in a folder that can be.")
    make_strategy = known(STRATEGIES, strategy, "strategy")
    terms = terms_of(reward if reward is not None else "tiny" if model == "tiny" else "none")
    budget = na.Budget(rollouts=rollouts)
    loading = {"trust_remote_code": trust_remote_code, "dtype": dtype, "device_map": device_map}
    loading = {name: value for name, value in loading.items() if value}
    with _loading(f"Loading {model}"):
        from nabla_agents.live import JsonView, LiveView, PlainView, watch

        sampling = na.Sampling(max_tokens=max_tokens, temperature=temperature)
        engine = na.Engine(
            strategy=make_strategy(rollouts),
            model=na.LanguageModel.from_pretrained(model, **loading, **({"revision": revision} if revision else {})),
            reward=reward_of(terms, loading),
            budget=budget,
            likelihood_weight=likelihood_weight,
        )
    messages = [na.Message("system", system)] if system is not None else []
    prompt = asked if formatted else [*messages, na.Message("user", asked)]
    run = engine.steps(prompt, seed=seed, sampling=sampling, formatted=formatted)
    console = _console()
    if as_json:
        view = JsonView(asked, problem)
    elif console.is_terminal and not console.is_dumb_terminal:
        view = LiveView(console, asked, problem)
    else:
        view = PlainView(console, asked, problem)
    result = watch(run, view)
    if report is not None:
        _write_report(result, report)
    if result.finish_reason is na.FinishReason.INTERRUPTED:
        raise typer.Exit(INTERRUPTED)


@app.command()
@_command
def bench(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file that says what is compared.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What is asked without a file: `words` (default) or `code`.", show_default=False)
    ] = None,
    problems: Annotated[
        int | None, typer.Option(help="How many test problems; default 300.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the problems and of the sampling; default 0.", show_default=False)
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Comma list of arms or globs; `--list` shows them. `ARM@X` sets min_promise=X, `ARM[a=1,b.c=2]` any "
            "setting of the strategy, or likelihood_weight or embedding_terms: "
            "`greedy,nabla*@-1,nabla/none@-5,nabla[dto.beta=0.3]`."
        ),
    ] = "*",
    rollouts: Annotated[
        int | None, typer.Option(help="Budget of every question; default 8.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Length limit of an answer; default 192.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Questions that run together; default 64.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default 1.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; an unfinished run in it goes on. Default: the file's, else bench-results.",
            show_default=False,
        ),
    ] = None,
    list_arms: Annotated[bool, typer.Option("--list", help="List the arms and exit.")] = False,
) -> None:
    """Measure strategies and their controls: accuracy with intervals, and what it costs.

    On test problems of the embedded model, or with a CONFIG on any questions, model and rewards; options go before what
    it says. Ctrl-C keeps what is done; the same command goes on from there. OUT gets records.jsonl, results.json,
    table.md and, with the extra `plots`, pictures.
    """
    given = {
        "task": task,
        "problems": problems,
        "seeds": seed,
        "budgets": rollouts,
        "max_tokens": max_tokens,
        "batch": batch,
        "workers": workers,
    }
    given = {name: value for name, value in given.items() if value is not None}
    with _loading("Loading the arms"):
        from nabla_agents import bench as benches
        from nabla_agents.bench.view import follow

        settings = benches.BenchConfig(**given) if config is None else benches.BenchConfig.read(config).replace(**given)
        chosen = benches.choose(arms, settings.arms())
    if list_arms:
        print("\n".join(arm.name for arm in chosen))
        return
    with _loading(f"Loading {settings.model}"):
        ready = settings.bench(arms)
    folder = out or (Path("bench-results") if config is None else config.parent)
    records = benches.run(ready, folder, recipe=functools.partial(settings.bench, arms))
    report = settings.report(config.as_posix() if config is not None else None, arms)
    if not follow(records, _console(), bench=ready, out=folder, report=report):
        raise typer.Exit(INTERRUPTED)


@app.command()
@_command
def mcp(
    transport: Annotated[str, typer.Option(help="`stdio`, for one client, or `http`, for many, at /mcp.")] = "stdio",
    host: Annotated[
        str, typer.Option(help="Of `http`. Elsewhere than on loopback NABLA_MCP_KEY is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of `http`.")] = 8001,
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a folder or a hub id.")] = "tiny",
    reward: Annotated[str | None, typer.Option(help="What judges, as in `nabla solve`.", show_default=False)] = None,
    offer: Annotated[
        str, typer.Option(help="Comma list of rewards that a call may choose instead, for example `arithmetic`.")
    ] = "arithmetic",
    strategy: Annotated[str, typer.Option(help=f"Unless a call chooses: one of {', '.join(STRATEGIES)}.")] = "nabla",
    rollouts: Annotated[int, typer.Option(help="Completions per call, unless it asks for another number.")] = 8,
    max_rollouts: Annotated[int, typer.Option(min=1, help="The most that a call may ask for.")] = 64,
    concurrent: Annotated[int, typer.Option(min=1, help="Calls that run at the same time.")] = 8,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's own.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="For example bfloat16.", show_default=False)] = None,
    device_map: Annotated[str | None, typer.Option(help="Needs accelerate.", show_default=False)] = None,
) -> None:
    """Offer `solve` and `verify` as tools to any MCP client."""
    known({"stdio": None, "http": None}, transport, "transport")
    make_strategy = known(STRATEGIES, strategy, "strategy")
    terms = terms_of(reward if reward is not None else "tiny" if model == "tiny" else "none")
    offered = {name.strip(): terms_of(name) for name in offer.split(",") if name.strip()}
    budget = na.Budget(rollouts=rollouts)
    loading = {"trust_remote_code": trust_remote_code, "dtype": dtype, "device_map": device_map}
    loading = {name: value for name, value in loading.items() if value}
    with _loading(f"Loading {model}"):
        from nabla_agents import mcp_server

        keys = [key] if (key := os.environ.get("NABLA_MCP_KEY")) else []
        if transport == "http":
            mcp_server.check_keys(host, keys)
        engine = na.Engine(
            strategy=make_strategy(rollouts),
            model=na.LanguageModel.from_pretrained(model, **loading),
            reward=reward_of(terms, loading),
            budget=budget,
        )
        tools = mcp_server.NablaTools(
            engine,
            rewards={name: made for name, each in offered.items() if (made := reward_of(each, loading)) is not None},
            strategies={name: make(rollouts) for name, make in STRATEGIES.items()},
            max_rollouts=max_rollouts,
            concurrent=concurrent,
        )
    if transport == "stdio":
        mcp_server.run_stdio(tools)
    else:
        _console(stderr=True).print(f"MCP at http://{host}:{port}/mcp", highlight=False)
        mcp_server.run_http(tools, host=host, port=port, keys=keys)


@app.command()
@_command
def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="`tiny` (embedded), a folder or a hub id; may be repeated.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.  [default: 127.0.0.1]", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.  [default: 8000]", show_default=False)] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="What answers are judged by, as for `solve`. Default: tiny for the tiny model, else none."),
    ] = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(
            help="A further reward that a request may choose by this name; may be repeated.", show_default=False
        ),
    ] = None,
    strategy: Annotated[str, typer.Option(help=f"Unless a request names another: {', '.join(STRATEGIES)}.")] = "nabla",
    rollouts: Annotated[int, typer.Option(help="Completions per answer, unless a request says otherwise.")] = 8,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file of server settings: keys, limits, caps.", show_default=False)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's own.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="For example bfloat16.", show_default=False)] = None,
    device_map: Annotated[str | None, typer.Option(help="Needs accelerate.", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default=False)] = None,
) -> None:
    """Serve refined answers behind OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    Further settings come from --config and from the environment, as NABLA_SERVE_MAX_CONCURRENT=32. On an address that
    other machines reach it needs API keys, from `nabla serve-key`. Ctrl-C and SIGTERM let running answers end.
    """
    from nabla_agents import serve as serving

    given: dict[str, Any] = {name: v for name, v in (("host", host), ("port", port)) if v is not None}
    settings = serving.ServeSettings.read(config, **given)
    models = model or ["tiny"]
    make_strategy = known(STRATEGIES, strategy, "strategy")
    offered = {name: terms_of(name) for name in offer or []}
    terms = {name: terms_of(reward if reward is not None else "tiny" if name == "tiny" else "none") for name in models}
    loading = {"trust_remote_code": trust_remote_code, "dtype": dtype, "device_map": device_map}
    loading = {name: value for name, value in loading.items() if value}
    with _loading(f"Loading {', '.join(models)}"):
        engines = {
            name: na.Engine(
                model=na.LanguageModel.from_pretrained(name, **loading, **({"revision": revision} if revision else {})),
                reward=reward_of(terms[name], loading),
                strategy=make_strategy(rollouts),
                budget=na.Budget(rollouts=rollouts),
            )
            for name in models
        }
        strategies = {name: make(rollouts) for name, make in STRATEGIES.items()}
        rewards = {name: _some(reward_of(of, loading), name) for name, of in offered.items()}
        application = serving.create_app(engines, settings, rewards=rewards, strategies=strategies)
    serving.serve(application, settings)


@app.command("serve-key")
@_command
def serve_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, for logs and metrics.", show_default=False)],
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires.", show_default=False)] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, show_default=False)] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Answers at a time.", show_default=False)] = None,
    rollouts: Annotated[int | None, typer.Option(min=1, help="Completions per answer.", show_default=False)] = None,
) -> None:
    """Make an API key. It is shown once, on stderr; stdout has the entry for the server's --config file, with its hash:

    nabla serve-key alice --days 90 >> serve.toml
    """
    from datetime import UTC, datetime, timedelta

    from nabla_agents import serve as serving

    key = serving.new_key()
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    limits = {"requests_per_minute": requests_per_minute, "concurrent": concurrent, "rollouts": rollouts}
    serving.ApiKey(id=name, sha256=serving.digest(key), expires=expires, **limits)
    print(f'\n[[keys]]\nid = "{name}"\nsha256 = "{serving.digest(key)}"')
    if expires is not None:
        print(f"expires = {expires.isoformat()}")
    for limit, value in limits.items():
        if value is not None:
            print(f"{limit} = {value}")
    print(f"The key, which is not kept anywhere: {key}", file=sys.stderr)


@app.command()
@_command
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build the WebAssembly sandbox first, about a minute; needs `[sandbox]`.")
    ] = False,
) -> None:
    """Show which sandboxes contain untrusted Python on this machine: each runs its self-test."""
    from nabla_agents import sandbox

    if build:
        sandbox.build_wasm(lambda step: print(f"building: {step}", flush=True))
    found = sandbox.diagnosis()
    for each in found:
        print(f"{each.backend:8}{'contains: ' + ', '.join(each.layers) if each.active else 'not used: ' + each.why}")
        for note in each.notes:
            print(f"{'':8}{note}")
    if not any(each.active for each in found):
        raise typer.Exit(NO_SANDBOX)


def _write_report(result: na.Result, file: Path) -> None:
    try:
        file.write_text(result.trace.to_html(title="nabla solve"), encoding="utf-8")
    except OSError as e:
        raise ConfigurationError(f"--report {file} cannot be written ({e}).") from e


def _some(reward: na.Reward | None, name: str) -> na.Reward:
    if reward is None:
        raise ConfigurationError(f"--offer {name!r} is no reward; expected for example --offer arithmetic.")
    return reward


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """A spinner on a terminal's stderr while weights and libraries are loaded, and nothing from them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _console(stderr=True).status(f"{what} …"):
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


@contextmanager
def _own_warnings_only() -> Iterator[None]:
    def show(message: Warning | str, *_: Any) -> None:
        _console(stderr=True).print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"nabla_agents\b")
        warnings.showwarning = show
        yield

"""The application: what all commands share: exit codes, errors in one line, Ctrl-C, warnings, a spinner."""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

import nabla_agents as na
from nabla_agents.errors import NablaError

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED, BAD_INPUT, NO_SANDBOX = 130, 2, 1
_PATIENCE = 2  # seconds

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


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"nabla-agents {na.__version__}")
        raise typer.Exit


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Errors of ours and of files become one line and exit code 2, Ctrl-C becomes exit code 130; foreign warnings are
    silenced.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with _own_warnings_only(), _lasting_interrupt():
                function(*args, **options)
        except (NablaError, OSError) as e:
            if isinstance(e, OSError) and e.errno == errno.EPIPE:
                raise  # the reader has seen enough, which click ends without a word
            terminal(stderr=True).print(f"error: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from e
        except KeyboardInterrupt:
            terminal().show_cursor(True)
            terminal(stderr=True).print("Interrupted.", style="yellow")
            raise typer.Exit(INTERRUPTED) from None

    return run


def terminal(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """A spinner on a terminal's stderr while weights and libraries are loaded, and nothing from them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers has a bar of its own while it unpacks a GGUF file
    console = terminal(stderr=True)
    waiting = _Waiting(what)
    with console.status(waiting), _stages(waiting, None if console.is_terminal else console):
        from transformers.utils import logging as chatter

        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        yield


class _Waiting:
    """What is waited for and, after a few seconds, for how long already."""

    def __init__(self, what: str) -> None:
        self.what, self._begun = what, time.monotonic()

    def __rich__(self) -> str:
        seconds = time.monotonic() - self._begun
        return f"{self.what} …" + (f" {seconds:.0f} s" if seconds >= _PATIENCE else "")


@contextmanager
def _stages(waiting: _Waiting, console: Console | None) -> Iterator[None]:
    """Long stages that loading tells of are shown, as lines of their own where there is no spinner."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waiting.what = record.getMessage()
            if console is not None:
                console.print(waiting.what, markup=False, soft_wrap=True)

    logger, handler = logging.getLogger("nabla_agents.models"), Shown()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _lasting_interrupt() -> Iterator[None]:
    """Ctrl-C stays an interrupt where a library, half imported by then, makes some other error of it; and it comes once
    more where it came within a callback of the interpreter's, which lets no error out.
    """
    pressed, unraisable = False, sys.unraisablehook

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(signum, frame)

    def passed(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            unraisable(what)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nobody else has set one
    if ours:
        signal.signal(signal.SIGINT, note)
        sys.unraisablehook = passed
    try:
        yield
    except Exception as e:
        if pressed:
            raise KeyboardInterrupt from e
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = unraisable


@contextmanager
def _own_warnings_only() -> Iterator[None]:
    def show(message: Warning | str, *_: Any) -> None:
        terminal(stderr=True).print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"nabla_agents\b")
        warnings.showwarning = show
        yield

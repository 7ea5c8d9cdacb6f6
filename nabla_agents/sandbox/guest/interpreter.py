"""Runs one program where it can do no harm, and says in JSON what came of it. All of that is a claim to the host."""

import builtins
import contextlib
import errno
import io
import json
import sys
import types

FILE = "<program>"
JSON_DIGITS = 4300  # of a whole number in a report: as many as any other interpreter reads by default
NAME_CHARACTERS, MESSAGE_CHARACTERS = 200, 1000
OUT_OF_MEMORY = '{"status": "oom", "error_type": "MemoryError"}'  # ready before memory is gone
FAILED = '{"status": "error", "error_type": "Exception"}'
RESERVE = [bytearray(2 << 20)]  # given up for saying that memory is gone, while the program still holds it
# What CPython says of sizes that no memory holds; "too large to convert to float" is no such case.
SIZE_WORDS = ("index-sized", "ssize_t", "is too long", "too many digits", "size too large")


class TooMuchOutput(BaseException):
    """A cap on what the program says was reached."""


class Report:
    """What is claimed: the status, the error, and the values as JSON texts."""

    def __init__(self, value_bytes):
        self.facts = {"status": "ok"}
        self.values = []
        self._room = value_bytes
        # The program may break everything it can reach; what is needed afterwards is bound here.
        self._dumps = json.dumps
        self._encode = json.JSONEncoder(allow_nan=False, default=plain).iterencode
        self._limit_digits = getattr(sys, "set_int_max_str_digits", lambda digits: None)

    def add(self, value):
        """Appends a value's JSON, `null` with a reason where it has none; stops at the cap, however deep it shares."""
        text = ""
        try:
            self._limit_digits(JSON_DIGITS)
            for chunk in self._encode(value):
                text += chunk
                if len(text) > self._room:
                    raise TooMuchOutput
        except (TypeError, ValueError, RecursionError) as e:
            self.facts["detail"] = f"call {len(self.values)} returned {name_of(value)}, no JSON value: {text_of(e)}"
            text = "null"
        finally:
            self._limit_digits(0)
        self._room -= len(text) + 1
        self.values.append(text)

    def as_json(self):
        try:
            return self._dumps(self.facts)[:-1] + ', "values": [' + ", ".join(self.values) + "]}"
        except MemoryError:
            return OUT_OF_MEMORY
        except BaseException:  # a text that is none
            return FAILED


def plain(value):
    """A number or array of numpy, or another integer type, as JSON can say it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__index__"):
        return value.__index__()
    raise TypeError("only None, bool, numbers, str, lists and dicts can be sent")


def execute(request):
    """The report, as JSON text, on the program in `request`; whatever the program does, this returns."""
    repair, sound = builtins.__dict__.update, dict(builtins.__dict__)
    untrace, unprofile = sys.settrace, sys.setprofile
    report = Report(request["value_bytes"])
    try:
        run(request, report)
        flush(getattr(sys, "stdout", None))
    except:  # noqa: E722  naming BaseException would look it up among builtins, which may be gone
        RESERVE.clear()
        untrace(None)
        unprofile(None)
        repair(sound)
        describe(sys.exc_info()[1], report.facts)
    untrace(None)
    unprofile(None)
    repair(sound)
    return report.as_json()


def run(request, report):
    entry = request["entry"]
    module = types.ModuleType("program" if entry else "__main__")
    sys.modules[module.__name__] = module  # dataclasses and pickle look for the module of a class
    builtins.exit = builtins.quit = sys.exit  # where the module `site` did not run
    sys.argv = ["program.py"]
    sys.stdin = io.TextIOWrapper(io.BytesIO(request["stdin"].encode("utf-8", "surrogatepass")), encoding="utf-8")
    space = vars(module)
    space.update(request["inputs"])
    exec(compile(request["code"], FILE, "exec", dont_inherit=True), space)
    if entry:
        if entry not in space:
            raise NameError(f"the program defines no {entry}")
        for arguments in request["calls"]:
            report.add(space[entry](*arguments))


def flush(stream):
    with contextlib.suppress(AttributeError, TypeError, ValueError, OSError):  # the program closed or replaced it
        stream.flush()


def describe(error, facts):
    """Adds to the facts what kind of end an exception is."""
    try:
        facts["error_type"] = name_of(error)
        facts["error_message"] = text_of(error)
        facts["line"] = line if type(line := line_of(error)) is int else None
        facts["status"] = status_of(error)
        if isinstance(error, SystemExit) and facts["status"] == "ok":
            facts.update(detail="exit", error_type="", error_message="")
        if isinstance(error, ModuleNotFoundError):
            facts["missing"] = str(error.name)[:NAME_CHARACTERS]
    except MemoryError:
        facts.update(status="oom")
    except BaseException:
        facts.setdefault("error_type", "Exception")
        facts.update(status="error")


def status_of(error):
    if isinstance(error, SystemExit):
        return "ok" if error.code is None or error.code == 0 else "error"
    if isinstance(error, TooMuchOutput):
        return "output_limit"
    if isinstance(error, MemoryError):
        return "oom"
    if isinstance(error, OverflowError) and any(word in text_of(error) for word in SIZE_WORDS):
        return "oom"
    if isinstance(error, PermissionError) and error.errno in (errno.EPERM, errno.EACCES):
        return "denied"
    return "error"


def name_of(value):
    return str(type(value).__name__)[:NAME_CHARACTERS]


def text_of(error):
    try:
        return str.__getitem__(str(error), slice(MESSAGE_CHARACTERS))  # it may be a str with methods of its own
    except MemoryError:
        raise
    except BaseException:  # its __str__ raises
        return "?"


def line_of(error):
    """The program's line that failed, None where it is not in the program."""
    if isinstance(error, SyntaxError) and error.filename == FILE:
        return error.lineno
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == FILE:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line

"""What programs can import: all of it is loaded before the lock, since nothing can be opened after it."""

import contextlib
import importlib
import sys

# No asyncio: it cannot run sealed, and a module that is missing says so more plainly than one that fails.
STANDARD = """
    __future__ _strptime abc argparse array ast base64 binascii bisect builtins bz2 calendar cmath code codecs
    collections collections.abc colorsys concurrent.futures configparser contextlib contextvars copy copyreg csv
    ctypes dataclasses datetime decimal difflib dis enum errno fcntl fnmatch fractions functools gc getopt getpass
    glob graphlib gzip hashlib heapq hmac html html.entities html.parser importlib importlib.util inspect io
    itertools json keyword linecache locale logging lzma marshal math mmap numbers opcode operator os os.path
    pathlib pickle pickletools pkgutil platform posixpath pprint queue random re reprlib resource sched secrets
    select selectors shlex shutil signal socket stat statistics string stringprep struct subprocess sys sysconfig
    tempfile textwrap threading time timeit token tokenize traceback types typing unicodedata unittest urllib.parse
    uuid warnings weakref xml.etree.ElementTree zipfile zlib zoneinfo doctest cProfile pstats
"""
# What the interpreter and these modules load only when they come to need it: long numbers as text, annotations.
LATE = """
    _pylong _pydecimal _pydatetime _colorize annotationlib string.templatelib concurrent.futures.thread
    importlib.resources _ast_unparse _markupbase _py_warnings pathlib._os
"""
CODECS = """
    ascii base64_codec bz2_codec charmap cp1252 cp437 hex_codec idna iso8859_1 latin_1 punycode quopri_codec
    raw_unicode_escape rot_13 unicode_escape utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le utf_7 utf_8 utf_8_sig
    uu_codec zlib_codec
"""
# What programs do with a package after importing it: it loads the parts that the package itself loads late.
WARM_UPS = {
    "numpy": """
import numpy as np, numpy.linalg, numpy.fft, numpy.polynomial, numpy.random, numpy.ma
np.random.seed(0); np.random.default_rng(0).normal(size=3)
a = np.array([[2.0, 1.0], [1.0, 3.0]])
np.linalg.solve(a, a); np.linalg.eig(a); np.linalg.inv(a); np.linalg.det(a); np.fft.fft(a); np.roots([1, 2, 1])
np.polyfit([0, 1, 2], [0, 1, 4], 2); str(a); np.einsum("ij,jk", a, a); np.percentile(a, 50); np.unique(a)
""",
    "sympy": """
from sympy import *
x, y, n = symbols("x y n"); i = symbols("i", integer=True, positive=True); solve(x**2 - 2, x)
solve([x + y - 3, x - y - 1], [x, y]); solveset(x**2 - 1, x, S.Reals); simplify(sin(x)**2 + cos(x)**2)
factor(x**2 - 1); expand((x + 1)**3); integrate(x * exp(x), x); diff(sin(x), x); limit(sin(x) / x, x, 0)
series(cos(x), x, 0, 4); Matrix([[1, 2], [3, 4]]).eigenvals(); summation(i, (i, 1, n)); factorint(2**20 - 1)
isprime(97); nsolve(cos(x) - x, x, 1); N(pi, 20); sympify("x + 1"); latex(x / y); Rational(1, 3) + sqrt(2)
together(1 / x + 1 / y); solve(x**3 - 2 * x + 1, x); solve(Abs(i) - 1, i); reduce_inequalities(x**2 < 4, x)
apart(1 / (x**2 - 1)); str(pretty(x**2)); lambdify(x, x**2)(3); diophantine(x**2 - y**2 - 3); nextprime(10)
divisors(12); totient(10); binomial(5, 2); trigsimp(sin(x))
""",
    "math_verify": r"""
import sympy.physics.units, sympy.sets.setexpr, sympy.integrals.meijerint, sympy.concrete.gosper, sympy.series.gruntz
from math_verify import parse, verify
pairs = [("x^2+2x+1", "(x+1)^2"), (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}"), (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"1.5\times10^{3}", "1500"), ("(1,2)", "[1,2]"), ("x<3", "3>x"), (r"\{1,2\}", "1,2"), (r"\binom{5}{2}", "10"),
    (r"e^{i\pi}", "-1"), (r"\log 8/\log 2", "3"), ("|x|", "x"), (r"\sin^2 x+\cos^2 x", "1"), ("5!", "120"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&5\end{bmatrix}"), (r"x\in(1,2)", "1<x<2"),
    (r"\int_0^1 x\,dx", "0.5"), (r"\sum_{n=1}^{5} n", "15"), (r"50\%", "0.5"), (r"\text{A}", "A"), ("x=3", "3")]
for pair in pairs:
    verify(*(parse(f"${text}$", parsing_timeout=None) for text in pair), timeout_seconds=None)
""",
    "dateutil": "import dateutil.parser, dateutil.relativedelta, dateutil.rrule; dateutil.parser.parse('2024-02-03')",
}


def load(packages: list[str]) -> None:
    """Loads the standard modules that this interpreter has, and `packages`; one that cannot be loaded is left out.

    Numbers of any length have a text: time has limits of its own here, which that of 4300 digits does without.
    """
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    for name in [*STANDARD.split(), *LATE.split(), *(f"encodings.{codec}" for codec in CODECS.split())]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for package in packages:
        with contextlib.suppress(Exception):
            exec(WARM_UPS.get(package, f"import {package}"), {})


def names() -> list[str]:
    """Top-level names that can be imported now and after the lock."""
    loaded = {name for name in sys.modules if "." not in name} | set(sys.builtin_module_names)
    return sorted(name for name in loaded if not name.startswith("_") or name == "__future__")

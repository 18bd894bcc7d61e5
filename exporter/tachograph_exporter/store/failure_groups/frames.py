"""The own functions of a stack: what a program's author wrote, without line numbers, paths and libraries.

Reads stacks as Python, Java (and Kotlin, Scala), .NET, JavaScript, Go and Rust print them, in one pass over the lines.
A function stands in the result once, however deep it recurses.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from tachograph_exporter.store.failure_groups.template import VALUE, template_of

MAX_STACK: Final = 20_000
"""Characters of a stack that are read, from its end."""
MAX_FRAMES: Final = 40
_CACHED_LENGTH: Final = 300
"""Characters of a line whose frame is remembered."""

_PYTHON: Final = re.compile(r'File "([^"]*)", line \d+(?:, in (.*))?$')
_PYTHON_STDLIB: Final = re.compile(r"[/\\]lib(?:64)?[/\\]python\d[\d.]*[/\\]|\\[Ll]ib\\|^<frozen |python\d+\.zip")
_INSTALLED: Final = re.compile(r"[/\\](?:site-packages|dist-packages)[/\\]")
_OURS: Final = re.compile(r"[/\\](?:instrumentation[/\\]tachograph|exporter[/\\]tachograph_exporter)[/\\]")
_GENERATED_FILE: Final = re.compile(r"<ipython-input-.*|ipykernel_.*|tmp[a-z0-9_]{8}\w*")
_PLACES: Final = frozenset(("<listcomp>", "<dictcomp>", "<setcomp>"))
"""Functions of their own before Python 3.12 only."""
_AT: Final = re.compile(r"at (?:async )?(?:new )?(\S.*)$")
_JAVA: Final = re.compile(
    r"(?:[\w.@-]*/{1,2})*([\w$.<>-]+)"
    r"\((?:[\w$-]+\.(?:java|kt|scala|groovy|clj)(?::\d+)?|Native Method|Unknown Source|<generated>)\)"
)
_JAVA_LIBRARY: Final = re.compile(
    r"(?:java|javax|jdk|jakarta|sun|com\.sun|kotlin|kotlinx|scala|groovy|clojure|org\.springframework|org\.apache|org\.junit"
    r"|org\.hibernate|org\.jboss|org\.eclipse|org\.postgresql|com\.zaxxer|com\.fasterxml|com\.google|io\.netty|io\.grpc"
    r"|io\.opentelemetry|io\.temporal|io\.micrometer|reactor|rx|io\.reactivex|okhttp3|retrofit2|akka|feign)\."
)
_GENERATED: Final = re.compile(
    r"\$\$(?:Lambda|EnhancerBy\w*|FastClassBy\w*|SpringCGLIB)\$*[\w$/.]*?(?=\.\w+$|$)|\$Proxy\d+|(?<=Accessor)\d+|(?<=>)[db]__\d+(?:_\d+)?"
)
_LAMBDA: Final = re.compile(r"(lambda\$[A-Za-z_]\w*)\$\d+$")
_NET: Final = re.compile(r"([\w.`<>|$+\[\], -]+?)\(([^()]*)\)(?: in (.+):line \d+)?")
_NET_LIBRARY: Final = re.compile(r"(?:System|Microsoft|Npgsql|Newtonsoft|Polly|Grpc|Temporalio)\.")
_JS: Final = re.compile(
    r"(?:(.*?) \()?((?:[a-z][a-z+-]*:|/|[A-Za-z]:\\|\.{0,2}/)[^()]*?|<anonymous>|native)(?::\d+){0,2}\)?"
)
_JS_LIBRARY: Final = re.compile(r"[/\\]node_modules[/\\]|^node:|^internal/|^native$|^<anonymous>$")
_FIREFOX: Final = re.compile(r"([^@\s]*)@(\S+?):\d+(?::\d+)?$")
_HASHED: Final = re.compile(r"[.-][0-9a-f]{6,}(?=\.|$)")
_GO: Final = re.compile(
    r"(?:created by )?([\w./*~%-]+(?:\(\*?[\w.]+\))?[\w.\[\]-]*)\(.*\)$"
    r"|created by ([\w./*()~%-]+)(?: in goroutine \d+)?$"
)
_GO_FILE: Final = re.compile(r"(/\S+\.go|[A-Za-z]:\S+\.go):\d+(?: \+0x[0-9a-f]+)?$")
_GO_LIBRARY: Final = re.compile(r"/pkg/mod/|/vendor/")
_RUST: Final = re.compile(r"\d+: +(?:0x[0-9a-f]+ - )?([\w<&*\[(][^\"]*?)(?:::h[0-9a-f]{16})?$")
_RUST_LIBRARY: Final = re.compile(
    r"<?&?(?:std|core|alloc|backtrace|anyhow|eyre|tokio|futures_\w+|rayon\w*|hyper|tower|tracing)::"
    r"|(?:rust_\w+|__rust_\w+|_*main|_start|__libc_\w+|clone3?|start_thread)$|<unknown>"
)
_RUST_FILE: Final = re.compile(r"at (\S.*\.rs):\d+(?::\d+)?$")
_RUST_FOREIGN: Final = re.compile(r"[/\\]rustc[/\\]|[/\\]rustlib[/\\]|[/\\]\.cargo[/\\]|[/\\]registry[/\\]src[/\\]")
_CAUSED: Final = re.compile(r"(?:Caused by: |Suppressed: |---> )([\w.$]+)(?::\s*(.*))?")
_CHAINED: Final = ("The above exception was the direct cause", "During handling of the above exception")
_ERROR: Final = re.compile(r"([A-Za-z_][\w.<>]*)(?::\s*(.*))?")
_MEMBER: Final = re.compile(r" *\+[-+]*-+ (?:\d+|\.\.\.) -+$")
"""The line before an exception of a group."""
_GROUP: Final = "Exception Group Traceback"
_MARGIN: Final = re.compile(r"(?: *\|(?: |$))+")
_MAX_CAUSE: Final = 300
"""Characters of the message of an exception that caused another one."""


def own_frames(stack: str) -> tuple[str, ...]:
    """The functions of a stack that are not of a library, the innermost last; of libraries only, the innermost.

    The exceptions that caused the last one, or are in a group, are among them, marked with an exclamation mark: their
    types, and the templates of their messages. In which order those of a group were raised does not matter. Empty: the
    stack is in none of the known forms.
    """
    own: dict[str, None] = {}
    library: list[str] = []
    members: list[dict[str, None]] = []
    current = own
    is_python = False
    error: re.Match[str] | None = None
    of_group: re.Match[str] | None = None
    go_function = rust_function = ""
    after_frames = False
    for raw in stack[-MAX_STACK:].splitlines():
        if (margin := _MARGIN.match(raw)) is not None:
            if current is own and not members and _GROUP not in stack:
                members.append(current := {})  # The line before it is cut off.
            raw = raw[margin.end() :]
        line = raw.strip()
        if not line:
            continue
        if rust_function:
            place = _RUST_FILE.match(line)
            is_foreign = _RUST_LIBRARY.match(rust_function) or (place and _RUST_FOREIGN.search(place.group(1)))
            _add(rust_function, bool(is_foreign), own, library, innermost_first=True)
            rust_function = ""
            if place is not None:
                continue
        if line.startswith('File "') and (frame := _python_frame(line)) is not None:
            is_python = after_frames = True
            name, is_of_library = frame
            if name is not None:
                _add(name, is_of_library, current, library, innermost_first=False)
        elif line.startswith(_CHAINED) and error:
            _add_error(error, current)
            error = None
            if margin is None and members:
                _add_members(members, own)
                _add_error(of_group, own)
                members, current, of_group = [], own, None
        elif is_python and line[0] == "+" and _MEMBER.match(raw):
            if members:
                _add_error(error, current)
            else:
                of_group = error
            members.append(current := {})
            error, after_frames = None, True
        elif after_frames and is_python and raw[0] not in " \t" and (match := _ERROR.fullmatch(line)):
            error = match if margin is not None or not members else None
            after_frames = False
        elif match := _CAUSED.match(line):
            _add_error(match, own)
        elif line.startswith("at ") and not _RUST_FILE.match(line) and (match := _AT.match(line)):
            _at(match.group(1), own, library)
        elif go_function and (match := _GO_FILE.match(line)):
            is_library = _GO_LIBRARY.search(match.group(1)) or not _is_own_go(go_function)
            _add(go_function, bool(is_library), own, library, innermost_first=True)
            go_function = ""
        elif not is_python and line[0].isdigit() and (match := _RUST.match(line)) and "::" in line:
            rust_function = match.group(1)
        elif not is_python and "@" in line and (match := _FIREFOX.match(line)):
            _javascript(match.group(1), match.group(2), own, library)
        elif not is_python and line.endswith(")") and raw[:1] not in (" ", "\t") and (match := _GO.match(line)):
            go_function = match.group(1) or match.group(2)
    if rust_function:
        _add(rust_function, _RUST_LIBRARY.match(rust_function) is not None, own, library, innermost_first=True)
    if members:
        _add_error(error, current)
        _add_members(members, own)
    frames = list(own)
    if not any(not frame.startswith("!") for frame in frames) and library:
        frames.append(f"({library[-1] if is_python else library[0]})")
    # Python alone prints the innermost one last.
    return tuple((frames if is_python else frames[::-1])[-MAX_FRAMES:])


def _add_error(error: re.Match[str] | None, own: dict[str, None]) -> None:
    """Add an exception that is not the last one: its type, and its message if that says more than values."""
    if error is not None:
        template = template_of((error.group(2) or "")[:_MAX_CAUSE])
        own[f"!{error.group(1)}" if template in ("", VALUE) else f"!{error.group(1)}: {template}"] = None


def _add_members(members: list[dict[str, None]], own: dict[str, None]) -> None:
    for entries in sorted(map(tuple, members)):
        own.update(dict.fromkeys(entry for entry in entries if entry not in own))


def _add(name: str, is_library: bool, own: dict[str, None], library: list[str], *, innermost_first: bool) -> None:
    if is_library:
        if not innermost_first or not library:
            library.append(name)
    else:
        own.setdefault(name)


def _python_frame(line: str) -> tuple[str | None, bool] | None:
    """(name, whether it is of a library) of a frame of Python; no name: it is left out; None: it is no frame."""
    # The same lines come with every failure of one cause.
    return _short_python_frame(line) if len(line) <= _CACHED_LENGTH else _read_python_frame(line)


def _read_python_frame(line: str) -> tuple[str | None, bool] | None:
    match = _PYTHON.match(line)
    if match is None:
        return None
    path, function = match.group(1), match.group(2) or ""
    if function in _PLACES or (not function and path.startswith("<frozen")):
        return None, False
    parts = path.replace("\\", "/").rsplit("/", 2)
    stem = parts[-1].rpartition(".")[0] or parts[-1]
    if stem in ("__init__", "__main__") and len(parts) > 1:
        stem = parts[-2]
    if _GENERATED_FILE.fullmatch(stem) or (len(parts) > 1 and _GENERATED_FILE.fullmatch(parts[-2])):
        stem = "<generated>"
    is_library = bool(_INSTALLED.search(path) or _PYTHON_STDLIB.search(path) or _OURS.search(path))
    return f"{stem}.{function}" if function else stem, is_library


_short_python_frame: Final = functools.lru_cache(4_096)(_read_python_frame)


def _at(rest: str, own: dict[str, None], library: list[str]) -> None:
    """A frame as Java, .NET and V8 write it: after the word at."""
    if match := _JAVA.match(rest):
        name = _LAMBDA.sub(r"\1", _GENERATED.sub("", match.group(1)))
        _add(name, bool(_JAVA_LIBRARY.match(name)), own, library, innermost_first=True)
    elif (match := _NET.fullmatch(rest)) and " (" not in rest.partition(")")[0]:
        name = _GENERATED.sub("", match.group(1))
        _add(name, bool(_NET_LIBRARY.match(name)), own, library, innermost_first=True)
    elif match := _JS.fullmatch(rest):
        _javascript(match.group(1) or "", match.group(2), own, library)


def _javascript(function: str, path: str, own: dict[str, None], library: list[str]) -> None:
    file = path.partition("?")[0].replace("\\", "/").rpartition("/")[2]
    stem = _HASHED.sub("", file.rpartition(".")[0] or file)
    function = function.partition(" [as ")[0]
    is_library = bool(_JS_LIBRARY.search(path))
    _add(f"{stem}.{function or '<anonymous>'}", is_library, own, library, innermost_first=True)


def _is_own_go(function: str) -> bool:
    """Whether a function is not of Go's standard library, whose import paths have no dot in their first part."""
    first, slash, _ = function.partition("/")
    if not slash:
        return first.startswith("main.")
    return "." in first

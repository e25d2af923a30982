"""The two programs of a test: one runs the code that a model wrote, the other runs tests that call it.

Each is a process of its own in isolation (`fedpeft.machine.sandbox`), so the code can't read the tests, change them or
report in their place. Calls and results cross as JSON of plain values: None, bool, int, float, str, bytes, list,
tuple, set, range, dict and its views, and iterators, which are read to their end. An error crosses by the name of its
builtin type.

This file is sent into the isolation as text, with a call of one of its functions at the end.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from typing import Any

LARGEST = 1_000_000
"""Most bytes of a call or a result."""

PASSED = b"passed"

READING, WRITING, VERDICT = 3, 4, 5
"""File descriptors."""


DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
    "range": lambda held: range(*held),
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "dict_values": lambda items: dict(enumerate(items)).values(),
    "dict_items": lambda items: dict(items).items(),
}
"""What makes a value of its decoded items, by type."""


def encode(value: Any) -> Any:
    """Return a plain value as JSON.

    Raises:
        TypeError: it is not plain.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    for base in (tuple, set, frozenset):
        if isinstance(value, base):
            return {base.__name__: [encode(item) for item in value]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    kind = "iterator" if hasattr(value, "__next__") else type(value).__name__
    if kind in DECODERS:
        return {kind: [encode(item) for item in value]}
    raise TypeError(f"a {type(value).__name__} is not a plain value")


def decode(value: Any) -> Any:
    """Return the value that `encode` encoded."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in held}
    if kind == "bytes":
        return bytes.fromhex(held)
    return DECODERS[kind]([decode(item) for item in held])


def send(value: Any) -> None:
    """Write a value to the other program."""
    data = json.dumps(value).encode() + b"\n"
    if len(data) > LARGEST:
        raise ValueError("the value is too large")
    while data:
        data = data[os.write(WRITING, data) :]


def receive(stream: Any) -> Any:
    """Return the next value of the other program.

    Raises:
        EOFError: it has ended.
        ValueError: it is too large, or no JSON.
    """
    data = stream.readline(LARGEST + 1)
    if not data.endswith(b"\n"):
        raise EOFError
    return json.loads(data)


def answer_calls() -> None:
    """Run /code.py, and answer calls of its functions until the other program ends."""
    with open("/code.py", encoding="utf-8") as file:
        names: dict[str, Any] = {"__name__": "answer"}
        exec(compile(file.read(), "answer", "exec"), names)
    with os.fdopen(READING, "rb", closefd=False) as stream:
        while True:
            name, arguments, named = receive(stream)
            try:
                result = names[name](*decode(arguments), **decode(named))
                reply = {"value": encode(result)}
            except Exception as error:
                reply = {"error": type(error).__name__, "text": str(error)[:1000]}
            send(reply)


def build_error(name: str, text: str) -> Exception:
    """Return an error of a builtin type, or a RuntimeError for other types.

    The end of an iteration is one, too: raised within `all(map(...))`, it would end the tests as if they had passed.
    """
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, StopIteration):
        try:
            return kind(text)
        except TypeError:  # such as UnicodeDecodeError, which needs more than a text
            pass
    return RuntimeError(f"{name}: {text}")


def call_far(stream: Any, name: str, calls: list[str]) -> Callable[..., Any]:
    """Return a function that calls the one called `name` in the other program, and adds the name to `calls`."""

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        send([name, encode(list(arguments)), encode(named)])
        reply = receive(stream)
        if "error" not in reply:
            return decode(reply["value"])
        raise build_error(str(reply["error"]), str(reply["text"]))

    return call


def judge() -> None:
    """Run /tests.py, whose calls of the functions in /names.json go to the other program; report if all is well.

    Tests that never make a call, such as uncalled test functions, show nothing.
    """
    with open("/names.json", encoding="utf-8") as file:
        called = json.load(file)
    with open("/tests.py", encoding="utf-8") as file:
        program = compile(file.read(), "tests", "exec")
    calls: list[str] = []
    with os.fdopen(READING, "rb", closefd=False) as stream:
        names = {"__name__": "tests", **{name: call_far(stream, name, calls) for name in called}}
        exec(program, names)
    if calls:
        os.write(VERDICT, PASSED)

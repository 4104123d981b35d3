"""Seeded mutations of bytes, text and parsed trees. Each takes a random generator and returns the mutated content."""

from __future__ import annotations

import copy
import functools
import json
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

# Values at which sizes, offsets, counts and dimensions overflow, or mean something else.
INTEGERS = (0, 1, 2, 3, 7, 16, 63, 64, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1)
INTEGERS += (2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, -1, -2, -128, -(2**31), -(2**63))
WIDTHS = (1, 2, 4, 8)
# Cells of tables, and scalars of JSON and YAML.
CELLS = (
    "",
    '""',
    '"',
    '"""',
    "\x00",
    "-1",
    "0",
    "1e999",
    "-1e999",
    "NaN",
    "nan",
    "inf",
    "None",
    "NULL",
    "\\N",
    " ",
    "\t",
)
CELLS += (
    "9" * 40,
    "-" + "9" * 25,
    "0.0000000000000000000000001",
    "1,5",
    "1.5.2",
    "0x10",
    "१२",
    "x" * 70_000,
    "é",
    "\u202e",
)
CELLS += (
    "2020-13-45",
    "0000-00-00",
    "9999-12-31 23:59:60",
    "=1+1",
    "<b>",
    "${x}",
    "../../x",
    "/",
    "\r",
    "\n",
    "\ufeff",
    "\ud7ff",
)
SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**70,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
)
SCALARS += (
    "x",
    "\x00",
    "a" * 20_000,
    "..",
    "/",
    "*",
    "[",
    "({",
    [],
    {},
    [[]],
    {"": None},
    [None],
    {"x": {"x": []}},
    ["x"] * 500,
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")
LEAST_DEPTH, MOST_DEPTH = 40, 3000


def _block(rng: random.Random, n: int, most: int = 64) -> tuple[int, int]:
    """Start and stop of a random block, usually a short one."""
    start = rng.randrange(n)
    length = rng.randint(1, max(1, min(most, n - start)) if rng.random() < 0.8 else n - start)
    return start, start + length


def _flip_bits(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set_bytes(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 10))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[
        : rng.choice((0, 1, 2, len(data) - 1, len(data) // 2, rng.randrange(len(data)), rng.randrange(len(data))))
    ]


def _remove(rng: random.Random, data: bytes) -> bytes:
    a, b = _block(rng, len(data))
    return data[:a] + data[b:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    a, b = _block(rng, len(data))
    return data[:b] + data[a:b] * rng.choice((1, 1, 2, 30)) + data[b:]


def _splice(rng: random.Random, data: bytes) -> bytes:
    """Copy a block of the file over another place of it."""
    a, b = _block(rng, len(data))
    at = rng.randrange(len(data))
    return data[:at] + data[a:b] + data[at + b - a :]


def _swap(rng: random.Random, data: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _blank(rng: random.Random, data: bytes) -> bytes:
    a, b = _block(rng, len(data), 512)
    return data[:a] + bytes([rng.choice((0, 0xFF, 0x20))]) * (b - a) + data[b:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 16, 300))) + data[at:]


def _integer(rng: random.Random, data: bytes) -> bytes:
    """Write a special integer at a random offset, at the beginning or the end rather than in the middle."""
    width = rng.choice(WIDTHS)
    value = (rng.choice(INTEGERS) % 256**width).to_bytes(width, rng.choice(("little", "big")))
    near = min(len(data), 400)
    at = rng.choice((rng.randrange(near), len(data) - 1 - rng.randrange(near), rng.randrange(len(data))))
    return data[:at] + value + data[at + width :]


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\x00", b"\n", b"\xff" * 8, data, rng.randbytes(50), b"\x00" * 4096))


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    f.__name__.strip("_"): f
    for f in (
        *(_flip_bits, _set_bytes, _truncate, _remove, _repeat, _splice, _swap, _blank, _insert, _integer, _integer),
        _append,
    )
}


def mutate_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """One mutation of any file, with its name."""
    if not data:
        return "insert", rng.randbytes(16)
    name = rng.choice(list(BYTES))
    return name, BYTES[name](rng, data)


def _separator(line: str) -> str:
    return max((",", "\t", ";", " "), key=line.count)


def mutate_lines(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """One mutation of a delimited text file: a cell, a line, a column, the header, or the encoding."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    if not lines:
        return mutate_bytes(rng, data)
    kind = rng.choice(("cell", "cell", "cell", "header", "line", "line", "column", "separator", "encoding", "bytes"))
    at = rng.randrange(len(lines)) if kind != "header" else 0
    body = lines[at].rstrip("\r\n")
    end, separator = lines[at][len(body) :], _separator(lines[0])
    cells = body.split(separator)
    if kind in ("cell", "header"):
        cells[rng.randrange(len(cells))] = rng.choice((rng.choice(CELLS), rng.choice(cells), rng.choice(cells) + "1"))
        lines[at] = separator.join(cells) + end
    elif kind == "line":
        action = rng.choice(("remove", "repeat", "repeat", "swap", "shorten", "lengthen", "only"))
        kind = f"line {action}"
        if action == "remove":
            del lines[at]
        elif action == "repeat":
            lines.insert(at, lines[at])
        elif action == "swap":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif action == "only":
            lines = lines[: rng.choice((1, 2))]
        else:
            cells = cells[:-1] if action == "shorten" else [*cells, "1"]
            lines[at] = separator.join(cells) + end
    elif kind == "column":
        n = rng.randrange(len(cells))
        action = rng.choice(("remove", "repeat", "fill"))
        kind, filler = f"column {action}", rng.choice(CELLS)
        for i, line in enumerate(lines):
            row = line.rstrip("\r\n").split(separator)
            if n < len(row):
                row[n : n + 1] = {"remove": [], "repeat": [row[n]] * 2, "fill": [filler if i else row[n]]}[action]
            lines[i] = separator.join(row) + "\n"
    elif kind == "separator":
        new = rng.choice((",", ";", "\t", " ", "|", ""))
        lines = [line.replace(separator, new) for line in lines]
    elif kind == "encoding":
        return _encoded(rng, "".join(lines))
    else:
        return mutate_bytes(rng, data)
    return kind, "".join(lines).encode("utf-8", "surrogatepass")


def _encoded(rng: random.Random, text: str) -> tuple[str, bytes]:
    if rng.random() < 0.7:
        encoding = rng.choice(ENCODINGS)
        return f"encoding {encoding}", text.encode(encoding, "surrogatepass")
    data = text.encode()
    at = rng.randrange(len(data) + 1)
    return "encoding bytes", data[:at] + rng.choice((b"\xe9", b"\xff\xfe", b"\xed\xa0\x80", b"\x80", b"\x00")) + data[
        at:
    ]


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _nested(rng: random.Random) -> Any:
    node: Any = None
    for _ in range(rng.choice((LEAST_DEPTH, 900, MOST_DEPTH))):
        node = [node] if rng.random() < 0.5 else {"x": node}
    return node


def mutate_tree(rng: random.Random, root: Any) -> tuple[str, Any]:
    """A copy of a JSON-like tree with one node replaced, removed, renamed or moved."""
    tree: dict[str, Any] = {"root": copy.deepcopy(root)}
    *above, last = rng.choice(list(_places(tree)))
    parent = functools.reduce(operator.getitem, above, tree)
    kind = rng.choice(("value", "value", "value", "near", "near", "remove", "rename", "move", "deep"))
    if kind == "near" and not isinstance(parent[last], bool | int | float | str):
        kind = "value"
    if kind == "value":
        parent[last] = rng.choice(SCALARS)
    elif kind == "near":
        parent[last] = _near(rng, parent[last])
    elif kind == "remove" and parent is not tree:
        del parent[last]
    elif kind == "rename" and isinstance(parent, dict) and parent is not tree:
        parent[rng.choice((f"{last}x", "", "..", "x/y", 0 if isinstance(last, str) else "x"))] = parent.pop(last)
    elif kind == "move":
        *other, key = rng.choice(list(_places({"root": root})))
        parent[last] = copy.deepcopy(functools.reduce(operator.getitem, other, {"root": root})[key])
    else:
        kind, parent[last] = "deep", _nested(rng)
    return f"tree {kind}", tree["root"]


def _near(rng: random.Random, value: bool | int | float | str) -> Any:
    """A value that is nearly the given one."""
    if isinstance(value, bool):
        return rng.choice((not value, int(value), str(value)))
    if isinstance(value, int | float):
        return rng.choice((value + 1, -value, float(value), str(value), value * 10**9, [value], value + 0.5))
    return rng.choice(
        (value + "x", value[:-1], value.upper(), value * 3, [value], f"../{value}", f"/{value}", value + "\x00")
    )


def mutate_json(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """One mutation of a JSON file, of its tree or of its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data)
    kind, tree = mutate_tree(rng, json.loads(data))
    try:
        return kind, json.dumps(tree).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return "tree deep", b"[" * MOST_DEPTH + b"]" * MOST_DEPTH


YAML_LINES = (
    "&a [*a]",
    "!!python/object:os.system x",
    "a: &a [x, x]\nb: [*a, *a]",
    "? {a: 1}\n: 2",
    "<<: {x: 1}",
    "\t- x",
)
YAML_LINES += (
    "x: !!binary ===",
    "2001-01-01: 1",
    "- - - - x",
    "x: 1:2:3",
    "%TAG ! x",
    "---\nx: 1",
    "x: 0x" + "f" * 5000,
)


def mutate_yaml(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """One mutation of a YAML file, of its tree, of its lines or of its bytes."""
    chance = rng.random()
    if chance < 0.15:
        return mutate_bytes(rng, data)
    if chance < 0.3:
        lines = data.decode().splitlines()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(YAML_LINES))
        return "yaml line", "\n".join(lines).encode()
    kind, tree = mutate_tree(rng, yaml.safe_load(data))
    if kind == "tree deep":
        return kind, b"x: " + b"[" * 500 + b"]" * 500
    try:
        return kind, yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode("utf-8", "replace")
    except (ValueError, RecursionError, yaml.YAMLError):
        return mutate_bytes(rng, data)

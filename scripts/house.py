#!/usr/bin/env python3
"""Measure the complexity of the source code, almost independently of its formatting.

    house.py [FOLDER] [--rooms]        default: src/maskwise; exit code 1 if a goal is missed

The number of nodes of the syntax tree, without docstrings, measures how much code there is to read.
The number of nodes per code line measures how dense the code is. Almost all figures are absolute
numbers. If the code is spread over more lines, only its density improves.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

AT_MOST = {
    "files": 135,
    "nodes": 220_000,  # 200,000 is the aim
    "nodes_a_code_line": 9.0,
    "ternaries": 490,
    "comprehensions": 890,
    "nested_comprehensions": 45,
    "walruses": 33,
    "tuple_assignments": 180,
    "any": 200,
    "getattr3": 12,
    "fmt_skip": 0,
    "widest": 100,
    "longest_file": 450,
}
AT_LEAST = {"comment_lines_percent": 3.0}
FIGURES = (
    "files",
    "lines",
    "code",
    "nodes",
    "ternaries",
    "comprehensions",
    "nested_comprehensions",
    "walruses",
    "tuple_assignments",
    "any",
    "getattr3",
    "fmt_skip",
)
ANCHORS = """
anchors, same measure             nanochat datatrove equinox sentence-transformers torchtune
nodes (thousand)                        35       107      60          138               160
nodes a code line                      9.1       6.5     6.7          6.9               5.3
ternaries per 1,000 code lines          15        12       7            8                14
comprehensions                          20        14      10           19                 7
nested comprehensions                  0.3       1.1       0          2.4               0.2
walruses                                 0       0.5     0.1          1.3               0.1
comment lines, percent                12.6       3.4     5.0          3.0               6.2
""".strip()
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def is_docstring(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_nested(comprehension):
    inner = [node for node in ast.walk(comprehension) if isinstance(node, COMPREHENSIONS)]
    return len(comprehension.generators) > 1 or len(inner) > 1


def names_of(node):
    """Yield the names of the figures, other than "nodes", that count this node."""
    if isinstance(node, ast.IfExp):
        yield "ternaries"
    elif isinstance(node, ast.NamedExpr):
        yield "walruses"
    elif isinstance(node, COMPREHENSIONS):
        yield "comprehensions"
        if is_nested(node):
            yield "nested_comprehensions"
    elif isinstance(node, ast.Assign):
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield "tuple_assignments"
    elif isinstance(node, ast.Name) and node.id == "Any":
        yield "any"
    elif is_getattr(node) and len(node.args) == 3:
        yield "getattr3"


def is_getattr(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr"


def counts_of(path):
    """Return the counts of one file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    counts = Counter(files=1, lines=len(lines))
    docstring_lines = set()
    for node in ast.walk(ast.parse(text)):
        counts["nodes"] += 1
        counts.update(names_of(node))
        if is_docstring(node):
            counts["nodes"] -= 2
            docstring_lines.update(range(node.lineno, node.end_lineno + 1))
    comment_lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        number = token.start[0]
        if token.type == tokenize.COMMENT and lines[number - 1].lstrip().startswith("#"):
            comment_lines.add(number)
    blank_lines = {number for number, line in enumerate(lines, 1) if not line.strip()}
    counts["comment_lines"] = len(comment_lines)
    counts["fmt_skip"] = len(re.findall(r"# fmt: ?(?:skip|off)", text))
    counts["code"] = len(lines) - len(docstring_lines | comment_lines | blank_lines)
    counts["widest"] = max(map(len, lines), default=0)
    return counts


def measure(root):
    """Return all figures of a folder, and the counts of its subfolders, keyed by name."""
    rooms = defaultdict(Counter)
    longest = widest = 0
    for path in sorted(root.rglob("*.py")):
        counts = counts_of(path)
        longest = max(longest, counts["lines"])
        widest = max(widest, counts.pop("widest"))
        part = path.relative_to(root).parts
        rooms[part[0] if len(part) > 1 else "(top)"] += counts
    total = sum(rooms.values(), Counter())
    figures = {name: total[name] for name in FIGURES}
    figures["nodes_a_code_line"] = round(total["nodes"] / max(1, total["code"]), 1)
    figures |= {"widest": widest, "longest_file": longest}
    comments = 100 * total["comment_lines"] / max(1, total["lines"])
    figures["comment_lines_percent"] = round(comments, 1)
    return figures, rooms


def main():
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    figures, rooms = measure(Path(folders[0] if folders else "src/maskwise"))
    missed = []
    for name, value in figures.items():
        print(f"{name:24s}{value:>10g}")
        if value > AT_MOST.get(name, value):
            missed.append(f"{name} {value:g} (at most {AT_MOST[name]:g} wanted)")
        if value < AT_LEAST.get(name, value):
            missed.append(f"{name} {value:g} (at least {AT_LEAST[name]:g} wanted)")
    if "--rooms" in sys.argv:
        for name, counts in sorted(rooms.items(), key=lambda item: -item[1]["nodes"]):
            density = counts["nodes"] / max(1, counts["code"])
            print(
                f"  {name:14s}{counts['files']:>4d} files{counts['lines']:>7d} lines"
                f"{counts['nodes']:>8d} nodes{density:>6.1f} a code line"
            )
    print(ANCHORS)
    print("; ".join(missed) or "in shape")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

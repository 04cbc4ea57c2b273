#!/usr/bin/env python3
"""Measure the complexity of the source, in figures that formatting can hardly change.

    house.py [FOLDER] [--rooms]        default: src/maskwise; exit code 1 if a goal is missed

Nodes of the syntax tree, without docstrings, count what there is to understand. Nodes per code line
count how much is on a line. Counts are absolute, so spreading code over more lines improves only
the density.
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
    inner = (node for node in ast.walk(comprehension) if node is not comprehension)
    return len(comprehension.generators) > 1 or any(
        isinstance(node, COMPREHENSIONS) for node in inner
    )


def counts_of(path):
    """Counts of one file, and its widest line."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    counts = Counter(files=1, lines=len(lines))
    docstring_lines = set()
    for node in ast.walk(ast.parse(text)):
        counts["nodes"] += 1
        if is_docstring(node):
            counts["nodes"] -= 2
            docstring_lines |= set(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.IfExp):
            counts["ternaries"] += 1
        elif isinstance(node, ast.NamedExpr):
            counts["walruses"] += 1
        elif isinstance(node, COMPREHENSIONS):
            counts["comprehensions"] += 1
            counts["nested_comprehensions"] += is_nested(node)
        elif isinstance(node, ast.Assign):
            counts["tuple_assignments"] += isinstance(node.targets[0], ast.Tuple) and isinstance(
                node.value, ast.Tuple
            )
        elif isinstance(node, ast.Name):
            counts["any"] += node.id == "Any"
        elif isinstance(node, ast.Call):
            counts["getattr3"] += getattr(node.func, "id", "") == "getattr" and len(node.args) == 3
    comment_lines = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1].lstrip().startswith("#")
    }
    counts["comment_lines"] = len(comment_lines)
    counts["fmt_skip"] = len(re.findall(r"# fmt: ?(?:skip|off)", text))
    other = docstring_lines | comment_lines
    counts["code"] = sum(
        1 for number, line in enumerate(lines, 1) if line.strip() and number not in other
    )
    return counts, max(map(len, lines), default=0)


def measure(root):
    """Every figure of a folder, and the counts of its subfolders by name."""
    total, rooms, longest, widest = Counter(), defaultdict(Counter), 0, 0
    for path in sorted(root.rglob("*.py")):
        counts, width = counts_of(path)
        part = path.relative_to(root).parts
        rooms[part[0] if len(part) > 1 else "(top)"] += counts
        total += counts
        longest = max(longest, counts["lines"])
        widest = max(widest, width)
    figures = {name: total[name] for name in ("files", "lines", "code", "nodes")}
    figures["nodes_a_code_line"] = round(total["nodes"] / max(1, total["code"]), 1)
    for name in (
        "ternaries",
        "comprehensions",
        "nested_comprehensions",
        "walruses",
        "tuple_assignments",
    ):
        figures[name] = total[name]
    figures |= {"any": total["any"], "getattr3": total["getattr3"], "fmt_skip": total["fmt_skip"]}
    figures |= {"widest": widest, "longest_file": longest}
    figures["comment_lines_percent"] = round(
        100 * total["comment_lines"] / max(1, total["lines"]), 1
    )
    return figures, rooms


def main():
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    root = Path(folders[0] if folders else "src/maskwise")
    figures, rooms = measure(root)
    missed = []
    for name, value in figures.items():
        line = f"{name:24s}{value:>10g}"
        if name in AT_MOST or name in AT_LEAST:
            goal = AT_MOST.get(name, AT_LEAST.get(name))
            short = value > goal if name in AT_MOST else value < goal
            line += (
                f"   goal {'at most' if name in AT_MOST else 'at least'} "
                f"{goal:g}{'   missed' if short else ''}"
            )
            missed += [f"{name} {value:g} ({goal:g} wanted)"] * short
        print(line)
    if "--rooms" in sys.argv:
        for name, counts in sorted(rooms.items(), key=lambda item: -item[1]["nodes"]):
            density = counts["nodes"] / max(1, counts["code"])
            sizes = (
                f"{counts['files']:>4d} files{counts['lines']:>7d} lines{counts['nodes']:>8d} nodes"
            )
            print(f"  {name:14s}{sizes}{density:>6.1f} a code line")
    print(ANCHORS)
    print("; ".join(missed) or "in shape")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

"""Results as Markdown and JSON, and their place in benches/README.md."""

import json
import os
import platform
import re

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


def markdown(columns, rows):
    """A table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(columns) + " |",
             "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|"]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(value):
    """A number with about three digits; a dash for nothing."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 \
        else f"{value:.2f}"


def ratio(a, b):
    """How many times b is in a; nothing if that says nothing."""
    return a / b if a is not None and b else None


def machine():
    """Cores, memory and kernel in a few words; no names."""
    with open("/proc/meminfo", encoding="utf-8") as meminfo:
        memory = int(meminfo.readline().split()[1]) / (1 << 20)
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def publish(name, caption, text, data, options):
    """Prints the table and the JSON; with --write also puts the table between its markers."""
    block = f"{caption}\n\n{text}"
    print(block + "\n", flush=True)
    line = json.dumps({"table": name, "caption": caption, **data})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(line + "\n")
    else:
        print(line, flush=True)
    if options.write:
        write(name, block)


def write(name, block, path=README):
    """Replaces what stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`."""
    begin, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    text, found = re.subn(pattern, lambda _: f"{begin}\n{block}\n{end}", text, flags=re.DOTALL)
    if found != 1:
        raise RuntimeError(f"{path} has {found} places for the table {name}, want one")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)

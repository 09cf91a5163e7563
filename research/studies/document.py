"""A report's contents, said once and written as Markdown, HTML and LaTeX.

A document is a list of blocks. Text may hold `code` and **bold**; everything else in it is shown as it stands.
"""

from __future__ import annotations

import base64
import html
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple


def shown(value: Any) -> str:
  """A value of a config as a person writes it."""
  value = value.item() if hasattr(value, "item") else value  # of numpy
  return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


class Heading(NamedTuple):
  text: str
  level: int = 2


class Text(NamedTuple):
  text: str


class Items(NamedTuple):
  items: Sequence[str]


class Table(NamedTuple):
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  left: int = 1  # so many columns of words, the others hold numbers
  note: str = ""


class Figure(NamedTuple):
  path: str  # relative to the document
  caption: str


class Code(NamedTuple):
  text: str


class Fold(NamedTuple):
  """A chapter that is closed until somebody opens it, where the format can do so."""

  title: str
  blocks: Sequence["Block"]


Block = Heading | Text | Items | Table | Figure | Code | Fold


# --- numbers -----------------------------------------------------------------------------------------------------------------


def fixed(value: float, digits: int, sign: bool = False) -> str:
  """So many digits after the point, with a proper minus; an en dash for what is not known."""
  if not math.isfinite(value):
    return "–"
  text = f"{value:{'+' if sign else ''}.{digits}f}"
  return (text[1:] if sign and float(text) == 0 else text).replace("-", "" if float(text) == 0 else "−")


def range_of(low: float, high: float, digits: int) -> str:
  return f"{fixed(low, digits)} … {fixed(high, digits)}" if math.isfinite(low) else "–"


def amount(value: float) -> str:
  """A large number in four digits and a prefix: 1.234 M."""
  if not math.isfinite(value):
    return "–"
  if abs(value) < 1e4:
    return f"{value:,.4g}" if value % 1 else f"{value:,.0f}"
  power = min(8, int(math.log10(abs(value)) // 3))
  if float(f"{value / 1000**power:.4g}") >= 1000 and power < 8:
    power += 1
  return f"{value / 1000**power:.4g} {' kMGTPEZY'[power]}"


def probability(p: float) -> str:
  """Two digits, or as many as it takes to see on which side of 0.05 it lies."""
  if not math.isfinite(p) or p < 1e-4:
    return "< 0.0001" if math.isfinite(p) else "–"
  return next(text for digits in range(2, 18) if ((float(text := f"{p:.{digits}g}") < 0.05) == (p < 0.05)))


# --- Markdown ----------------------------------------------------------------------------------------------------------------


def to_markdown(blocks: Sequence[Block]) -> str:
  return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
  match block:
    case Heading(text, level):
      return "#" * level + " " + text
    case Text(text):
      return text
    case Items(items):
      return "\n".join("- " + item for item in items)
    case Table(head, rows, left, note):
      row = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
      lines = [row(head), row(["---" if i < left else "---:" for i in range(len(head))]), *map(row, rows)]
      return "\n".join(lines) + (f"\n\n{note}" if note else "")
    case Figure(path, caption):
      return f"![{re.sub('[`*]', '', caption)}]({path})\n\n{caption}"
    case Code(text):
      return f"```text\n{text}\n```"
    case Fold(title, inner):
      return "\n\n".join([f"## {title}", *map(_markdown, inner)])


# --- HTML --------------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd } h3 { font-size: 1rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top } th { border-bottom: 2px solid #888 }
.n { text-align: right; white-space: nowrap } code { font-size: .9em; background: #f3f3f3; padding: .05em .25em; border-radius: 3px }
pre { overflow-x: auto; background: #f3f3f3; padding: .6rem; font-size: .8rem; line-height: 1.4 } figure { margin: 1.2rem 0; overflow-x: auto } img { max-width: 100%; min-width: 30rem; height: auto }
figcaption, .note { font-size: .88rem; color: #555 } summary { font-size: 1.2rem; font-weight: bold; cursor: pointer } details { margin-top: 1.5rem }
"""


def to_html(blocks: Sequence[Block], title: str, folder: str) -> str:
  """One file that needs no other: pictures, read from below `folder`, are part of it."""
  body = "\n".join(_html(block, folder) for block in blocks)
  return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
          f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n")  # fmt: skip


def _inline(text: str) -> str:
  parts = re.split(r"`([^`]*)`", text)
  plain = lambda part: re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(part))
  joined = "".join(f"\0{i}\0" if i % 2 else part for i, part in enumerate(parts))  # bold may hold code
  return re.sub(r"\0(\d+)\0", lambda match: f"<code>{html.escape(parts[int(match[1])])}</code>", plain(joined))


def _html(block: Block, folder: str) -> str:
  match block:
    case Heading(text, level):
      return f"<h{level}>{_inline(text)}</h{level}>"
    case Text(text):
      return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n"))
    case Items(items):
      return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    case Table(head, rows, left, note):
      cell = lambda tag, i, text: f"<{tag}>{_inline(text)}</{tag}>" if i < left else f'<{tag} class="n">{_inline(text)}</{tag}>'
      row = lambda tag, cells: "<tr>" + "".join(cell(tag, i, text) for i, text in enumerate(cells)) + "</tr>"
      lines = ['<div class="scroll"><table>', row("th", head), *(row("td", cells) for cells in rows), "</table></div>"]
      return "\n".join(lines) + (f'\n<p class="note">{_inline(note)}</p>' if note else "")
    case Figure(path, caption):
      with open(os.path.join(folder, path), "rb") as file:
        data = base64.b64encode(file.read()).decode()
      words = html.escape(re.sub("[`*]", "", caption))
      return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{_inline(caption)}</figcaption></figure>'
    case Code(text):
      return f"<pre>{html.escape(text)}</pre>"
    case Fold(title, inner):
      return f"<details><summary>{_inline(title)}</summary>\n" + "\n".join(_html(part, folder) for part in inner) + "\n</details>"


# --- LaTeX -------------------------------------------------------------------------------------------------------------------

_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "<": "$<$", ">": "$>$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "·": r"$\cdot$", "–": "--", "…": r"\ldots{}", "≥": r"$\geq$", "≤": r"$\leq$"}  # fmt: skip


def to_latex(table: Table) -> str:
  """A tabular for \\input, in the style of booktabs; the note is a comment above it."""
  cell = lambda text: re.sub(r"`([^`]*)`", r"\1", "".join(_LATEX.get(c, c) for c in text.replace("**", "")))
  row = lambda cells: " & ".join(map(cell, cells)) + r" \\"
  columns = "l" * table.left + "r" * (len(table.head) - table.left)
  return "\n".join(["% needs \\usepackage{booktabs}", *(f"% {line}" for line in table.note.splitlines()), rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
                    row(table.head), r"\midrule", *map(row, table.rows), r"\bottomrule", r"\end{tabular}", ""])  # fmt: skip

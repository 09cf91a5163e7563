"""Where the sentences of a text end, by rule.

A sentence ends after `.`, `!`, `?` or `…` (and closing quotes and brackets) where white space and something other than a small letter follow,
unless the full stop belongs to a common English abbreviation or an initial; after the full-width marks of Chinese and Japanese; and at a
blank line. Put together, the sentences are the text: white space leads the sentence that follows it.
"""

from __future__ import annotations

import re

ABBREVIATIONS = re.compile(
    "mr|mrs|ms|dr|prof|st|messrs|mme|mlle|rev|hon|capt|col|gen|lt|sgt|maj|gov|sen|rep|jr|sr|vs|e\\.g|i\\.e|cf|viz|vol|pp|fig|eq|al|inc|ltd|co|corp|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|[ap]\\.m|u\\.[sk]|ph\\.d|approx|dept|est", re.IGNORECASE
)  # fmt: skip
CLOSING = "\"'”’»)\\]}"
_END = re.compile(rf"(?P<mark>[.!?…]+)[{CLOSING}]*(?=\s)|[。！？]+[」』”’）]*|(?=\n[^\S\n]*\n)")
_WORD = re.compile(r"[^\s(\[\"'“‘«]+$")


def split(text: str) -> list[str]:
  """The sentences, whose concatenation is `text`; none where it is white space alone."""
  found, start = [], 0
  for match in _END.finditer(text):
    end = match.end()
    if end > start and text[start:end].strip() and (match["mark"] is None or _ends(text, match, start)):
      found.append(text[start:end])
      start = end
  if text[start:].strip():
    return [*found, text[start:]]
  return [*found[:-1], found[-1] + text[start:]] if found else []


def _ends(text: str, match: re.Match, start: int) -> bool:
  """Whether the mark that was found ends a sentence."""
  following = text[match.end() : match.end() + 40].lstrip()
  if following[:1].islower():
    return False
  if match["mark"] != ".":
    return True
  word = _WORD.search(text[max(start, match.start() - 20) : match.start()])
  if word is None:
    return True
  initial = len(word[0]) == 1 and word[0].isupper() and word[0] != "I"
  return not initial and not ABBREVIATIONS.fullmatch(word[0])


def lines(text: str) -> list[str]:
  """The lines that hold something, for corpora with one sentence a line; their ends are left out."""
  return [line for line in text.splitlines() if line.strip()]

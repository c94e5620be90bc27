"""A text that every machine with Python has: Python's standard library, its programs and the prose between them."""

import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PAD = 0
"""Fills the end of a paragraph that is shorter than others of its batch."""
UNKNOWN = 1
"""Stands for every word that is too rare for the vocabulary."""

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests"}
WORD = re.compile(r"\w+|[^\w\s]")
BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Text:
    """Paragraphs of word indices."""

    paragraphs: list[list[int]]
    num_words: int
    """The vocabulary's size, PAD and UNKNOWN among it."""


def library_text(vocabulary_size: int, shortest: int, longest: int) -> Text:
    """The library's paragraphs with at least `shortest` words, cut after `longest`; the most frequent words make the
    vocabulary, the others become UNKNOWN."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paragraphs: list[list[str]] = []
    for path in sorted(library.rglob("*.py")):
        if NOT_LIBRARY.isdisjoint(path.relative_to(library).parts):
            source = path.read_text(encoding="utf-8", errors="replace")
            paragraphs += (WORD.findall(paragraph) for paragraph in BLANK_LINE.split(source))
    frequency = Counter(word for paragraph in paragraphs for word in paragraph)
    vocabulary = {word: index for index, (word, _) in enumerate(frequency.most_common(vocabulary_size - 2), start=2)}
    return Text(
        paragraphs=[
            [vocabulary.get(word, UNKNOWN) for word in paragraph[:longest]]
            for paragraph in paragraphs
            if len(paragraph) >= shortest
        ],
        num_words=len(vocabulary) + 2,
    )

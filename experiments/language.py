"""A picture of the demo's language: a source, its right translation, and what a human makes of it.

    python -m experiments.language          # writes docs/language.png

The source is the first of seed 0 that shows all there is: a swap, an ending, and a habit.
"""

from pathlib import Path

import numpy as np

import train_toy
from experiments.plot import save_figure
from infra.figures import BLUE, GREEN, GREY, VERMILLION, panels
from infra.seeds import stream

FILE = Path(__file__).parent.parent / "docs" / "language.png"


def example(language):
    """A source, its translation, a human's, and each target word's place in the source."""
    rng = stream("picture", 0)
    while True:
        source = language.sources(1, rng)[0]
        human, right = language.demonstrate(source, rng), language.answer(source)
        # where words come from: the same walk over a source that is numbered through
        order = places(language, source)
        wrong = human[:-1] != right[:-1]
        ending = np.array([language.names[i].endswith("n") for i in right[:-1]])
        if (order != np.arange(len(order))).any() and (ending & ~wrong).any() and wrong.sum() == 2:
            return source[:-1], right[:-1], human[:-1], order


def places(language, source):
    """Where in the source each word of the translation comes from."""
    adjective = language.is_adjective[source[:-1] - language.first_source]
    i, place = 0, np.arange(len(adjective))
    while i + 1 < len(place):
        if adjective[place[i]]:
            place[[i, i + 1]] = place[[i + 1, i]]
            i += 1
        i += 1
    return place


def figure():
    language = train_toy.Language(train_toy.Settings(shortest=6, longest=7))
    source, right, human, order = example(language)
    picture, (ax,) = panels("language", 1, 9, 2.6)
    adjective = language.is_adjective[source - language.first_source]
    for k, i in enumerate(order):
        ax.plot([i, k], [1.86, 1.18], color=GREEN if adjective[i] else GREY, lw=1.4)
    for y, name, words, is_adjective in ((2, "source", source, adjective),
                                         (1, "right", right, adjective[order]),
                                         (0, "a human", human, adjective[order])):
        ax.text(-1.0, y, name, color=GREY, ha="right", va="center")
        for k, word in enumerate(words):
            wrong = y == 0 and word != right[k]
            colour = VERMILLION if wrong else GREEN if is_adjective[k] else BLUE
            ax.text(k, y, language.names[word], color=colour, ha="center", va="center",
                    family="monospace", fontsize=13)
    ax.text(len(source) - 0.3, 1.5, "each word by the lexicon;\nan adjective changes places with\n"
            "the next word, and takes the\nending it asks for", va="center", color=GREEN,
            fontsize=11)
    ax.text(len(source) - 0.3, 0, "wrong words: most are habits", va="center", color=VERMILLION,
            fontsize=11)
    ax.set(xlim=(-1.2, len(source) + 4.2), ylim=(-0.4, 2.4))
    ax.axis("off")
    return picture


if __name__ == "__main__":
    save_figure(figure, FILE)

"""Phrases in a sentence that has no marks, by where words stand in those that have.

No tagger of parts of speech is needed: a word is in a phrase where most of its occurrences in the training sentences
are, as in the baseline of chunking (Tjong Kim Sang and Buchholz, CoNLL 2000), but for words in place of their parts of
speech. Adjectives behind their noun, nouns that are verbs too and "a black and white dog" go wrong; brackets in the
sentence say it exactly.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from bua.errors import InputError
from bua.tasks.words import QuestionVocabulary, tokenize

# A word that begins a phrase, as "a", one within, as "red" or "dog", and one outside, as "holds".
BEGIN, INSIDE, OUTSIDE = "B", "I", "O"

# Of its occurrences in phrases, how many a word that begins them has to begin.
_BEGINS = 0.8

_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
# Flickr30k's sentences have blanks before punctuation, which would otherwise be part of the word.
_PUNCTUATION = re.compile(r"(?<=[^\s.])([.!;:]+)(?=\s|$)")


def phrase_tags(
    sentences: Iterable[tuple[Sequence[str], Sequence[tuple[int, int]]]], vocabulary: QuestionVocabulary
) -> list[str]:
    """For each word of a vocabulary where it most often stands.

    Args:
        sentences: the words of each, and the first and the end of each of its phrases.

    Returns:
        BEGIN, INSIDE or OUTSIDE for each word; INSIDE for one that does not occur, as most rare words are nouns.
    """
    inside, begins, outside = Counter(), Counter(), Counter()
    for words, spans in sentences:
        within = {place for start, end in spans for place in range(start, end)}
        inside.update(words[place] for place in within)
        begins.update(words[start] for start, end in spans if start < end)
        outside.update(word for place, word in enumerate(words) if place not in within)
    tags = []
    for word in vocabulary.words:
        if outside[word] > inside[word]:
            tags.append(OUTSIDE)
        else:
            tags.append(BEGIN if inside[word] and begins[word] >= _BEGINS * inside[word] else INSIDE)
    return tags


def find_phrases(sentence: str, vocabulary: QuestionVocabulary, tags: Sequence[str]) -> tuple[list[str], list[tuple]]:
    """The words of a sentence, and the first and the end of each phrase.

    Where there are brackets, as in "[a man] in [a hat]", they are the phrases. Otherwise a phrase is a run of words
    that most often stand in one; it ends at a comma, and before a word that most often begins one.

    Raises:
        InputError: brackets without a word, or no phrase at all.
    """
    sentence = _PUNCTUATION.sub(r" \1", sentence)
    if "[" in sentence or "]" in sentence:
        return _bracketed(sentence)
    words, spans = [], []
    for clause in re.split(r",(?=\s|$)", sentence):
        is_open = False
        for word in tokenize(clause):
            tag = tags[vocabulary.id_of(word)] if word in vocabulary else INSIDE
            if tag == BEGIN or (tag == INSIDE and not is_open):
                spans.append((len(words), len(words) + 1))
            elif tag == INSIDE:
                spans[-1] = (spans[-1][0], len(words) + 1)
            is_open = tag != OUTSIDE
            words.append(word)
    if not spans:
        raise InputError(
            f"sentence {sentence!r}: no phrase in it; put brackets around them, as in '[a man] in [a hat]'"
        )
    return words, spans


def _bracketed(sentence: str) -> tuple[list[str], list[tuple]]:
    text, spans, done = "", [], 0
    for match in _BRACKETED.finditer(sentence):
        text += sentence[done : match.start()] + match[1]
        end, count = len(tokenize(text)), len(tokenize(match[1]))
        if not count:
            raise InputError(f"sentence {sentence!r}: brackets without a word between them")
        spans.append((end - count, end))
        done = match.end()
    text += sentence[done:]
    if "[" in text or "]" in text:
        raise InputError(f"sentence {sentence!r}: a bracket without its other half")
    return tokenize(text), spans

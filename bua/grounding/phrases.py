"""Finds phrases in a sentence without marks, by the places at which words stand in the marked sentences of training.

No part-of-speech tagger is needed: a word is taken to be in a phrase if most of its occurrences in the training
sentences are. This is the baseline of the chunking task (Tjong Kim Sang and Buchholz, CoNLL 2000), with words instead
of their parts of speech. It fails for adjectives after their noun, for words that are nouns as well as verbs, and for
"a black and white dog". With brackets in the sentence, users mark the phrases themselves.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bua.errors import InputError
from bua.tasks.words import WordVocabulary, tokenize

# The tags of words that begin a phrase, such as "a"; of words inside of one, such as "red" or "dog"; and of words
# outside of phrases, such as "holds".
BEGIN, INSIDE, OUTSIDE = "B", "I", "O"

# The share of its occurrences in phrases that must be the first word of one, for a word to get the tag BEGIN.
_BEGINS = 0.8

_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
# The longest sentence, in characters. Those of Flickr30k have at most a few hundred, and a text of megabytes, such as
# one that is sent to the page of `bua app`, would take hours.
MAX_LENGTH = 5000

# An article that no noun follows is no phrase, such as the one in "to the right of".
_ARTICLES = ("a", "an", "the")

# Flickr30k's sentences have blanks before punctuation, which would otherwise be part of the word.
_PUNCTUATION = re.compile(r"(?<=[^\s.])([.!;:]+)(?=\s|$)")


def phrase_tags(
    sentences: Iterable[tuple[Sequence[str], Sequence[tuple[int, int]]]], vocabulary: WordVocabulary
) -> list[str]:
    """Returns the tag of each word of a vocabulary by the places at which it stands most often.

    Args:
        sentences: For each sentence its words, and for each of its phrases the place of the first word and the place
            behind the last word.

    Returns:
        BEGIN, INSIDE or OUTSIDE for each word. Words that do not occur get INSIDE, since most rare words are nouns.
    """
    inside: Counter[str] = Counter()
    begins: Counter[str] = Counter()
    outside: Counter[str] = Counter()
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


def check_tags(tags: Sequence[str], vocabulary: WordVocabulary, source: str | Path) -> None:
    """Checks tags that were read from a file.

    Raises:
        InputError: They are not a tag for each word of the vocabulary.
    """
    if len(tags) != len(vocabulary) or not set(tags) <= {BEGIN, INSIDE, OUTSIDE}:
        raise InputError(
            f"{source}: damaged (phrase_tags are not {BEGIN}, {INSIDE} or {OUTSIDE} for each of the {len(vocabulary)} "
            "words of the vocabulary); make it again with bua prepare-flickr30k, or bua train-grounding"
        )


def find_phrases(
    sentence: str, vocabulary: WordVocabulary, tags: Sequence[str]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Finds the phrases of a sentence.

    Where the sentence has brackets, as in "[a man] in [a hat]", they mark the phrases. Otherwise a phrase is a sequence
    of words whose tags are not OUTSIDE; it ends at a comma, and before a word with the tag BEGIN. An article alone is
    none.

    Returns:
        The words of the sentence, and for each phrase the place of its first word and the place behind its last word.

    Raises:
        InputError: There are brackets without a word, there is no phrase, or the sentence is too long.
    """
    if len(sentence) > MAX_LENGTH:
        raise InputError(
            f"sentence {sentence[:40]!r}...: has {len(sentence)} characters, more than {MAX_LENGTH}; give one sentence"
        )
    sentence = _PUNCTUATION.sub(r" \1", sentence)
    if "[" in sentence or "]" in sentence:
        return _bracketed(sentence)
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    for clause in re.split(r",(?=\s|$)", sentence):
        is_open = False
        clause_words = tokenize(clause)
        for word, tag in zip(clause_words, _clause_tags(clause_words, vocabulary, tags)):
            if tag == BEGIN or (tag == INSIDE and not is_open):
                spans.append((len(words), len(words) + 1))
            elif tag == INSIDE:
                spans[-1] = (spans[-1][0], len(words) + 1)
            is_open = tag != OUTSIDE
            words.append(word)
    spans = [(start, end) for start, end in spans if end > start + 1 or words[start] not in _ARTICLES]
    if not spans:
        raise InputError(
            f"sentence {sentence!r}: no phrase in it; put brackets around them, as in '[a man] in [a hat]'"
        )
    return words, spans


def _clause_tags(words: Sequence[str], vocabulary: WordVocabulary, tags: Sequence[str]) -> list[str]:
    """Returns a tag for each word of a clause.

    A word that the vocabulary lacks is taken for a noun or an adjective, unless the next word begins a phrase: two
    phrases do not stand side by side, so that the word between them is a verb or a preposition, as in "a red hat holds
    a dog". Directly after a word that begins a phrase it is a noun nevertheless, since a phrase needs one.
    """
    known = [tags[vocabulary.id_of(word)] if word in vocabulary else None for word in words]
    found: list[str] = []
    for place, tag in enumerate(known):
        if tag is None:
            is_between = place + 1 < len(known) and known[place + 1] == BEGIN and (not found or found[-1] != BEGIN)
            tag = OUTSIDE if is_between else INSIDE
        found.append(tag)
    return found


def _bracketed(sentence: str) -> tuple[list[str], list[tuple[int, int]]]:
    text, done = "", 0
    spans: list[tuple[int, int]] = []
    for match in _BRACKETED.finditer(sentence):
        text += sentence[done : match.start()] + match[1]
        end, count = len(tokenize(text)), len(tokenize(match[1]))
        if not count:
            raise InputError(
                f"sentence {sentence!r}: brackets without a word between them; remove them, or put words into them"
            )
        spans.append((end - count, end))
        done = match.end()
    text += sentence[done:]
    if "[" in text or "]" in text:
        raise InputError(f"sentence {sentence!r}: unmatched or nested brackets; write as in '[a man] in [a hat]'")
    return tokenize(text), spans

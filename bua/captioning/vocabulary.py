"""Captions as ids of words: by Anderson's tokeniser, by Karpathy's, or as BERT's word pieces."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.options import TOKENIZERS
from bua.regular_files import read_regular
from bua.tasks.prepared import offsets_of, write_json
from bua.vocabulary import read_lines

# Words that occur less often are unknown. For the captions that Anderson's code trains on, this gives its 10,010 words;
# ruotianluo's code has 9,487.
MIN_COUNT = {"anderson": 5, "karpathy": 6}
# The special words that the GRU variant's code (ChanningPing) adds to BERT's word pieces.
_PIECE_PAD, _PIECE_BEGIN, _PIECE_END = "[pad]", "[start]", "[end]"
_PIECE_UNKNOWN = "[UNK]"

# Anderson's code runs in Python 2, whose \W matches letters outside of ASCII.
_NO_WORDS = re.compile(r"(\W+)", re.ASCII)
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION = frozenset(string.punctuation)
# The blanks of "man ' s" and "t - shirt", which people write without blanks.
_GLUE = re.compile(r"(?<=\w) (?:(') (?=(?:s|t|re|ve|ll|d|m)\b)|(-) (?=\w))")
_BLANK_BEFORE_MARK = re.compile(r" (?=[,.;:!?])")


def anderson_words(text: str) -> list[str]:
    """Splits a caption into words as Up-Down-Captioner does (scripts/preprocess_coco.py).

    The text is lower-cased and split where letters and other characters meet. Runs of punctuation are split into single
    marks, except for runs of full stops. A full stop at the end is removed.
    """
    words: list[str] = []
    for part in _NO_WORDS.split(text):
        part = part.strip().lower()
        if _PUNCTUATION.issuperset(part) and part.strip("."):
            words += part
        elif part:
            words.append(part)
    return words[:-1] if words[-1:] == ["."] else words


def karpathy_words(text: str) -> list[str]:
    """Splits a caption into words as Karpathy's tokens: in lower case, without punctuation, split at white space."""
    return text.lower().translate(_WITHOUT_PUNCTUATION).split()


_WORDS_OF = {"anderson": anderson_words, "karpathy": karpathy_words}


class CaptionVocabulary:
    """The words of captions and their ids, which count from 0.

    With the tokenisers "anderson" and "karpathy" the first words are ".", which stands for begin, end and padding, and
    "<unk>", which stands for unknown words. Word pieces have "[UNK]" for text that cannot be composed of them, and
    "[pad]", "[start]" and "[end]".

    Args:
        words: The words in the order of their ids.
        tokenizer: "anderson", "karpathy" or "wordpiece".

    Attributes:
        begin, end, unk, pad: Ids of the special words.

    Raises:
        InputError: A word occurs twice, or a special word is missing.
    """

    def __init__(self, words: Sequence[str], tokenizer: str = "anderson"):
        if tokenizer not in TOKENIZERS:
            raise InputError(f"caption vocabulary: tokenizer {tokenizer!r}; use one of {', '.join(TOKENIZERS)}")
        self.words, self.tokenizer = list(words), tokenizer
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise InputError(f"caption vocabulary: has {twice!r} twice; remove one")
        if tokenizer == "wordpiece":
            names = (_PIECE_BEGIN, _PIECE_END, _PIECE_UNKNOWN, _PIECE_PAD)
        elif self.words[:2] == [".", "<unk>"]:
            names = (".", ".", "<unk>", ".")
        else:
            raise InputError(f"caption vocabulary: begins with {self.words[:2]}; it must begin with '.' and '<unk>'")
        missing = [name for name in names if name not in self._ids]
        if missing:
            raise InputError(f"caption vocabulary: has no {missing[0]!r}; give BERT's vocab.txt")
        self.begin, self.end, self.unk, self.pad = (self._ids[name] for name in names)

    @classmethod
    def build(
        cls, captions: Iterable[str], tokenizer: str = "anderson", min_count: int | None = None
    ) -> "CaptionVocabulary":
        """Returns the vocabulary of the words that occur at least ``min_count`` times (default: ``MIN_COUNT``), the
        most frequent first, and equally frequent ones in alphabetical order."""
        if tokenizer not in _WORDS_OF:
            raise InputError(f"tokenizer {tokenizer}: its words are not counted; give a vocabulary file")
        min_count = MIN_COUNT[tokenizer] if min_count is None else min_count
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(_WORDS_OF[tokenizer](caption))
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([".", "<unk>", *(word for _, word in frequent if word not in (".", "<unk>"))], tokenizer)

    @classmethod
    def read(cls, path: str | Path, tokenizer: str = "anderson") -> "CaptionVocabulary":
        """Reads a text file with one word per line, such as Anderson's train_vocab.txt or BERT's vocab.txt. The special
        words that the GRU variant adds are appended to word pieces."""
        words = [line.strip() for line in read_lines(path)]
        if tokenizer == "wordpiece":
            words += [word for word in (_PIECE_PAD, _PIECE_BEGIN, _PIECE_END) if word not in words]
        try:
            return cls(words, tokenizer)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "CaptionVocabulary":
        """Reads a file that ``save`` wrote.

        Raises:
            InputError: There is no such file, or it is damaged.
        """
        try:
            content = orjson.loads(read_regular(path))
            return cls(content["words"], content["tokenizer"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read: {error.strerror}; prepare it with bua prepare-captions"
            ) from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); prepare it again with bua prepare-captions") from error

    def save(self, path: str | Path) -> None:
        """Writes JSON: ``{"tokenizer": ..., "words": [...]}``."""
        write_json(path, {"tokenizer": self.tokenizer, "words": self.words})

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaptionVocabulary) and (self.tokenizer, self.words) == (other.tokenizer, other.words)

    def encode(self, caption: str) -> np.ndarray:
        """Returns the int32 ids of a caption's words, without begin and end."""
        return self.encode_all([caption])[0]

    def encode_all(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes M captions.

        Returns:
            [T] int32, the ids of the words of all captions, one caption after the other; and [M + 1] int64 offsets:
            caption i has the ids from ``offsets[i]`` to ``offsets[i + 1]`` - 1.
        """
        ids_of = self._pieces if self.tokenizer == "wordpiece" else self._words
        encoded = ids_of(captions)
        offsets = offsets_of([len(ids) for ids in encoded])
        return np.fromiter(chain.from_iterable(encoded), np.int32, offsets[-1]), offsets

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the caption of words' ids without begin and end, in lower case, with blanks as people write them."""
        text = " ".join(self.words[number] for number in ids)
        if self.tokenizer == "wordpiece":
            text = text.replace(" ##", "")
        return _BLANK_BEFORE_MARK.sub("", _GLUE.sub(r"\1\2", text))

    def _words(self, captions: Sequence[str]) -> list[list[int]]:
        words_of: Callable[[str], list[str]] = _WORDS_OF[self.tokenizer]
        return [[self._ids.get(word, self.unk) for word in words_of(caption)] for caption in captions]

    def _pieces(self, captions: Sequence[str]) -> list[list[int]]:
        try:
            from tokenizers import Tokenizer
            from tokenizers.models import WordPiece
            from tokenizers.normalizers import BertNormalizer
            from tokenizers.pre_tokenizers import BertPreTokenizer
        except ImportError as error:
            raise InputError("word pieces: tokenizers is not installed; run `pip install tokenizers`") from error
        tokenizer = Tokenizer(WordPiece(self._ids, unk_token=_PIECE_UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
        return [encoding.ids for encoding in tokenizer.encode_batch(captions)]

"""Captions as ids of words: Anderson's words, Karpathy's, or BERT's word pieces."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson

from bua.errors import InputError
from bua.io.files import whole_file
from bua.vocabulary import read_lines

# Words that occur less often are unknown: Anderson's 10,010 of the captions he trains on; ruotianluo's 9,487.
MIN_COUNT = {"anderson": 5, "karpathy": 6}
TOKENIZERS = (*MIN_COUNT, "wordpiece")
# What the seed of the GRU variant adds to BERT's word pieces.
_PIECE_PAD, _PIECE_BEGIN, _PIECE_END = "[pad]", "[start]", "[end]"
_PIECE_UNKNOWN = "[UNK]"

# Python 2 took letters beyond ASCII for punctuation here.
_NO_WORDS = re.compile(r"(\W+)", re.ASCII)
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION = frozenset(string.punctuation)
# "man ' s", "t - shirt", as people write them.
_GLUE = re.compile(r"(?<=\w) (?:(') (?=(?:s|t|re|ve|ll|d|m)\b)|(-) (?=\w))")
_BLANK_BEFORE_MARK = re.compile(r" (?=[,.;:!?])")


def anderson_words(text: str) -> list[str]:
    """The words of a caption as Up-Down-Captioner has them (scripts/preprocess_coco.py): lower case, split between
    letters and others, a run of punctuation into its marks but for full stops; without a last full stop."""
    words = []
    for part in _NO_WORDS.split(text):
        part = part.strip().lower()
        if _PUNCTUATION.issuperset(part) and part.strip("."):
            words += part
        elif part:
            words.append(part)
    return words[:-1] if words[-1:] == ["."] else words


def karpathy_words(text: str) -> list[str]:
    """The words of a caption by the rule of Karpathy's tokens: lower case, without punctuation, split at blanks."""
    return text.lower().translate(_WITHOUT_PUNCTUATION).split()


_WORDS_OF = {"anderson": anderson_words, "karpathy": karpathy_words}


class CaptionVocabulary:
    """The words of captions and their ids, from 0.

    Words of "anderson" and "karpathy" begin with ".", which stands for begin, end and padding, and "<unk>", which
    stands for words that are not there. Word pieces have "[UNK]" for what cannot be put together from them, and
    "[pad]", "[start]" and "[end]".

    Args:
        words: in the order of their ids.
        tokenizer: "anderson", "karpathy" or "wordpiece".

    Attributes:
        begin, end, unk, pad: ids.

    Raises:
        InputError: a word twice, or no special words.
    """

    def __init__(self, words: Sequence[str], tokenizer: str = "anderson"):
        if tokenizer not in TOKENIZERS:
            raise InputError(f"caption vocabulary: tokenizer {tokenizer!r}; use one of {', '.join(TOKENIZERS)}")
        self.words, self.tokenizer = list(words), tokenizer
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise InputError(f"caption vocabulary: has {twice!r} twice; keep one")
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
        """The words that occur ``min_count`` times or more (default: ``MIN_COUNT``), the most frequent first, those
        as frequent as each other by the alphabet."""
        if tokenizer not in _WORDS_OF:
            raise InputError(f"tokenizer {tokenizer}: its words are not counted; give a vocabulary file")
        least = MIN_COUNT[tokenizer] if min_count is None else min_count
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(_WORDS_OF[tokenizer](caption))
        frequent = sorted((-count, word) for word, count in counts.items() if count >= least)
        return cls([".", "<unk>", *(word for _, word in frequent if word not in (".", "<unk>"))], tokenizer)

    @classmethod
    def read(cls, path: str | Path, tokenizer: str = "anderson") -> "CaptionVocabulary":
        """From a text file with a word a line, such as Anderson's train_vocab.txt or BERT's vocab.txt, to whose end
        what the seed adds is added."""
        words = [line.strip() for line in read_lines(path)]
        if tokenizer == "wordpiece":
            words += [word for word in (_PIECE_PAD, _PIECE_BEGIN, _PIECE_END) if word not in words]
        try:
            return cls(words, tokenizer)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "CaptionVocabulary":
        """From what ``save`` wrote."""
        try:
            content = orjson.loads(Path(path).read_bytes())
            return cls(content["words"], content["tokenizer"])
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read: {error.strerror}; prepare it with prepare_captions.py"
            ) from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); prepare it again with prepare_captions.py") from error

    def save(self, path: str | Path) -> None:
        """As JSON: ``{"tokenizer": ..., "words": [...]}``."""
        content = {"tokenizer": self.tokenizer, "words": self.words}
        with whole_file(Path(path)) as file:
            file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other) -> bool:
        return isinstance(other, CaptionVocabulary) and (self.tokenizer, self.words) == (other.tokenizer, other.words)

    def encode(self, caption: str) -> np.ndarray:
        """int32 ids of a caption's words, without begin and end."""
        return self.encode_all([caption])[0]

    def encode_all(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Likewise for M captions, one after the other: [T] int32 ids, [M + 1] int64 where each begins and ends."""
        ids_of = self._pieces if self.tokenizer == "wordpiece" else self._words
        encoded = ids_of(captions)
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        return np.fromiter((number for ids in encoded for number in ids), np.int32, offsets[-1]), offsets

    def decode(self, ids: Iterable[int]) -> str:
        """A caption of words' ids, begin and end left out, as people write it, in lower case."""
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
            raise InputError("word pieces: tokenizers is not installed; pip install 'bua[captioning]'") from error
        tokenizer = Tokenizer(WordPiece(self._ids, unk_token=_PIECE_UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
        return [encoding.ids for encoding in tokenizer.encode_batch(captions)]

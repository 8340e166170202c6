"""Scores of captions: BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE, computed by pycocoevalcap."""

import importlib.util
import logging
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

import orjson

from bua.captioning.official import load_references, load_results, read_image_list
from bua.errors import InputError, first_of
from bua.io.files import whole_file

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "SPICE")
PTB, REGEX = "PTB", "regex"

# The punctuation that coco-caption removes. It keeps brackets, since the tokeniser writes them in lower case.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TOKEN = re.compile(
    r"""
    -[lr][rsc]b-                                        # a bracket
    | (?:(?<!\w)[a-z]\.){2,}                            # u.s.
    | can(?=not\b) | \w+?(?=n't\b) | n't\b              # can not, do n't
    | '(?:s|re|ve|ll|d|m)\b
    | \w+(?: [-./&]\w+ | (?<=\d)[,:](?=\d)\w+ | '(?!(?:s|re|ve|ll|d|m)\b)\w+ )*   # t-shirt, 1/2, 5:30, o'clock
    | [!?]{2,} | [^\w\s]
    """,
    re.VERBOSE,
)
# METEOR cannot parse numbers with a decimal comma, and captions are in UTF-8 whatever the locale of the machine is.
_JAVA_OPTIONS = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]

# Captions of each image by image id, with blanks between their words.
TokenLists = dict[int, list[str]]

logger = logging.getLogger(__name__)


def caption_scores(
    results: str | Path | list,
    references: str | Path | dict | list,
    *,
    images: str | Path | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict:
    """Computes the scores of coco-caption, in percent as papers print them (a CIDEr-D of 113.5 is 1.135 there).

    Captions are split into words by Stanford's PTB tokeniser, which needs Java. Without Java, a regular expression
    splits them, which gives the same words except for rare abbreviations. CIDEr-D weights words by the number of images
    whose references have them, so that it cannot be compared between sets of images, and is 0 for a single image.

    Args:
        results: Captions in the format of COCO's server: a file, or the list of ``{"image_id", "caption"}`` in it. It
            must have each image of ``references`` once, and no others.
        references: The captions that people wrote, in COCO's format: an official file, a file that
            ``prepare_captions`` wrote, or the content of such a file.
        images: A list of images (``read_image_list``); scores are computed with these images of ``references`` alone.
        metrics: The metrics to compute, some of ``METRICS``.

    Returns:
        The scores in percent by metric; "tokenizer": "PTB" or "regex"; and "left_out": by metric the reason why it
        could not be computed, where Java or a download is missing. These metrics are logged, too.

    Raises:
        InputError: The package pycocoevalcap is not installed; images are missing, unknown or occur twice; or a file is
            damaged.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise InputError(f"metric {unknown[0]!r}: unknown; use some of {', '.join(METRICS)}")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise InputError("scores of captions: pycocoevalcap is not installed; run `pip install pycocoevalcap`")
    captions, written = _by_image(results, references, images)
    left_out = {}
    without_java = _why_no_java()
    if without_java is None:
        tokenizer, tokenize = PTB, ptb_tokenize
    else:
        tokenizer, tokenize = REGEX, regex_tokenize
        logger.warning("captions: words are split by a regular expression, not by the PTB tokeniser: %s", without_java)
        left_out = dict.fromkeys(set(metrics) & {"METEOR", "SPICE"}, without_java)
    words, reference_words = _tokenized(captions, written, tokenize)

    scores: dict[str, float] = {}
    for names, compute in (
        (METRICS[:4], _bleu),
        (("METEOR",), _meteor),
        (("ROUGE-L",), _rouge),
        (("CIDEr-D",), _cider),
        (("SPICE",), _spice),
    ):
        if set(names) & (set(metrics) - set(left_out)):
            try:
                scores |= dict(zip(names, compute(reference_words, words)))
            except _NotAvailable as error:
                left_out |= dict.fromkeys(names, str(error))
    for metric, reason in left_out.items():
        logger.warning("captions: %s left out: %s", metric, reason)
    percent = {metric: 100 * float(scores[metric]) for metric in METRICS if metric in scores and metric in metrics}
    return percent | {"tokenizer": tokenizer, "left_out": left_out}


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes captions by image id in the format of COCO's server, which ``caption_scores`` reads."""
    records = [{"image_id": int(image_id), "caption": caption} for image_id, caption in captions.items()]
    with whole_file(Path(path)) as file:
        file.write(orjson.dumps(records))


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Splits captions without line breaks into words as coco-caption does (tokenizer/ptbtokenizer.py, which also leaves
    a file in the folder of the package). It needs Java.

    Returns:
        For each caption its words in lower case, without punctuation, with blanks between them.

    Raises:
        InputError: The tokeniser fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", *_JAVA_OPTIONS, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(caption + "\n" for caption in captions)
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    lines = done.stdout.decode().splitlines()
    if done.returncode or len(lines) != len(captions):
        raise InputError(
            f"PTB tokeniser: gives {len(lines)} lines for {len(captions)} captions: {_last_line(done.stderr)}"
        )
    return [_without_punctuation(line.split(" ")) for line in lines]


def regex_tokenize(captions: Sequence[str]) -> list[str]:
    """Splits captions into nearly the same words as ``ptb_tokenize``, without Java."""
    words = []
    for caption in captions:
        text = caption.lower().replace('"', " ")
        for bracket, name in _BRACKETS.items():
            text = text.replace(bracket, f" {name} ")
        words.append(_without_punctuation(_TOKEN.findall(text)))
    return words


class _NotAvailable(Exception):
    """A program or file that a metric needs is missing or fails; the message says which."""


def _by_image(
    results: str | Path | list, references: str | Path | dict | list, images: str | Path | None
) -> tuple[dict[int, str], dict[int, list[str]]]:
    captions, written = load_results(results), load_references(references)
    results_name = str(results) if isinstance(results, str | Path) else "results"
    references_name = str(references) if isinstance(references, str | Path) else "references"
    if images is not None:
        listed = read_image_list(images)
        _check_complete(references_name, written, listed, str(images))
        written = {image_id: written[image_id] for image_id in listed}
    if not written:
        raise InputError(f"{references_name}: has no captions; name a file in the format of COCO's captions")
    _check_complete(results_name, captions, written, references_name)
    extra = sorted(captions.keys() - written.keys())
    if extra:
        raise InputError(
            f"{results_name}: has {len(extra)} images that {references_name if images is None else images} does not "
            f"have: {first_of(extra)}; leave them out"
        )
    return {image_id: captions[image_id] for image_id in written}, written


def _check_complete(name: str, there: Mapping, needed: Sequence[int] | Mapping, needed_by: str) -> None:
    missing = [image_id for image_id in needed if image_id not in there]
    if missing:
        raise InputError(
            f"{name}: lacks {len(missing)} of the {len(needed)} images of {needed_by}: {first_of(missing)}; "
            "both must be of one split"
        )


def _tokenized(
    captions: dict[int, str], references: dict[int, list[str]], tokenize: Callable[[Sequence[str]], list[str]]
) -> tuple[TokenLists, TokenLists]:
    """Returns the captions (a list of one for each image) and the references, with blanks between the words."""
    flat = [*captions.values(), *chain.from_iterable(references.values())]
    # Any white space becomes a blank, since a line break would make two captions of one.
    words = iter(tokenize([" ".join(text.split()) for text in flat]))
    caption_words = {image_id: [next(words)] for image_id in captions}
    return caption_words, {image_id: [next(words) for _ in texts] for image_id, texts in references.items()}


def _without_punctuation(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in _PUNCTUATION)


def _bleu(references: TokenLists, captions: TokenLists) -> list[float]:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(references, captions, verbose=0)[0]


def _rouge(references: TokenLists, captions: TokenLists) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [Rouge().compute_score(references, captions)[0]]


def _cider(references: TokenLists, captions: TokenLists) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    return [Cider().compute_score(references, captions)[0]]


def _meteor(references: TokenLists, captions: TokenLists) -> list[float]:
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = ["java", *_JAVA_OPTIONS, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as errors:
        try:
            return [_ask_meteor(command, references, captions, errors)]
        except (OSError, ValueError) as error:
            errors.seek(0)
            raise _NotAvailable(f"METEOR's program ends early: {_last_line(errors.read())}") from error


def _ask_meteor(command: list[str], references: TokenLists, captions: TokenLists, errors: IO[bytes]) -> float:
    """Runs METEOR's program and returns the score that it prints. pycocoevalcap's class for it waits forever where the
    program fails.

    Args:
        errors: The file that the program's error messages are written to.

    Raises:
        OSError, ValueError: The program ends early, or prints something else. Leaving the ``with`` block raises OSError
            as well, where the block has written to a program that has ended.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
    ) as process:
        given, printed = process.stdin, process.stdout
        assert given is not None
        assert printed is not None

        def ask(*fields: str) -> str:
            given.write(" ||| ".join(fields) + "\n")
            given.flush()
            return printed.readline().strip()

        try:
            statistics_of = [ask("SCORE", *texts, captions[image_id][0]) for image_id, texts in references.items()]
            # The program prints the score of each image, then the score of all images.
            ask("EVAL", *statistics_of)
            for _ in statistics_of:
                score = printed.readline()
            return float(score)
        except BaseException:
            process.kill()
            raise


def _spice(references: TokenLists, captions: TokenLists) -> list[float]:
    from pycocoevalcap.spice import spice

    folder = Path(spice.__file__).parent
    if not (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").is_file():
        raise _NotAvailable(
            "lacks Stanford CoreNLP 3.6.0 (a download of 384 MB): run python -m pycocoevalcap.spice.get_stanford_models"
        )
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        items = [{"image_id": key, "test": captions[key][0], "refs": texts} for key, texts in references.items()]
        given.write_bytes(orjson.dumps(items))
        command = [
            "java",
            *_JAVA_OPTIONS,
            "-Xmx8G",
            "-jar",
            str(folder / spice.SPICE_JAR),
            str(given),
            "-out",
            str(found),
        ]
        done = subprocess.run([*command, "-subset", "-silent"], capture_output=True, cwd=scratch)
        if done.returncode or not found.is_file():
            raise _NotAvailable(f"SPICE's program fails, as it does with Java after 11: {_last_line(done.stderr)}")
        scores = orjson.loads(found.read_bytes())
    # The score is None where neither the caption nor the references contain a proposition.
    return [statistics.fmean(item["scores"]["All"]["f"] or 0.0 for item in scores)]


def _why_no_java() -> str | None:
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    # macOS has a program "java" that only prints where to get Java.
    done = subprocess.run(["java", "-version"], capture_output=True)
    return f"java -version fails: {_last_line(done.stderr)}" if done.returncode else None


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it prints no reason"

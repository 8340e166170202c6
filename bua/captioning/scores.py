"""The scores that captions are compared by: BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE, by pycocoevalcap."""

import importlib.util
import logging
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from bua.captioning.official import load_references, load_results, read_image_list
from bua.errors import InputError, first_of
from bua.io.files import whole_file

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "SPICE")
PTB, REGEX = "PTB", "regex"

# What coco-caption leaves out. Brackets are not among them: the tokeniser writes them in lower case.
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
# Numbers with a decimal comma are no numbers to METEOR, and captions are in UTF-8 whatever the machine's locale is.
_JAVA_OPTIONS = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]

logger = logging.getLogger(__name__)


def caption_scores(
    results: str | Path | list,
    references: str | Path | dict | list,
    *,
    images: str | Path | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict:
    """The scores of coco-caption, in percent as papers print them (CIDEr-D of 113.5 is 1.135 there).

    Captions are split into words by Stanford's PTB tokeniser, which needs Java; without it by a regular expression
    that gives the same words but for rare abbreviations. CIDEr-D weighs words by how many of the images at hand have
    them: it is not comparable between sets of images, and 0 for one image.

    Args:
        results: captions as COCO's server takes them: a file, or the list ``{"image_id", "caption"}`` in it. All
            images of ``references``, and no others, must be there, once.
        references: what people wrote, in COCO's format: an official file, what ``prepare_captions`` wrote, or what is
            in it.
        images: a list of images (``read_image_list``), to score by those of ``references`` alone.
        metrics: those wanted.

    Returns:
        percent by metric; "tokenizer": "PTB" or "regex"; "left_out": why, by metric, for those that were wanted and
        lack Java or a download. The log says so, too.

    Raises:
        InputError: pycocoevalcap is not installed, or images that are missing, unknown or there twice, or damaged
            files, in one line.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise InputError(f"metric {unknown[0]!r}: unknown; use some of {', '.join(METRICS)}")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise InputError("scores of captions: pycocoevalcap is not installed; pip install 'bua[captioning]'")
    said, written = _by_image(results, references, images)
    left_out = {}
    without_java = _why_no_java()
    if without_java is None:
        tokenizer, tokenize = PTB, ptb_tokenize
    else:
        tokenizer, tokenize = REGEX, regex_tokenize
        logger.warning("captions: words are split by a regular expression, not by the PTB tokeniser: %s", without_java)
        left_out = dict.fromkeys(set(metrics) & {"METEOR", "SPICE"}, without_java)
    said, written = _tokenized(said, written, tokenize)

    scores: dict[str, float] = {}
    for wanted, score in (
        (METRICS[:4], _bleu),
        (("METEOR",), _meteor),
        (("ROUGE-L",), _rouge),
        (("CIDEr-D",), _cider),
        (("SPICE",), _spice),
    ):
        if set(wanted) & (set(metrics) - set(left_out)):
            try:
                scores |= dict(zip(wanted, score(written, said)))
            except _NotAvailable as error:
                left_out |= dict.fromkeys(wanted, str(error))
    for metric, reason in left_out.items():
        logger.warning("captions: %s left out: %s", metric, reason)
    percent = {metric: 100 * float(scores[metric]) for metric in METRICS if metric in scores and metric in metrics}
    return percent | {"tokenizer": tokenizer, "left_out": left_out}


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes captions by image id as COCO's server, and ``caption_scores``, take them."""
    records = [{"image_id": int(image_id), "caption": caption} for image_id, caption in captions.items()]
    with whole_file(Path(path)) as file:
        file.write(orjson.dumps(records))


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Words with blanks between, in lower case, without punctuation, of captions without line breaks, as coco-caption
    has them (tokenizer/ptbtokenizer.py, which leaves a file in the folder of the package). Needs Java.

    Raises:
        InputError: the tokeniser fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", *_JAVA_OPTIONS, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(caption + "\n" for caption in captions)
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    lines = done.stdout.decode().splitlines()
    if done.returncode or len(lines) != len(captions):
        raise InputError(f"PTB tokeniser: gives {len(lines)} lines for {len(captions)}: {_last_line(done.stderr)}")
    return [_without_punctuation(line.split(" ")) for line in lines]


def regex_tokenize(captions: Sequence[str]) -> list[str]:
    """Nearly the same as ``ptb_tokenize``, without Java."""
    words = []
    for caption in captions:
        text = caption.lower().replace('"', " ")
        for bracket, name in _BRACKETS.items():
            text = text.replace(bracket, f" {name} ")
        words.append(_without_punctuation(_TOKEN.findall(text)))
    return words


class _NotAvailable(Exception):
    """A metric lacks what it needs; the message says what."""


def _by_image(
    results: str | Path | list, references: str | Path | dict | list, images: str | Path | None
) -> tuple[dict[int, str], dict[int, list[str]]]:
    said, written = load_results(results), load_references(references)
    results_name = str(results) if isinstance(results, str | Path) else "results"
    references_name = str(references) if isinstance(references, str | Path) else "references"
    if images is not None:
        listed = read_image_list(images)
        _check_complete(references_name, written, listed, str(images))
        written = {image_id: written[image_id] for image_id in listed}
    if not written:
        raise InputError(f"{references_name}: has no captions")
    _check_complete(results_name, said, written, references_name)
    extra = sorted(said.keys() - written.keys())
    if extra:
        raise InputError(
            f"{results_name}: has {len(extra)} images that {references_name if images is None else images} does not "
            f"have: {first_of(extra)}; leave them out"
        )
    return {image_id: said[image_id] for image_id in written}, written


def _check_complete(name: str, there: Mapping, wanted: Sequence[int] | Mapping, wanted_by: str) -> None:
    missing = [image_id for image_id in wanted if image_id not in there]
    if missing:
        raise InputError(
            f"{name}: lacks {len(missing)} of the {len(wanted)} images of {wanted_by}: {first_of(missing)}; "
            "both must be of one split"
        )


def _tokenized(said: dict[int, str], written: dict[int, list[str]], tokenize: Callable) -> tuple[dict, dict]:
    """Captions and references by image id, lists both, with blanks between the words."""
    flat = [*said.values(), *(text for texts in written.values() for text in texts)]
    # Whatever breaks a line would make two captions of one.
    words = iter(tokenize([" ".join(text.split()) for text in flat]))
    tokenized_said = {image_id: [next(words)] for image_id in said}
    return tokenized_said, {image_id: [next(words) for _ in texts] for image_id, texts in written.items()}


def _without_punctuation(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in _PUNCTUATION)


def _bleu(written: dict, said: dict) -> list[float]:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(written, said, verbose=0)[0]


def _rouge(written: dict, said: dict) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [Rouge().compute_score(written, said)[0]]


def _cider(written: dict, said: dict) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    return [Cider().compute_score(written, said)[0]]


def _meteor(written: dict, said: dict) -> list[float]:
    from pycocoevalcap.meteor import meteor

    # The program is spoken to here, since pycocoevalcap's class waits for ever when it fails.
    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = ["java", *_JAVA_OPTIONS, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        ) as process,
    ):

        def ask(*fields: str) -> str:
            process.stdin.write(" ||| ".join(fields) + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        try:
            statistics_of = [ask("SCORE", *texts, said[image_id][0]) for image_id, texts in written.items()]
            # It answers with the score of each image, then with that of all.
            ask("EVAL", *statistics_of)
            for _ in statistics_of:
                score = process.stdout.readline()
            return [float(score)]
        except (OSError, ValueError) as error:
            process.kill()
            errors.seek(0)
            raise _NotAvailable(f"METEOR's program ends early: {_last_line(errors.read())}") from error


def _spice(written: dict, said: dict) -> list[float]:
    from pycocoevalcap.spice import spice

    folder = Path(spice.__file__).parent
    if not (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").is_file():
        raise _NotAvailable(
            "lacks Stanford CoreNLP 3.6.0 (a download of 384 MB): run python -m pycocoevalcap.spice.get_stanford_models"
        )
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        items = [{"image_id": key, "test": said[key][0], "refs": texts} for key, texts in written.items()]
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
    # Without a number where neither the caption nor the references say anything.
    return [statistics.fmean(item["scores"]["All"]["f"] or 0.0 for item in scores)]


def _why_no_java() -> str | None:
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    # macOS has a java that only says where to get one.
    done = subprocess.run(["java", "-version"], capture_output=True)
    return f"java -version fails: {_last_line(done.stderr)}" if done.returncode else None


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it says nothing"

"""The documents name files, headings, functions, options and configuration keys that exist."""

import argparse
import ast
import importlib.util
import inspect
import itertools
import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode
from script_loading import ROOT, load_script

import bua.captioning.config
import bua.config
import bua.grounding.config
import bua.vqa.config
from bua.commands import command_names, run_command
from bua.config_files import find_config
from bua.download import CATALOG
from bua.extraction.engines import detectron2_plugin

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "datasets/README.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PROGRAMS = [str(path.relative_to(ROOT)) for folder in ("tools", "datasets") for path in (ROOT / folder).glob("*.py")]
PROGRAMS += [f"bua {name}" for name in command_names()]
README_LINES = 160
STATEMENTS = "Each statement of the documents"

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.<-])(?:tools|datasets|configs|bua|tests|benchmarks|docs)/[\w{},*./-]*")
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
DOTTED_NAME = re.compile(r"(?<![\w/.-])bua(?:\.\w+)+")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
KEY = re.compile(r"(?<![\w.-])[A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)+(?![\w.])")
ASSIGNMENT = re.compile(r'^(\w+)="(.*)"$')

# Configurations that a reader writes.
OWN_CONFIGURATIONS = {"mine.yaml"}
# Options in the documents that belong to programs of others.
OTHERS_OPTIONS = {"--no-build-isolation"}
# These programs, whose files and options are not checked.
OTHERS_PROGRAMS = ("convert_imgdir.py", "create_feats.py", "lmdb_conversion.py", "make_bu_data.py", "tsv_to_h5.py")
# Start of the names of configurations in Detectron2's model zoo.
DETECTRON2_ZOO = "COCO-Detection/"


class ParserIsReady(Exception):
    """Carries the parser of a program, and the name of the method that the program parses with."""


@pytest.fixture(params=DOCUMENTS)
def document(request) -> Path:
    return ROOT / request.param


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(name):
    document = ROOT / name
    broken = []
    for target in LINK.findall(without_code(document.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_tables_are_complete(document):
    table: list[list[str]] = []
    for line in [*FENCE.sub("", document.read_text()).splitlines(), ""]:
        if line.startswith("|"):
            # A vertical bar in a cell is escaped.
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if table:
            assert {len(row) for row in table} == {len(table[0])}, f"{table[0]}: rows differ in their number of cells"
            assert all(any(row) for row in table[1:]), f"{table[0]}: an empty row"
        table = []


def test_files_exist(document):
    text = document.read_text()
    missing = []
    for code in all_code(text):
        if any(program in code for program in OTHERS_PROGRAMS):
            continue
        for path in PATH.findall(code):
            # What lies in datasets/ besides its programs is data, which is not part of the repository.
            if path.startswith("datasets/") and not path.endswith((".py", ".md")):
                continue
            missing += [one for one in expand_braces(path.rstrip(".,")) if not any(ROOT.glob(one.rstrip("/")))]
    assert not missing


def test_tests_exist(document):
    missing = [
        f"{file}::{name}"
        for code in all_code(document.read_text())
        for file, name in TEST.findall(code)
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert not missing


def test_the_number_of_files_with_a_known_checksum_is_right():
    files = [file for data_set in CATALOG.values() for part in data_set.parts.values() for file in part.files]
    known = [file for file in files if file.checksum]
    assert f"for {len(known)} of the {len(files)} files of data sets" in (ROOT / "docs" / "trust.md").read_text()


def test_each_statement_of_the_documents_says_where_it_is_and_how_it_is_tested():
    section = (ROOT / "docs" / "reproducing.md").read_text().split(f"\n## {STATEMENTS}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|") and "---" not in line]
    assert len(rows) > 60
    for statement, place, test in rows:
        assert statement.strip()
        named = PATH.findall(place) or LINK.findall(place) or statement.strip() == "statement"
        assert named or place.strip().startswith("none"), statement
        assert "not measured" in test or "tests/" in test or place.strip().startswith("none") or test.strip() == "test"


def test_names_of_bua_exist(document):
    names = {name for code in all_code(document.read_text()) for name in DOTTED_NAME.findall(code)}
    for language, block in FENCE.findall(document.read_text()):
        if language == "python":
            names |= imported_names(block)
    if importlib.util.find_spec("detectron2") is None:
        names = {name for name in names if not name.startswith("bua.d2")}
    assert not [name for name in sorted(names) if not resolves(name)]


def test_calls_in_python_are_accepted(document):
    """Python examples call functions of bua with arguments that the functions have."""
    for language, block in FENCE.findall(document.read_text()):
        if language == "python" and not ("bua.d2" in block and importlib.util.find_spec("detectron2") is None):
            for name, call in calls(block):
                signature = inspect.signature(pkgutil.resolve_name(name))
                signature.bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})


def test_commands_are_accepted(document):
    """Every command line in a fence is parsed by the program's own parser."""
    for command in commands(document.read_text()):
        program, *arguments = command
        parser, method = parser_of(program)
        try:
            getattr(parser, method)(arguments)
        except SystemExit:
            pytest.fail(f"{program} does not accept: {shlex.join(arguments)}")


def test_configurations_exist(document):
    for _, *arguments in commands(document.read_text()):
        for option, value in itertools.pairwise(arguments):
            if option != "--config-file" or value in OWN_CONFIGURATIONS:
                continue
            if not value.startswith(DETECTRON2_ZOO):
                find_config(value)
            elif importlib.util.find_spec("detectron2") is not None:
                assert detectron2_plugin().find_in_zoo(value)


def test_options_exist(document):
    """Options in running text: those of the program that is named before them, else those of any program."""
    unknown = []
    for code in INLINE_CODE.findall(FENCE.sub("", document.read_text())):
        words = code.split()
        named = [program for program in PROGRAMS if words[: len(program.split())] == program.split()]
        if any(program in code for program in OTHERS_PROGRAMS):
            continue
        programs = named or PROGRAMS
        known = set().union(OTHERS_OPTIONS, *map(options_of, programs))
        if not words or not words[0].startswith("benchmarks/"):
            unknown += [f"{option} in `{code}`" for option in OPTION.findall(code) if option not in known]
    assert not unknown


def test_configuration_keys_exist(document):
    keys = {key for code in all_code(document.read_text()) for key in KEY.findall(code)}
    assert not sorted(keys - configuration_keys())


def without_code(text: str) -> str:
    return INLINE_CODE.sub("", FENCE.sub("", text))


def all_code(text: str) -> list[str]:
    """The code in fences and the inline code of a document."""
    return [block for _, block in FENCE.findall(text)] + INLINE_CODE.findall(FENCE.sub("", text))


@cache
def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def expand_braces(path: str) -> Iterator[str]:
    """The paths that a shell makes of ``path``: "a/{b,c}.py" gives "a/b.py" and "a/c.py"."""
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def imported_names(source: str) -> set[str]:
    """The names that Python source imports from bua, with their modules."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bua"
        for alias in node.names
    }


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """The calls of bua's functions and classes in Python source, with their full names."""
    full_names = {name.rpartition(".")[2]: name for name in imported_names(source)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            name = full_names.get(written, written)
            if name.startswith("bua."):
                yield name, node


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def commands(text: str) -> Iterator[list[str]]:
    """The command lines of bua's programs in the fences of a document, with shell variables replaced."""
    variables: dict[str, str] = {}
    for language, block in FENCE.findall(text):
        if language == "python":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip()
            if assignment := ASSIGNMENT.match(line):
                variables[assignment[1]] = assignment[2]
                continue
            for variable, value in variables.items():
                line = line.replace(f"${variable}", value)
            if line.startswith("bua "):
                _, name, *arguments = shlex.split(line, comments=True)
                yield [f"bua {name}", *arguments]
            elif line.startswith(("tools/", "python tools/", "python datasets/")):
                words = shlex.split(line, comments=True)
                yield words[1:] if words[0] == "python" else words


@cache
def parser_of(program: str) -> tuple[argparse.ArgumentParser, str]:
    """The parser of a command or of a program in tools/ or datasets/, and the name of the method that parses."""

    def capture(method: str):
        def parse(parser, args=None, namespace=None):
            raise ParserIsReady(parser, method)

        return parse

    with pytest.MonkeyPatch.context() as patch:
        for method in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, method, capture(method))
        try:
            if program.startswith("bua "):
                run_command(program.removeprefix("bua "), [])
            else:
                load_script(program).main([])
        except ParserIsReady as ready:
            return ready.args
    raise AssertionError(f"{program} parses no arguments")


@cache
def options_of(program: str) -> set[str]:
    parser, _ = parser_of(program)
    return {option for action in parser._actions for option in action.option_strings}


@cache
def configuration_keys() -> set[str]:
    """The keys, and the nodes, of the detector's configuration and of those of the tasks."""
    modules = (bua.config, bua.vqa.config, bua.captioning.config, bua.grounding.config)
    return {key for module in modules for key in keys_of(module.get_cfg())}


def keys_of(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{key}.")

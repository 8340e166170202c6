"""A hook of mkdocs that adds the documents outside docs/, and the pages of the reference, to the site.

On GitHub, links lead to files of the repository. On the site, links to documents lead to their pages, and links to
other files become text, since the site does not hold them.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Documents outside docs/, with the names of their pages.
DOCUMENTS = {
    "README.md": "about.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "datasets/README.md": "datasets.md",
}
# The public parts of bua, in the order of the reference.
PUBLIC = [
    "bua.pipelines",
    "bua.structures",
    "bua.extraction",
    "bua.features",
    "bua.modeling",
    "bua.detection",
    "bua.vqa",
    "bua.captioning",
    "bua.grounding",
    "bua.tasks",
    "bua.engine",
    "bua.precision",
    "bua.config",
    "bua.checkpoint",
    "bua.weights",
    "bua.d2",
    "bua.shapes",
    "bua.visual_genome",
    "bua.visualization",
    "bua.download",
    "bua.vocabulary",
    "bua.io",
    "bua.errors",
]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Adds the reference to the navigation."""
    assert config.nav is not None
    config.nav.append({"Reference": ["reference/index.md", *({name: _page_of(name)} for name in PUBLIC)]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the documents outside docs/, and the pages of the reference."""
    for document, page in DOCUMENTS.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/index.md", content=_index()))
    for name in PUBLIC:
        files.append(File.generated(config, _page_of(name), content=_reference(name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a document, outside its code."""
    pages = {name: document for document, name in DOCUMENTS.items()}
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    document = pages.get(uri, f"docs/{uri}")
    fences = [match.span() for match in FENCE.finditer(markdown)]

    def replace(match: re.Match) -> str:
        if any(start <= match.start() < end for start, end in fences):
            return match[0]
        return _rewritten(match[1], match[2], document, uri)

    markdown = re.sub(r"!\[([^\]]*)\]\(docs/", r"![\1](", markdown)
    return LINK.sub(replace, markdown)


def _rewritten(text: str, target: str, document: str, uri: str) -> str:
    """Returns a link of a document as its page has it."""
    path, _, anchor = target.partition("#")
    if not path or "://" in target:
        return f"[{text}]({target})"
    file = posixpath.normpath(posixpath.join(posixpath.dirname(document), path))
    if file in DOCUMENTS:
        page = DOCUMENTS[file]
    elif file.startswith("docs/"):
        page = file.removeprefix("docs/")
    else:
        return text
    page = posixpath.relpath(page, posixpath.dirname(uri) or ".")
    return f"[{text}]({page}{'#' if anchor else ''}{anchor})"


def _page_of(name: str) -> str:
    return f"reference/{name.removeprefix('bua.')}.md"


def _index() -> str:
    rows = "".join(f"| [`{name}`]({posixpath.basename(_page_of(name))}) | {_summary(name)} |\n" for name in PUBLIC)
    front = "`bua.pipeline` is [`bua.pipelines.pipeline`][bua.pipelines.pipeline]."
    return f"# Reference\n\n{front}\n\n| | |\n|---|---|\n{rows}"


def _reference(name: str) -> str:
    """Returns the page of a module, or of a package with the names that it exports and all its modules."""
    folder = ROOT.joinpath(*name.split("."))
    if not folder.is_dir():
        return f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n"
    exported = "".join(f"- [`{name}.{one}`][{full}]\n" for one, full in sorted(_exported(name).items()))
    imports = f"These names can be imported from `{name}`:\n\n{exported}\n" if exported else ""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(folder.rglob("*.py"))
        if path.stem != "__init__"
    ]
    # mkdocstrings leaves out what has no docstring, such as constants.
    constants = [full for full in _exported(name).values() if _is_constant(full)]
    parts = "".join(f"::: {part}\n\n" for part in [*constants, *modules])
    return f"# {name}\n\n{_docstring(name)}\n\n{imports}{parts}"


def _source(name: str) -> ast.Module:
    path = ROOT.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _docstring(name: str) -> str:
    return ast.get_docstring(_source(name)) or ""


def _summary(name: str) -> str:
    return " ".join(_docstring(name).partition("\n\n")[0].split())


def _exported(package: str) -> dict[str, str]:
    """Returns the names that a package and its sub-packages import for their users, with the full names."""
    names = {}
    for node in _source(package).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bua."):
            names |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _is_constant(full_name: str) -> bool:
    module, _, name = full_name.rpartition(".")
    defined = (node.name for node in _source(module).body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return name not in defined

"""One spelling and one notation, in the chapters, the pages and the package's docstrings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *ROOT.glob("book/src/*.md"),
    *ROOT.glob("book/*.md"),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
]
CODE = re.compile(
    r"^(`{3,})(?:\{code-cell\}|\{code-block\}|\{eval-rst\}|\{literalinclude\}|python|bibtex|mermaid)[^\n]*\n.*?^\1\n", re.S | re.M
)
WORDS = re.compile(r"`[^`\n]*`|\{cite[^}]*\}`[^`]*`|https?://\S+|^:label:.*$", re.M)
# What must not stand there, and what stands for it.
NOTATION = {
    r"L_\{?\\?(?:text|mathrm)?\{?(?:support|query|train|val)": r"L_\text{s}, L_\text{q}",
    r"\\mathcal\s*\{?L": "L",
    r"\\vartheta|\\phi\b": r"\theta, \varphi",
    r"\bmeta gradient|\bmeta-learning-rate": "meta-gradient, meta learning rate",
    r"\bhyper-?\s?param(?!eter)|\bhyper-parameter": "hyperparameter",
    r"\bmini-batch|\bpre-train|\bfew shot\b|\bdatasets?\b": "minibatch, pretrain, few-shot, data set",
}
AMERICAN = (
    r"\w*(?:behavior|optimiz|centered|initializ|generaliz|analyz|neighbor|favor|modeling|labeled|normaliz|regulariz|vectoriz|summariz|"
    r"minimiz|maximiz|standardiz|discretiz|parametriz|organiz|recogniz)\w*"
)


def prose(path):
    """The text of a page without its code."""
    return WORDS.sub("", CODE.sub("", path.read_text()))


def docstrings():
    for path in sorted((ROOT / "amaml_core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield (
                    f"{path.name}: {getattr(node, 'name', 'module')}",
                    re.sub(r"^>>>.*$|``[^`]*``|:\w+:`[^`]*`", "", text, flags=re.M),
                )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_have_one_notation_and_british_spelling(path):
    text = prose(path)
    assert [(found[0], instead) for wrong, instead in NOTATION.items() for found in re.finditer(wrong, text)] == []
    assert [found[0] for found in re.finditer(rf"\b{AMERICAN}\b", text, re.I)] == []


def test_docstrings_have_the_notation_of_the_book():
    wrong = re.compile("|".join(NOTATION))
    assert [(name, found[0]) for name, text in docstrings() for found in wrong.finditer(text)] == []


def test_the_lint_finds_what_it_is_for(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "We optimize $L_{query}$ on a dataset.\n\n```{code-cell} python3\ndataset.optimize(L_query)\n```\n\n`dataset`\n"
    )
    text = prose(page)
    assert re.findall(rf"\b{AMERICAN}\b", text) == ["optimize"] and len([1 for wrong in NOTATION if re.search(wrong, text)]) == 2

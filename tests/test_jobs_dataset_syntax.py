"""Middles are whole pieces of code, whatever the text; without a grammar they are whole lines."""

import ast
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset.fim import Draw
from jobs.dataset.syntax import SyntaxCutter

CODE = {
    "a.py": "import os\n\n\ndef area(width, height=2):\n    if width < 0:\n        raise ValueError(width)\n"
    "    total = sum(side * 2 for side in (width, height))\n    return total + area(width - 1, height)\n",
    "a.js": "function area(w, h) {\n  if (w < 0) { throw new Error(w); }\n  return helper(w * h, [w, h]);\n}\n",
    "a.ts": "export function area(w: number, h: number): number {\n  const total = w * h + 1;\n  return total;\n}\n",
    "a.tsx": "export const Box = (p: Props) => {\n  return <div className={p.name}>{render(p, 1)}</div>;\n};\n",
    "a.go": "package a\n\nfunc area(w int, h int) int {\n\tif w < 0 {\n\t\tpanic(w)\n\t}\n\treturn w * h\n}\n",
    "a.rs": "fn area(w: u32, h: u32) -> u32 {\n    let total = w * h;\n    helper(total, w + h)\n}\n",
    "a.java": "class A {\n  int area(int w, int h) {\n    if (w < 0) { throw new Bad(w); }\n    return w * h;\n  }\n}",
    "a.c": "int area(int w, int h) {\n  if (w < 0) {\n    abort();\n  }\n  return helper(w * h, w);\n}\n",
    "a.cpp": "int area(int w, int h) {\n  auto total = std::max(w, h);\n  return total * helper(w, h);\n}\n",
}


SCRAPS = ["def f(é):\n", "  x\n", "{", "}", "(", '"', "\ufdf0", "\ufdd0(a, b)\n", "\r\n"]


@pytest.fixture(scope="module")
def cutter():
    return SyntaxCutter()


def draw(number=0):
    return Draw.of(17, f"{number}".encode())


def cuts(cutter, path, text, count=60):
    return [cutter.cut(path, text, draw(number)) for number in range(count)]


@settings(max_examples=200, deadline=None)
@given(
    path=st.sampled_from([*CODE, "a.rb", "Makefile"]),
    text=st.one_of(
        st.text(max_size=300),
        st.lists(st.sampled_from(["def f(é):\n", "  x\n", "{", "}", "ﷰ", "\ufdd0(a, b)\n", "\r\n"])).map("".join),
    ),
    number=st.integers(0, 1000),
)
def test_any_text_is_cut_in_three_or_not_at_all(cutter, path, text, number):
    cut = cutter.cut(path, text, draw(number))
    if cut is not None:
        assert cut.prefix + cut.middle + cut.suffix == text
        assert 8 <= len(cut.middle.encode()) <= 4000
        assert cut.middle.strip()


@pytest.mark.parametrize("path", CODE)
def test_every_text_with_a_grammar_is_cut_at_several_places(cutter, path):
    found = cuts(cutter, path, CODE[path])
    assert all(found)
    assert len({cut.middle for cut in found}) >= 4


def test_middles_of_python_are_statements_blocks_and_expressions(cutter):
    pytest.importorskip("tree_sitter_python")
    middles = {cut.middle for cut in cuts(cutter, "a.py", CODE["a.py"], 300)}
    assert {"raise ValueError(width)", "(width, height=2)", "total + area(width - 1, height)"} <= middles
    assert CODE["a.py"][CODE["a.py"].index("if width") :].rstrip() in middles
    for middle in middles - {"(width, height=2)"}:
        if not middle.startswith(("for ", "height=")):
            column = len(CODE["a.py"][: CODE["a.py"].index(middle)].rpartition("\n")[2])
            block = textwrap.indent(textwrap.dedent(" " * column + middle), "    ")
            ast.parse(f"def f():\n{block}")


def test_middles_are_structure_not_words(cutter):
    pytest.importorskip("tree_sitter_python")
    text = '# a long comment about nothing\nname = "a string of some length"\nvalue = call(name)\n'
    middles = {cut.middle for cut in cuts(cutter, "a.py", text)}
    assert middles
    assert not {'"a string of some length"', "# a long comment about nothing"} & middles


def test_letters_beyond_ascii_move_no_cut(cutter):
    pytest.importorskip("tree_sitter_python")
    text = "# é 日本 \ufdd0\n" + CODE["a.py"]
    middles = {cut.middle for cut in cuts(cutter, "a.py", text, 300)}
    assert "raise ValueError(width)" in middles


def test_broken_code_is_cut_all_the_same(cutter):
    broken = CODE["a.py"][30:].replace(")", "", 2)
    assert all(cuts(cutter, "a.py", broken))


def test_without_a_grammar_the_middle_is_whole_lines_or_an_indented_block(cutter):
    text = CODE["a.py"]
    lines = {line.strip() for line in text.split("\n")}
    middles = {cut.middle for cut in cuts(cutter, "a.rb", text, 200)}
    assert all(line.strip() in lines for middle in middles for line in middle.split("\n"))
    assert text[text.index("if width") :].rstrip() in middles


def test_a_machine_without_tree_sitter_cuts_by_lines(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tree_sitter", None)
    cutter = SyntaxCutter()
    assert cutter.version == "rules 1"
    assert cuts(cutter, "a.py", CODE["a.py"]) == cuts(SyntaxCutter(), "a.rb", CODE["a.py"])


def test_the_version_names_every_grammar_that_the_cuts_hang_on(cutter):
    pytest.importorskip("tree_sitter_python")
    assert "tree-sitter-python" in cutter.version
    assert "tree-sitter " in cutter.version


def test_the_same_draw_is_the_same_cut_for_another_cutter(cutter):
    assert cuts(cutter, "a.py", CODE["a.py"]) == cuts(SyntaxCutter(), "a.py", CODE["a.py"])


def test_a_text_too_large_to_parse_is_cut_by_lines(cutter, monkeypatch):
    monkeypatch.setattr("jobs.dataset.syntax._MOST_PARSED", 10)
    assert cuts(cutter, "a.py", CODE["a.py"]) == cuts(cutter, "a.rb", CODE["a.py"])

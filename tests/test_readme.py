"""The English and the Chinese README say the same, and every link of the documentation leads to a file."""

import re

import pytest

from tests.conftest import ROOT

ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README_zh.md"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE, NUMBER = re.compile(r"`[^`\n]+`"), re.compile(r"\d[\d,]*(?:\.\d+)*")


def sections(path):
    """Return (level of the heading, text below it) for each section of a page, without code blocks."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    parts = re.split(r"^(#+) .*$", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2]))


def tables(text):
    """Return the tables of a text, each a list of rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", text + "\n", flags=re.MULTILINE)
    return [[row.strip("|").split("|") for row in table.splitlines()] for table in found]


def code_and_numbers(text):
    """Return the code and the numbers in a text, sorted, since the two languages may order them differently."""
    code = CODE.findall(text)
    prose = CODE.sub(" ", re.sub(r"\]\([^)]*\)", "]", text))
    # A comma or a full stop may follow a number.
    return sorted(code), sorted(number.rstrip(",.") for number in NUMBER.findall(prose))


def test_headings_have_the_same_levels():
    levels = [[level for level, _ in sections(path)] for path in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_commands_and_outputs_are_the_same():
    english, chinese = (BLOCK.findall(path.read_text(encoding="utf-8")) for path in (ENGLISH, CHINESE))
    assert english == chinese
    assert len(english) > 6


@pytest.mark.parametrize("number", range(len(sections(ENGLISH))))
def test_tables_code_and_figures_of_each_section_are_the_same(number):
    english, chinese = (sections(path)[number][1] for path in (ENGLISH, CHINESE))
    assert code_and_numbers(english) == code_and_numbers(chinese)
    pairs = list(zip(tables(english), tables(chinese)))
    assert len(tables(english)) == len(tables(chinese))
    for one, other in pairs:
        assert [len(row) for row in one] == [len(row) for row in other]
        for row, translated in zip(one, other):
            assert [code_and_numbers(cell) for cell in row] == [code_and_numbers(cell) for cell in translated]


def test_links_of_both_lead_to_the_same_places():
    links = [re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")) for path in (ENGLISH, CHINESE)]
    assert links[0][0] == "README_zh.md"
    assert links[1][0] == "README.md"
    assert sorted(links[0][1:]) == sorted(links[1][1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in link:
            assert (page.parent / link).exists(), link

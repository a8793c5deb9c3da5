import ast

import pytest

from etude.data.extract import docstrings, hypertext, restructured, wikitext, without_docstrings

PAGE = """{{Infobox|name={{lang|el|x}}|size=3}}
'''Anarchism''' (; {{IPA|x}}) is a [[political philosophy|philosophy]] of \
[[self-governance]].<ref name=a>Book</ref>
[[File:Flag.svg|thumb|A [[black flag]] here]]
{| class="wikitable"
| cell
|}
== History ==
It began &amp; grew<ref name="b" /> in the [http://example.org/x 19th century].
=== Empty ===
== Lists ==
* one
* [[two|second]]
== References ==
{{reflist}}
"""


def test_a_wiki_page_becomes_running_text_without_markup_or_references():
    assert wikitext(PAGE) == (
        "Anarchism is a philosophy of self-governance.\n\n"
        "History\n\n"
        "It began & grew in the 19th century.\n\n"
        "Lists\n\n"
        "- one\n- second"
    )


def test_templates_nested_in_templates_leave_nothing():
    assert wikitext("a {{x|{{y|{{z}}}}|[[k]]}} b.") == "a b."


def test_html_keeps_paragraphs_lists_and_code_and_drops_scripts():
    source = (
        "<p>Creates a <code>Bucket</code>.</p><script>var x = 1;</script>"
        "<ul><li><p>first &lt;one&gt;</p></li><li>second</li></ul><p></p>end"
    )
    assert hypertext(source) == ("Creates a `Bucket`.\n\n- first <one>\n\n- second\n\nend")


def test_a_list_item_is_one_line_even_with_a_paragraph_inside():
    assert hypertext("<ul><li> <p>a</p> </li></ul>") == "- a"


SOURCE = '''"""Module text."""


class A:  # a comment stays
    """Class text."""

    def f(self):
        """Method text:

            indented.
        and not.
        """

    async def g(self): "inline"; return 1
'''


def test_docstrings_are_found_with_their_qualified_names_and_without_running_the_source():
    found = dict(docstrings(SOURCE + "\nraise SystemExit", "pkg.mod"))
    assert found["pkg.mod"] == "Module text."
    assert found["pkg.mod.A"] == "Class text."
    assert found["pkg.mod.A.f"] == "Method text:\n\n    indented.\nand not."


def test_code_without_docstrings_still_parses_and_keeps_its_comments():
    bare = without_docstrings(SOURCE)
    ast.parse(bare)
    assert "text" not in bare
    assert "inline" not in bare
    assert "# a comment stays" in bare
    assert "return 1" in bare
    assert list(docstrings(bare, "m")) == []


def test_a_file_that_is_not_python_is_refused():
    with pytest.raises(SyntaxError):
        without_docstrings("print 1")


def test_restructured_text_loses_its_roles_directives_and_rules():
    source = (
        "Solve\n=====\n\nUse :func:`~torch.add` or ``x``.\n\n.. versionadded:: 1.2\n\n"
        ".. note:: mind this\n\n.. math:: a + b\n\n.. _target:\n\nReferences\n\n.. [1] A book."
    )
    assert restructured(source) == (
        "Solve\n\nUse `torch.add` or `x`.\n\nNote: mind this\n\na + b\n\nReferences\n\n[1] A book."
    )

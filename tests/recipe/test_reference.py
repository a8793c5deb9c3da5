"""The recipe reference of the documentation holds every class that a recipe may."""

import importlib.util
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

from etude import recipe

SOURCE = Path(__file__).parents[2] / "docs/reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", SOURCE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_every_description_in_the_package_is_in_the_reference(reference):
    names = [module.name for module in pkgutil.iter_modules(recipe.__path__, "etude.recipe.")]
    every = {cls for name in names for cls in reference.described(import_module(name))}
    shown = {reference.stages.Recipe, *reference.kinds(), *reference.values()}
    built_on = {base for cls in shown for base in cls.__mro__[1:]}
    assert len(every) > 60 and every <= shown | built_on


def test_each_heading_is_there_once_and_each_link_leads_to_one(reference, tmp_path):
    reference.write(tmp_path / "built" / "recipe.md")
    text = (tmp_path / "built" / "recipe.md").read_text()
    heads = [h.lower().replace(" ", "-") for h in re.findall(r"^### (.*)$", text, re.MULTILINE)]
    assert len(heads) == len(set(heads))
    links = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert {"cispo", "sampled", "budget-in-rewards"} <= links <= set(heads)

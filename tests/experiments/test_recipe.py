"""Recipes: what is refused, what a sweep becomes, which cells are the same."""

from __future__ import annotations

import pytest

from kvnet.errors import RecipeInvalid
from kvnet.experiments.recipe import Recipe, shipped_names

KEEP = """
[recipe]
name = "keep"
protocol = "keep"
version = 1
question = "How much can be lost?"
seeds = 2

[[margins]]
metric = "right"
at_most = 0.1

[parameters]
model = "ref-a"
fraction = 0.5
lessons = 40
layers = [0, 1]

[quick]
lessons = 2
"""


def keep() -> Recipe:
    return Recipe.parse(KEEP, where="keep")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipe_is_whole_and_names_its_question(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == recipe.protocol == name
    assert recipe.question.endswith("?")
    assert recipe.cells()
    assert len(recipe.quickened().cells()) == 1
    assert Recipe.from_plain(recipe.to_plain(), where=name) == recipe


def test_sweep_is_every_combination_with_every_seed() -> None:
    cells = keep().cells({"fraction": [0.25, 1], "lessons": [1, 2, 3]})
    assert len(cells) == len({cell.id for cell in cells}) == 2 * 3 * 2
    assert cells[0].parameters == {"model": "ref-a", "fraction": 0.25, "lessons": 1, "layers": [0, 1]}
    assert [cell.seed for cell in cells[:2]] == [0, 1]


def test_cell_is_the_same_wherever_it_is_measured_and_another_with_other_weights() -> None:
    recipe = keep()
    (first,) = recipe.cells({"fraction": [0.5]}, [7], fingerprints={"ref-a": "sha256:aa"})
    (again,) = recipe.cells({"fraction": [0.5], "lessons": [40]}, [7], fingerprints={"ref-a": "sha256:aa"})
    (other,) = recipe.cells({"fraction": [0.5]}, [7], fingerprints={"ref-a": "sha256:bb"})
    assert first.id == again.id != other.id
    assert other.parameters["model"] == "ref-a"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = 2", "sedes = 2"), r"unknown key 'sedes'; known are name, protocol"),
        (("[quick]", "[quack]"), r"unknown section 'quack'"),
        (("lessons = 2", "lesons = 2"), r"unknown key 'lesons'; keep takes model, fraction"),
        (("lessons = 2", 'lessons = "two"'), r"lessons: 'two', wanted a whole number"),
        (("version = 1", 'version = "one"'), r"version is 'one', wanted int"),
        (("seeds = 2", "seeds = 0"), r"seeds is 0, wanted a number from 1"),
        (("at_most = 0.1", "at_least = 0.1"), r"unknown field 'at_least'"),
        (("[recipe]", "[recipe"), r"no TOML"),
    ],
)
def test_recipe_that_says_something_unknown_is_refused(change: tuple[str, str], said: str) -> None:
    with pytest.raises(RecipeInvalid, match=said):
        Recipe.parse(KEEP.replace(*change), where="keep")


def test_own_recipe_may_change_values_of_its_protocol_but_not_invent_parameters() -> None:
    own = '[recipe]\nname = "mine"\nprotocol = "keep"\nversion = 1\nquestion = "?"\n[parameters]\n'
    mine = Recipe.parse(own + "lessons = 3\n", where="mine.toml", base=lambda protocol: keep())
    assert mine.parameters == {**keep().parameters, "lessons": 3}
    assert (mine.name, mine.margins) == ("mine", keep().margins)
    with pytest.raises(RecipeInvalid, match="unknown key 'colour'; keep takes"):
        Recipe.parse(own + "colour = 3\n", where="mine.toml", base=lambda protocol: keep())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("fraction=0.25,1", [0.25, 1.0]),
        ("model=ref-a,ref-b", ["ref-a", "ref-b"]),
        ("layers=[0],[0,1]", [[0], [0, 1]]),
    ],
)
def test_sweep_of_a_command_line_has_the_parameters_type(text: str, values: list[object]) -> None:
    assert list(keep().parse_sweep([text]).values()) == [values]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour=red", "unknown key 'colour'"),
        ("fraction", "wanted key=value,value"),
        ("lessons=a", "wanted values as in JSON"),
        ("lessons=0.5", "0.5, wanted a whole number"),
    ],
)
def test_sweep_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeInvalid, match=said):
        keep().parse_sweep([text])


def test_unknown_recipe_is_refused_with_those_that_ship() -> None:
    with pytest.raises(RecipeInvalid, match="none ships under this name; give a"):
        Recipe.load("nothing")

"""Recipes: which protocol is run with which parameters, as TOML. A sweep of one becomes cells.

A protocol's parameters are those of the recipe that ships under its name in `recipes/`; a recipe of one's own
names that protocol and changes values. Knows no models: what a model's weights are is told by `fingerprints`.

    [recipe]
    name = "layers"              # also the name of its runs
    protocol = "layers"
    version = 1                  # of the protocol
    question = "Which layers carry what?"
    seeds = 2                    # how many, from 0; 1 if not given

    [[margins]]                  # what counts as not worse; any number
    metric = "right"
    at_most = 0.05

    [parameters]                 # text, numbers, booleans, lists of them
    model = "ref-a"
    lessons = 40

    [sweep]                      # may be left out; a parameter takes each value in turn
    layer = [0, 1, 2]

    [quick]                      # may be left out; instead of the parameters' values with --quick
    lessons = 4
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kvnet.errors import MalformedMessage, RecipeInvalid
from kvnet.experiments.record import Margin
from kvnet.format import strict_json
from kvnet.types import sha256_hex

_HEAD = ("name", "protocol", "version", "question", "seeds")
_SECTIONS = ("recipe", "margins", "parameters", "sweep", "quick")


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a sweep. `id` is the same wherever and whenever the same would be measured."""

    id: str  # sha256, hex
    parameters: Mapping[str, Any]
    seed: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose every parameter has a value of the type that its protocol takes."""

    name: str
    protocol: str
    version: int
    question: str
    parameters: Mapping[str, Any]
    seeds: int = 1
    margins: tuple[Margin, ...] = ()
    sweep: Mapping[str, Sequence[Any]] | None = None
    quick: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, path_or_name: str | Path) -> Recipe:
        """A file that ends in .toml, or a shipped recipe. Raises RecipeInvalid, in one sentence."""
        name = str(path_or_name)
        if not name.endswith(".toml"):
            return _shipped(name)
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise RecipeInvalid(f"recipe {name}: cannot be read ({exc}); give a TOML file") from exc
        return cls.parse(text, where=name, base=_shipped)

    @classmethod
    def parse(cls, text: str, *, where: str, base: Any = None) -> Recipe:
        """A recipe from TOML. `base(protocol)` gives the recipe whose parameters it may change, if any."""
        try:
            plain = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise RecipeInvalid(f"recipe {where}: no TOML ({exc})") from exc
        return cls.from_plain(plain, where=where, base=base)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], *, where: str, base: Any = None) -> Recipe:
        """A recipe from parsed TOML, or from what `to_plain` made."""
        _refuse_unknown(plain, _SECTIONS, where, "section")
        head = plain.get("recipe", {})
        _refuse_unknown(head, _HEAD, f"{where} [recipe]", "key")
        for key, wanted in (("name", str), ("protocol", str), ("version", int), ("question", str)):
            if type(head.get(key)) is not wanted:
                raise RecipeInvalid(
                    f"recipe {where} [recipe]: {key} is {head.get(key)!r:.40}, wanted {wanted.__name__}"
                )
        try:
            margins = tuple(
                strict_json.from_plain(Margin, entry, what=f"recipe {where} [[margins]]")
                for entry in plain.get("margins", ())
            )
        except MalformedMessage as exc:
            raise RecipeInvalid(exc.message) from exc
        recipe = cls(
            name=head["name"],
            protocol=head["protocol"],
            version=head["version"],
            question=head["question"],
            parameters=plain.get("parameters", {}),
            seeds=head.get("seeds", 1),
            margins=margins,
            sweep=plain.get("sweep") or None,
            quick=plain.get("quick") or None,
        )
        if type(recipe.seeds) is not int or recipe.seeds < 1:
            raise RecipeInvalid(
                f"recipe {where} [recipe]: seeds is {recipe.seeds!r:.40}, wanted a number from 1"
            )
        return recipe._on(base(recipe.protocol) if base else recipe, where)

    def to_plain(self) -> dict[str, Any]:
        """As `from_plain` takes it, ready for a manifest."""
        head = {key: getattr(self, key) for key in _HEAD}
        return {
            "recipe": head,
            "margins": [asdict(margin) for margin in self.margins],
            "parameters": dict(self.parameters),
            "sweep": {key: list(values) for key, values in (self.sweep or {}).items()},
            "quick": dict(self.quick or {}),
        }

    def quickened(self) -> Recipe:
        """With the values of `[quick]`; for looking whether something runs, not for figures."""
        quick = dict(self.quick or {})
        sweep = {key: values for key, values in (self.sweep or {}).items() if key not in quick}
        return replace(self, parameters={**self.parameters, **quick}, sweep=sweep or None, seeds=1)

    def cells(
        self,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        seeds: Iterable[int] | None = None,
        *,
        fingerprints: Mapping[str, str] | None = None,
    ) -> tuple[Cell, ...]:
        """Every combination of the sweep's values with every seed, in the order given.

        `sweep` is laid over the recipe's own; `seeds` defaults to the recipe's. `fingerprints` tells what a
        parameter's text stands for (a model's name: its weights, a file's path: its contents), so that a
        cell's id changes with it. Raises RecipeInvalid for a key that is no parameter and for a value of
        another type.
        """
        swept = {**(self.sweep or {}), **(sweep or {})}
        for key, values in swept.items():
            _check_sweep(self, key, values)
        points = itertools.product(*swept.values())
        listed = list(range(self.seeds)) if seeds is None else list(seeds)
        return tuple(
            self._cell({**self.parameters, **dict(zip(swept, point, strict=True))}, seed, fingerprints or {})
            for point in points
            for seed in listed
        )

    def parse_sweep(self, texts: Iterable[str]) -> dict[str, list[Any]]:
        """`key=a,b,c` of a command line, as values of the parameter's type. Raises RecipeInvalid."""
        found: dict[str, list[Any]] = {}
        for text in texts:
            key, equals, values = text.partition("=")
            if not equals or not values:
                raise RecipeInvalid(f"--sweep {text!r:.80}: wanted key=value,value")
            if key not in self.parameters:
                raise RecipeInvalid(f"--sweep {key}: {_no_parameter(self, key)}")
            found[key] = _values(values, self.parameters[key], f"--sweep {key}")
        return found

    def _cell(self, parameters: dict[str, Any], seed: int, fingerprints: Mapping[str, str]) -> Cell:
        named = {key: _stands_for(value, fingerprints) for key, value in parameters.items()}
        told = {"protocol": self.protocol, "version": self.version, "parameters": named, "seed": seed}
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return Cell(sha256_hex(text.encode()), parameters, seed)

    def _on(self, base: Recipe, where: str) -> Recipe:
        """With the parameters of `base` where this one names none."""
        for section in ("parameters", "sweep", "quick"):
            for key, value in (getattr(self, section) or {}).items():
                if key not in base.parameters:
                    raise RecipeInvalid(f"recipe {where} [{section}]: {_no_parameter(base, key)}")
                if section == "sweep":
                    _check_sweep(base, key, value)
                else:
                    _check_type(value, base.parameters[key], f"recipe {where} [{section}] {key}")
        if self.version != base.version:
            raise RecipeInvalid(
                f"recipe {where}: for version {self.version} of {self.protocol}, here is {base.version}"
            )
        if base is self:
            return self
        quick = {key: value for key, value in (base.quick or {}).items() if key not in self.parameters}
        return replace(
            self,
            parameters={**base.parameters, **self.parameters},
            margins=self.margins or base.margins,
            sweep=self.sweep
            or {key: v for key, v in (base.sweep or {}).items() if key not in self.parameters}
            or None,
            quick={**quick, **(self.quick or {})} or None,
        )


def shipped_names() -> tuple[str, ...]:
    """The recipes that come with the package, which are also the protocols."""
    folder = resources.files("kvnet.experiments") / "recipes"
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    )


def _shipped(name: str) -> Recipe:
    if name not in shipped_names():
        known = ", ".join(shipped_names())
        raise RecipeInvalid(
            f"recipe {name!r:.60}: none ships under this name; give a .toml file or one of {known}"
        )
    text = (resources.files("kvnet.experiments") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    return Recipe.parse(text, where=name)


def _refuse_unknown(given: Any, known: Sequence[str], where: str, what: str) -> None:
    if not isinstance(given, Mapping):
        raise RecipeInvalid(f"recipe {where}: got {type(given).__name__}, wanted a table")
    for key in given:
        if key not in known:
            raise RecipeInvalid(f"recipe {where}: unknown {what} {key!r:.60}; known are {', '.join(known)}")


def _no_parameter(recipe: Recipe, key: str) -> str:
    return f"unknown key {key!r:.60}; {recipe.protocol} takes {', '.join(recipe.parameters)}"


def _check_sweep(recipe: Recipe, key: str, values: Any) -> None:
    if key not in recipe.parameters:
        raise RecipeInvalid(f"sweep of {recipe.name}: {_no_parameter(recipe, key)}")
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise RecipeInvalid(f"sweep of {recipe.name}: {key} is {values!r:.40}, wanted a list of values")
    for value in values:
        _check_type(value, recipe.parameters[key], f"sweep of {recipe.name}: {key}")


def _check_type(value: Any, like: Any, where: str) -> None:
    """A value fits where its type does; a whole number is a number."""
    if type(value) is type(like) or (type(value) is int and type(like) is float):
        return
    wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
    raise RecipeInvalid(f"{where}: {value!r:.40}, wanted {wanted.get(type(like), 'another type')}")


def _values(text: str, like: Any, where: str) -> list[Any]:
    if isinstance(like, str):
        return text.split(",")
    try:
        found = json.loads(f"[{text}]")
    except ValueError as exc:
        raise RecipeInvalid(f"{where}: {text!r:.60}, wanted values as in JSON between commas") from exc
    for value in found:
        _check_type(value, like, where)
    return [float(value) if isinstance(like, float) else value for value in found]


def _stands_for(value: Any, fingerprints: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_stands_for(entry, fingerprints) for entry in value]
    return fingerprints.get(value, value) if isinstance(value, str) else value

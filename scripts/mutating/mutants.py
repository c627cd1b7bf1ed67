"""Finds the checks in a module's source and takes one away. Knows syntax trees; runs nothing.

A check is a `raise` or a `return False`; one operand of an `and` or `or`, or one link of `a <= b <= c`, that
decides one of these or is a value of its own; and a call, as a statement, of a function that checks. With
boundaries also each `<`, `<=`, `>` and `>=`, which becomes its neighbour.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

CHECKING = ("check", "require", "verify", "refuse")
_NEIGHBOURS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One check less. `node` counts in the order of ast.walk, `part` among the operands of that node."""

    path: str
    line: int
    function: str
    kind: str  # raise, refusal, call, operand, link or boundary
    removed: str  # the source that is gone, on one line
    node: int
    part: int = 0


def find_mutants(path: str, source: str, *, with_boundaries: bool = False) -> list[Mutant]:
    """Every check of a module, in the order of its lines."""
    tree = ast.parse(source)
    number = {id(node): i for i, node in enumerate(ast.walk(tree))}
    found = []
    for function, statement in _statements(tree, ()):
        for kind, node, part, removed in _checks(statement, with_boundaries=with_boundaries):
            text = " ".join((ast.get_source_segment(source, removed) or "").split())
            place = ".".join(function)
            found.append(Mutant(path, removed.lineno, place, kind, text, number[id(node)], part))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.node, mutant.part))


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module without that check."""
    tree = ast.parse(source)
    wanted = list(ast.walk(tree))[mutant.node]
    changed = ast.fix_missing_locations(_Change(wanted, mutant).visit(tree))
    assert isinstance(changed, ast.Module)
    return changed


def _statements(node: ast.AST, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ast.stmt]]:
    """Every statement within a function, with the names of the functions and classes around it."""
    for child in ast.iter_child_nodes(node):
        inner = (*place, child.name) if isinstance(child, _NAMED) else place
        if place and isinstance(child, ast.stmt):
            yield place, child
        yield from _statements(child, inner)


def _checks(
    statement: ast.stmt, *, with_boundaries: bool
) -> Iterator[tuple[str, ast.AST, int, ast.expr | ast.stmt]]:
    """Kind, the node that changes, which of its operands, and what is removed."""
    match statement:
        case ast.Raise():
            yield "raise", statement, 0, statement
        case ast.Return(value=ast.Constant(value=False)):
            yield "refusal", statement, 0, statement
        case ast.Expr(value=ast.Call(func=called)) if _name(called).lstrip("_").startswith(CHECKING):
            yield "call", statement, 0, statement
        case ast.If(test=test) if any(_refuses(one) for one in statement.body):
            yield from _operands(test, with_boundaries=with_boundaries)
        case ast.Return(value=ast.BoolOp() | ast.Compare() as value):
            yield from _operands(value, with_boundaries=with_boundaries)
        case ast.Assign(value=ast.BoolOp() | ast.Compare() as value):
            yield from _operands(value, with_boundaries=with_boundaries)


def _operands(
    test: ast.expr, *, with_boundaries: bool
) -> Iterator[tuple[str, ast.AST, int, ast.expr | ast.stmt]]:
    for node in ast.walk(test):
        if isinstance(node, ast.BoolOp):
            yield from (("operand", node, i, value) for i, value in enumerate(node.values))
        if isinstance(node, ast.Compare):
            if len(node.ops) > 1:
                yield from (("link", node, i, (node.left, *node.comparators)[i * 2]) for i in (0, 1))
            if with_boundaries:
                yield from (
                    ("boundary", node, i, node) for i, op in enumerate(node.ops) if type(op) in _NEIGHBOURS
                )


def _refuses(statement: ast.stmt) -> bool:
    match statement:
        case ast.Raise() | ast.Return(value=ast.Constant(value=False)):
            return True
    return False


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


class _Change(ast.NodeTransformer):
    def __init__(self, wanted: ast.AST, mutant: Mutant) -> None:
        self._wanted = wanted
        self._mutant = mutant

    def visit(self, node: ast.AST) -> ast.AST:
        """The node without what the mutant removes, where it is the one that is meant."""
        if node is not self._wanted:
            return self.generic_visit(node)
        part = self._mutant.part
        match self._mutant.kind, node:
            case "operand", ast.BoolOp(values=values):
                left = values[:part] + values[part + 1 :]
                return left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
            case "link", ast.Compare(left=left, ops=[first, second], comparators=[middle, last]):
                return (
                    ast.Compare(middle, [second], [last])
                    if part == 0
                    else ast.Compare(left, [first], [middle])
                )
            case "boundary", ast.Compare(left=left, ops=ops, comparators=comparators):
                moved = [*ops[:part], _NEIGHBOURS[type(ops[part])](), *ops[part + 1 :]]
                return ast.Compare(left, moved, comparators)
        return ast.copy_location(ast.Pass(), node)

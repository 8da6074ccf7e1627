"""What can be changed in a module so that its tests should notice: all sites, in a fixed order.

Left alone is what is no behaviour: docstrings, annotations, imports, `assert`, `__all__`, what
stands under TYPE_CHECKING, arguments of `@dataclass`, and the words of a `raise`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
    ast.Eq: ast.NotEq,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
}
_COMPARISONS |= {to: of for of, to in _COMPARISONS.items()}
_BOUNDARIES = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_ARITHMETIC = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.FloorDiv: ast.Mod}
_ARITHMETIC |= {to: of for of, to in _ARITHMETIC.items()}
_EXTREMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}
_SKIPPED_FIELDS = ("annotation", "returns")

# An operator's name, and what stands in the place of a node.
Change = tuple[str, ast.AST]


@dataclass(frozen=True)
class Site:
    """One change of one module; ``code`` is the line it is in, ``at`` where in that line.

    Those two, the function, the operator and both texts name a change also when lines have moved.
    """

    line: int
    column: int
    function: str
    code: str
    at: int
    operator: str
    before: str
    after: str
    mutated: str


@dataclass(frozen=True)
class _Slot:
    """Where a node hangs, so that another can hang there."""

    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    function: str

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def sites(source: str) -> list[Site]:
    """Every change of a module's text, in the order of its syntax tree.

    The mutated text is what `ast.unparse` makes, so it has no comments and lines of its own.
    """
    tree, lines, found = ast.parse(source), source.splitlines(), []
    for slot in list(_slots(tree, "", False)):
        for operator, new in _changes(slot.node):
            slot.put(new)
            mutated = ast.unparse(tree)
            slot.put(slot.node)
            line, column = _place(slot.node)
            code = lines[line - 1]
            at = column - (len(code) - len(code.lstrip()))
            before, after = _shown(slot.node), _shown(new)
            where = (line, column + 1, slot.function, code.strip(), at)
            found.append(Site(*where, operator, before, after, mutated))
    return found


def _place(node: ast.AST) -> tuple[int, int]:
    placed = node.target if isinstance(node, ast.comprehension) else node
    # A slice, a statement and an expression have their place; nothing else is changed.
    return getattr(placed, "lineno", 1), getattr(placed, "col_offset", 0)


def _shown(node: ast.AST) -> str:
    """One line; of an `if` only its condition."""
    if isinstance(node, ast.If):
        first = _shown(node.body[0])
        return f"if {ast.unparse(node.test)}: {first}" + (" else: ..." if node.orelse else "")
    return " ".join(ast.unparse(node).split())


def _slots(node: ast.AST, function: str, in_raise: bool) -> Iterator[_Slot]:
    """Every node that may be changed, below and without `node`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}".lstrip(".")
    in_raise = in_raise or isinstance(node, ast.Raise)
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED_FIELDS:
            continue
        several = isinstance(value, list)
        for i, child in enumerate(value if several else [value]):
            if isinstance(child, ast.AST) and not _left_alone(child, in_raise):
                yield _Slot(node, field, i if several else None, child, function)
                yield from _slots(child, function, in_raise)


def _left_alone(node: ast.AST, in_raise: bool) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Expr(ast.Constant()):
            return True
        case ast.Assign([ast.Name("__all__")]) | ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.Call(ast.Name("dataclass" | "TypeVar" | "cast")):
            return True
        case ast.JoinedStr() | ast.Constant(str()):
            return in_raise
    return False


def _changes(node: ast.AST) -> Iterator[Change]:
    yield from _changed_expression(node)
    yield from _changed_condition(node)
    yield from _changed_statement(node)


def _changed_expression(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Compare(left, ops, others):
            for i, op in enumerate(ops):
                swapped = [*ops[:i], _COMPARISONS[type(op)](), *ops[i + 1 :]]
                yield "comparison", ast.Compare(left, swapped, others)
        case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
            yield "arithmetic", ast.BinOp(left, _ARITHMETIC[type(op)](), right)
        case ast.BoolOp(op, values):
            yield "and/or", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield "not", operand
        case ast.Call(ast.Name(name), args, keywords) if name in _EXTREMES:
            yield "min/max", ast.Call(ast.Name(_EXTREMES[name]), args, keywords)
        case ast.Call(ast.Attribute(value, name), args, keywords) if name in _EXTREMES:
            yield "min/max", ast.Call(ast.Attribute(value, _EXTREMES[name]), args, keywords)
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)) if value + 1 != value:
            yield "constant", ast.Constant(value + 1)
        case ast.Constant(str(value)) if value:
            yield "text", ast.Constant("")
        case ast.Slice(lower, upper, step):
            if lower:
                yield "slice", ast.Slice(None, upper, step)
            if upper:
                yield "slice", ast.Slice(lower, None, step)


def _changed_condition(node: ast.AST) -> Iterator[Change]:
    """The condition turned around; where there is an `else` that is to swap the branches."""
    match node:
        case ast.If(test, body, []) if not _turned_elsewhere(test):
            yield "condition", ast.If(ast.UnaryOp(ast.Not(), test), body, [])
        case ast.If(test, body, other) if other:
            yield "branches", ast.If(test, other, body)
        case ast.IfExp(test, body, other):
            yield "branches", ast.IfExp(test, other, body)
        case ast.comprehension(target, over, tests, is_async):
            for i, test in enumerate(tests):
                if not _turned_elsewhere(test):
                    turned = [*tests[:i], ast.UnaryOp(ast.Not(), test), *tests[i + 1 :]]
                    yield "condition", ast.comprehension(target, over, turned, is_async)


def _turned_elsewhere(test: ast.expr) -> bool:
    """Whether another operator makes the same of it: `not` taken away, `==` to `!=`."""
    match test:
        case ast.UnaryOp(ast.Not()):
            return True
        case ast.Compare(_, [op]):
            return not isinstance(op, _BOUNDARIES)
    return False


def _changed_statement(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Return(value) if value and not _is_none(value):
            yield "return", ast.Return(ast.Constant(None))
        case ast.AugAssign(target, op, value):
            if type(op) in _ARITHMETIC:
                yield "arithmetic", ast.AugAssign(target, _ARITHMETIC[type(op)](), value)
            yield "deletion", ast.Pass()
        case ast.Expr() | ast.Assign([ast.Attribute() | ast.Subscript(), *_]):
            yield "deletion", ast.Pass()
        case ast.Break():
            yield "break/continue", ast.Continue()
        case ast.Continue():
            yield "break/continue", ast.Break()


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None

"""What could be wrong with a line of arithmetic: small bugs of a Python file, found by its tree."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OPERATORS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.MatMult: ast.Add},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And},
}
# Each with the boundary moved, and with the opposite.
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    **{ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt)},
    **{ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)},
    **{ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)},
}
_PAIRS = [
    *[("sum", "mean"), ("any", "all"), ("min", "max"), ("amin", "amax"), ("minimum", "maximum")],
    *[("argmin", "argmax"), ("softplus", "relu"), ("log1p", "log")],
    *[("expm1", "exp"), ("log_softmax", "softmax"), ("masked_sum", "masked_mean")],
    *[("zeros_like", "ones_like"), ("tril", "triu"), ("floor", "ceil"), ("cumsum", "cumprod")],
]
_SWAPPED = dict(_PAIRS) | {other: one for one, other in _PAIRS} | {"logsigmoid": "sigmoid"}
# Methods whose call can be left out: what they are called on is of the same kind.
_REMOVABLE = {"detach", "abs", "clamp", "masked_fill", "exp", "log", "sqrt", "sigmoid", "flip"}


@dataclass(frozen=True)
class Mutant:
    """One bug: what stands at a place of a file, and what is written there in its stead."""

    path: Path
    lines: tuple[int, int]
    """The first and the last of the place."""
    start: int
    stop: int
    before: str
    after: str

    @property
    def source(self) -> bytes:
        """The file with the bug."""
        text = self.path.read_bytes()
        return text[: self.start] + self.after.encode() + text[self.stop :]


def mutants_of(path: Path) -> list[Mutant]:
    """All small bugs of a file, in the order of its lines."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(text)
    found = {}
    for node in _code(tree):
        for place, other in _wrong(node):
            start = starts[place.lineno - 1] + place.col_offset
            stop = starts[place.end_lineno - 1] + place.end_col_offset
            after = ast.unparse(ast.fix_missing_locations(other))
            after = f"({after})" if isinstance(other, ast.expr) else after
            lines = (place.lineno, place.end_lineno)
            found[start, stop, after] = Mutant(path, lines, start, stop, ast.unparse(place), after)
    return sorted(found.values(), key=lambda each: (each.start, each.stop, each.after))


def _code(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Every expression and statement that computes; messages, types and names of things do not."""
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if is_call and node.func.id in ("isinstance", "TypeVar", "cast"):
        return
    skipped = {"annotation", "returns", "decorator_list", "type_params", "exc", "bases"}
    if isinstance(node, ast.Assign) and not _computes(node.value):
        skipped.add("value")
    for field, value in ast.iter_fields(node):
        if field not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _code(child)


def _computes(value: ast.expr) -> bool:
    """False for aliases of types, and for names that a module offers."""
    is_alias = isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name)
    is_alias = is_alias and value.value.id in ("Literal", "Callable", "Annotated")
    texts = isinstance(value, ast.List | ast.Tuple) and all(
        isinstance(each, ast.Constant) and isinstance(each.value, str) for each in value.elts
    )
    return not (is_alias or texts)


def _wrong(node: ast.expr | ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Places in a node or the node itself, each with what could wrongly stand there."""
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    yield from ((node, other) for other in (*_of_expression(node), *_of_statement(node)))


def _of_expression(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, op, right):
            if type(op) in _OPERATORS:
                yield ast.BinOp(left, _OPERATORS[type(op)](), right)
            yield left
        case ast.BoolOp(op, values):
            yield ast.BoolOp(_OPERATORS[type(op)](), values)
        case ast.Compare(left, [op], right):
            yield from (ast.Compare(left, [other()], right) for other in _COMPARISONS[type(op)])
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Call():
            yield from _of_call(node)


def _of_statement(node: ast.AST) -> Iterator[ast.Pass]:
    match node:
        case ast.Raise() | ast.AugAssign() | ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Assign([ast.Name(name)], value) if _reads(value, name):
            yield ast.Pass()


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    function = node.func
    name = getattr(function, "attr", getattr(function, "id", None))
    if name in _SWAPPED:
        other = copy.deepcopy(node)
        setattr(other.func, "attr" if isinstance(function, ast.Attribute) else "id", _SWAPPED[name])
        yield other
    is_method = isinstance(function, ast.Attribute) and not (
        isinstance(function.value, ast.Name) and function.value.id in ("torch", "F", "math")
    )
    if is_method and name in _REMOVABLE:
        yield function.value
    if name == "masked_fill" and is_method:
        mask, *rest = node.args
        if not isinstance(mask, ast.UnaryOp):
            yield ast.Call(function, [ast.UnaryOp(ast.Invert(), mask), *rest], node.keywords)
    if name == "where" and len(node.args) == 3:
        condition, one, other = node.args
        yield ast.Call(function, [condition, other, one], node.keywords)


def _reads(value: ast.expr, name: str) -> bool:
    """Whether an assignment changes what the name had before: only then can it be left out."""
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(value))

"""The mutants of a module: each replaces one stretch of its text."""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
LOOKUPS = {"get", "pop"}  # whose string decides something; what else is a string is mostly wording
LOGGERS = {"log", "logger", "_log", "_LOG", "LOG", "warnings"}  # the lines of the log have tests of their own
QUIET = {
    "kw_only",
    "init",
    "repr",
    "slots",
    "eq",
    "stacklevel",
    "name",
    "help",
}  # keywords that change no result

_NUMBER = re.compile(r" #\d+$")  # of mutants that would have the same name


@attrs.frozen(kw_only=True)
class Mutant:
    """`name` says module, function, and what is replaced by what, without the number of the line, so that it
    stays when other lines change."""

    module: str
    name: str
    lines: range
    body: range  # of the function around it, whose header the import runs
    start: int
    end: int
    text: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]


@attrs.frozen
class _Place:
    function: str
    body: range
    statement: ast.stmt


def mutants_of(root: Path, module: str, names: Iterable[str] = ()) -> list[Mutant]:
    """Those of one file, in the order of its text, or those with these names; those that do not compile are
    left out. To compile them takes a millisecond each."""
    wanted = {_NUMBER.sub("", name) for name in names}
    source = (root / module).read_text(encoding="utf-8")
    offsets = _offsets(source)
    tree, texts = ast.parse(source), source.splitlines()
    seen: Counter[str] = Counter()
    found = []
    for node, text, place in sorted(_walk(tree), key=lambda one: (one[0].lineno, one[0].col_offset)):
        start, end = offsets(node.lineno, node.col_offset), offsets(node.end_lineno, node.end_col_offset)
        old = " ".join(source[start:end].split())
        name = f"{module.removeprefix('kie4o/')} {place.function}: {old} -> {text}"
        if isinstance(node, ast.Constant):
            name += f" in {texts[node.lineno - 1].partition('  #')[0].strip()}"
        if old == text or (wanted and name not in wanted):
            continue
        if not _compiles(source[:start] + text + source[end:]):
            continue
        seen[name] += 1
        if seen[name] > 1:
            name += f" #{seen[name]}"
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if isinstance(node, ast.expr):  # the trace has the lines of a statement that have code of their own
            lines = range(min(place.statement.lineno, node.lineno), lines.stop)
        found.append(
            Mutant(module=module, name=name, lines=lines, body=place.body, start=start, end=end, text=text)
        )
    return found


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _offsets(source: str) -> Callable[[int, int], int]:
    begins = [0]
    lines = source.splitlines(keepends=True)
    for line in lines:
        begins.append(begins[-1] + len(line))

    def offset(line: int, column: int) -> int:
        """Of a character; `ast` counts columns in bytes."""
        return begins[line - 1] + len(lines[line - 1].encode()[:column].decode())

    return offset


def _walk(tree: ast.Module) -> Iterator[tuple[ast.AST, str, _Place]]:
    place = _Place("module", range(0), tree.body[0])

    def visit(node: ast.AST, place: _Place, parent: ast.AST | None) -> Iterator[tuple[ast.AST, str, _Place]]:
        if _is_left_alone(node):
            return
        if isinstance(node, ast.stmt):
            place = attrs.evolve(place, statement=node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name if place.function == "module" else f"{place.function}.{node.name}"
            inside = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            place = attrs.evolve(
                place, function=name, body=range(0) if isinstance(node, ast.ClassDef) else inside
            )
        for target, text in _replaced(node, parent):
            yield target, text, place
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_params", "bases", "decorator_list", "type"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, place, node)

    for node in tree.body:
        yield from visit(node, place, tree)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Assert():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.FunctionDef(decorator_list=found) | ast.AsyncFunctionDef(decorator_list=found):
            return any("overload" in ast.unparse(each) for each in found)
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in LOGGERS:
            return True
        case ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec" | "cast" | "NewType")):
            return True
        case ast.keyword(arg=name) if name in QUIET:
            return True
    return False


def _replaced(node: ast.AST, parent: ast.AST | None) -> Iterator[tuple[ast.AST, str]]:
    """The stretches of a node, and what replaces each."""
    match node:
        case ast.Compare(ops=ops):
            for index, one in enumerate(ops):
                other = copy.deepcopy(node)
                other.ops[index] = COMPARED[type(one)]()
                yield node, ast.unparse(other)
        case ast.BoolOp(op=op, values=values):
            other = copy.deepcopy(node)
            other.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield node, f"({ast.unparse(other)})"
            for index in range(len(values)):
                other = copy.deepcopy(node)
                del other.values[index]
                yield node, f"({ast.unparse(other if len(values) > 2 else other.values[0])})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.BinOp(op=op) if type(op) in COUNTED:
            other = copy.deepcopy(node)
            other.op = COUNTED[type(op)]()
            yield node, f"({ast.unparse(other)})"
        case ast.Constant(value=value):
            yield from ((node, text) for text in _other_constants(value, parent))
        case ast.Name(id=name) if name in NAMES and isinstance(parent, ast.Call) and parent.func is node:
            yield node, NAMES[name]
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant) or not (
            value.value is None or value.value is False
        ):
            yield value, "None"
        case ast.ExceptHandler(type=ast.expr() as caught):
            yield caught, "()"
            yield (
                caught,
                "BaseException" if ast.unparse(caught) in ("Exception", "BaseException") else "Exception",
            )
        case ast.Expr() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete() | ast.AugAssign():
            if not (isinstance(node, ast.Expr) and _is_left_alone(node.value)):
                yield node, "pass"
        case ast.Return(value=None):
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() | ast.Tuple()]):
            yield node, "pass"
    plain = ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant  # these have mutants of their own
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, plain):
        yield node.test, f"(not {ast.unparse(node.test)})"


def _other_constants(value: object, parent: ast.AST | None) -> Iterator[str]:
    match value:
        case bool():
            yield str(not value)
        case int() | float():
            yield repr(value + 1)
            if value > 1:
                yield repr(value - 1)
        case str() | bytes() if isinstance(parent, ast.Compare | ast.Subscript | ast.Set) or (
            isinstance(parent, ast.Call)
            and isinstance(parent.func, ast.Attribute)
            and parent.func.attr in LOOKUPS
        ):
            yield repr(value + ("x" if isinstance(value, str) else b"x"))

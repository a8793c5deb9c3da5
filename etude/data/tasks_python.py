"""A reader of tiny Python functions that executes nothing: it walks the syntax tree with a budget.

Only what `tasks_code` asks for exists: numbers, text, flat lists, conditions, loops, comprehensions
and a few functions. Every size is bounded, so no program can take more than a fraction of a second
or a megabyte.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

MAX_SOURCE = 2000  # characters
MAX_STEPS = 5000  # nodes visited in one call
MAX_ITEMS = 1000  # of a list or a text
MAX_BITS = 256  # of a whole number
MAX_CALLS = 30  # nested calls of the function itself


class PythonError(Exception):
    """The program is outside the subset, failed, or ran out of its budget."""


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def call(source: str, name: str, arguments: Sequence[Any]) -> Any:
    """Return what function `name` of a program returns for `arguments`.

    Args:
        source: definitions of functions, nothing else.
        name: which function.
        arguments: numbers, text, or flat lists of these.

    Raises:
        PythonError: whatever goes wrong.
    """
    if len(source) > MAX_SOURCE:
        raise PythonError(f"more than {MAX_SOURCE} characters")
    try:
        return _Reader(source).call(name, list(arguments))
    except PythonError:
        raise
    except (_Break, _Continue) as error:
        raise PythonError("break or continue outside a loop") from error
    except Exception as error:  # any failure of the program read is its own, never ours
        raise PythonError(f"{type(error).__name__}: {error}") from error


def _limited(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise PythonError("number too large")
    if isinstance(value, str | list | tuple) and len(value) > MAX_ITEMS:
        raise PythonError("too many items")
    if isinstance(value, list | tuple) and any(isinstance(x, list | tuple) for x in value):
        raise PythonError("nested lists are not known here")
    return value


def _numbers(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(a: Any, b: Any) -> Any:
        if not (isinstance(a, int | float) and isinstance(b, int | float)):
            raise PythonError("this operator takes numbers")
        return function(a, b)

    return checked


def _multiply(a: Any, b: Any) -> Any:
    for sized, times in ((a, b), (b, a)):
        if (
            isinstance(sized, str | list | tuple)
            and isinstance(times, int)
            and len(sized) * times > MAX_ITEMS
        ):
            raise PythonError("too many items")
    return a * b


def _power(a: Any, b: Any) -> Any:
    if isinstance(a, int) and abs(b) * a.bit_length() > MAX_BITS:
        raise PythonError("number too large")
    return a**b


def _range(*bounds: int) -> list[int]:
    made = range(*bounds)
    if len(made) > MAX_ITEMS:
        raise PythonError("too many items")
    return list(made)


def _join(glue: str, parts: list[str]) -> str:
    if len(glue) * len(parts) > MAX_ITEMS or sum(map(len, parts)) > MAX_ITEMS:
        raise PythonError("too many items")
    return glue.join(parts)


def _replace(text: str, old: str, new: str) -> str:
    if (len(text) + 1) * max(len(new), 1) > MAX_ITEMS:
        raise PythonError("too many items")
    return text.replace(old, new)


def _text(value: Any = "") -> str:
    if isinstance(value, list | tuple):
        raise PythonError("str() of a list is not known here")
    return str(value)


OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: _numbers(operator.sub),
    ast.Mult: _multiply,
    ast.Div: _numbers(operator.truediv),
    ast.FloorDiv: _numbers(operator.floordiv),
    ast.Mod: _numbers(operator.mod),
    ast.Pow: _numbers(_power),
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "bool": bool,
    "int": int,
    "len": len,
    "list": list,
    "max": max,
    "min": min,
    "range": _range,
    "reversed": lambda items: list(items)[::-1],
    "sorted": sorted,
    "str": _text,
    "sum": lambda items: sum(list(items)),
}
METHODS: dict[tuple[type, str], Callable[..., Any]] = {
    (list, "append"): list.append,
    (list, "count"): list.count,
    (list, "index"): list.index,
    (str, "count"): str.count,
    (str, "endswith"): str.endswith,
    (str, "find"): str.find,
    (str, "isdigit"): str.isdigit,
    (str, "join"): _join,
    (str, "lower"): str.lower,
    (str, "replace"): _replace,
    (str, "split"): str.split,
    (str, "startswith"): str.startswith,
    (str, "strip"): str.strip,
    (str, "upper"): str.upper,
}


class _Reader:
    """Walks the tree of one program."""

    def __init__(self, source: str) -> None:
        self.functions: dict[str, ast.FunctionDef] = {}
        for node in ast.parse(source).body:
            if not isinstance(node, ast.FunctionDef) or node.decorator_list:
                raise PythonError("only plain functions at the top")
            self.functions[node.name] = node
        self.steps, self.depth = MAX_STEPS, 0

    def call(self, name: str, arguments: list[Any]) -> Any:
        function = self.functions.get(name)
        if function is None:
            raise PythonError(f"no function {name}")
        names = [argument.arg for argument in function.args.args]
        if len(names) != len(arguments):
            raise PythonError(f"{name} takes {len(names)} arguments")
        if self.depth == MAX_CALLS:
            raise PythonError("too many nested calls")
        self.depth += 1
        try:
            self.block(function.body, dict(zip(names, arguments, strict=True)))
        except _Return as returned:
            return returned.value
        finally:
            self.depth -= 1
        return None

    def tick(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise PythonError("too many steps")

    def block(self, body: list[ast.stmt], names: dict[str, Any]) -> None:
        for node in body:
            self.tick()
            self.statement(node, names)

    def statement(self, node: ast.stmt, names: dict[str, Any]) -> None:
        match node:
            case ast.Return(value=value):
                raise _Return(self.value(value, names) if value else None)
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.value(value, names), names)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                names[name] = self.operate(op, names[name], self.value(value, names))
            case ast.If(test=test, body=body, orelse=other):
                self.block(body if self.value(test, names) else other, names)
            case ast.For(target=target, iter=items, body=body, orelse=[]):
                self.loop(self.assigned(target, items, names), body, names)
            case ast.While(test=test, body=body, orelse=[]):
                self.loop(iter(lambda: bool(self.value(test, names)), False), body, names)
            case ast.Expr(value=value):
                self.value(value, names)
            case ast.Pass():
                pass
            case ast.Break():
                raise _Break
            case ast.Continue():
                raise _Continue
            case _:
                raise PythonError(f"{type(node).__name__} is not known here")

    def loop(self, rounds: Iterator[Any], body: list[ast.stmt], names: dict[str, Any]) -> None:
        for _ in rounds:
            self.tick()
            try:
                self.block(body, names)
            except _Break:
                return
            except _Continue:
                continue

    def assigned(self, target: ast.expr, items: ast.expr, names: dict[str, Any]) -> Iterator[None]:
        for item in list(self.value(items, names)):
            self.tick()
            self.assign(target, item, names)
            yield

    def assign(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = value
            case ast.Tuple(elts=parts):
                for part, item in zip(parts, list(value), strict=True):
                    self.assign(part, item, names)
            case ast.Subscript(value=inner, slice=index):
                self.value(inner, names)[self.value(index, names)] = _limited([value])[0]
            case _:
                raise PythonError("cannot assign to this")

    def operate(self, op: ast.AST, *values: Any) -> Any:
        if type(op) not in OPERATORS:
            raise PythonError(f"{type(op).__name__} is not known here")
        return _limited(OPERATORS[type(op)](*values))

    def value(self, node: ast.expr, names: dict[str, Any]) -> Any:
        self.tick()
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return _limited(value)
            case ast.Name(id=name):
                if name not in names:
                    raise PythonError(f"{name} is not defined")
                return names[name]
            case ast.BinOp(left=left, op=op, right=right):
                return self.operate(op, self.value(left, names), self.value(right, names))
            case ast.UnaryOp(op=op, operand=inner):
                return self.operate(op, self.value(inner, names))
            case ast.BoolOp(op=op, values=values):
                return self.boolean(isinstance(op, ast.And), values, names)
            case ast.Compare():
                return self.compare(node, names)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body if self.value(test, names) else other, names)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                made = [self.value(part, names) for part in parts]
                return _limited(made if isinstance(node, ast.List) else tuple(made))
            case ast.Subscript(value=inner, slice=index):
                return self.value(inner, names)[self.index(index, names)]
            case (
                ast.ListComp(elt=element, generators=[one])
                | ast.GeneratorExp(elt=element, generators=[one])
            ):
                return self.comprehension(element, one, dict(names))
            case ast.Call(keywords=[]):
                return _limited(self.called(node, names))
            case _:
                raise PythonError(f"{type(node).__name__} is not known here")

    def boolean(self, every: bool, values: list[ast.expr], names: dict[str, Any]) -> Any:
        result: Any = every
        for node in values:
            result = self.value(node, names)
            if bool(result) != every:
                break
        return result

    def compare(self, node: ast.Compare, names: dict[str, Any]) -> bool:
        left = self.value(node.left, names)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node, names)
            if not self.operate(op, left, right):
                return False
            left = right
        return True

    def index(self, node: ast.expr, names: dict[str, Any]) -> Any:
        if not isinstance(node, ast.Slice):
            return self.value(node, names)
        bounds = (node.lower, node.upper, node.step)
        return slice(*(self.value(bound, names) if bound else None for bound in bounds))

    def comprehension(
        self, element: ast.expr, one: ast.comprehension, names: dict[str, Any]
    ) -> list[Any]:
        made: list[Any] = []
        for _ in self.assigned(one.target, one.iter, names):
            if all(self.value(test, names) for test in one.ifs):
                made.append(self.value(element, names))
        return _limited(made)

    def called(self, node: ast.Call, names: dict[str, Any]) -> Any:
        values = [self.value(argument, names) for argument in node.args]
        match node.func:
            case ast.Name(id=name) if name in self.functions:
                return self.call(name, values)
            case ast.Name(id=name) if name in FUNCTIONS:
                return FUNCTIONS[name](*values)
            case ast.Attribute(value=inner, attr=name):
                owner = self.value(inner, names)
                if (type(owner), name) in METHODS:
                    result = METHODS[type(owner), name](owner, *values)
                    _limited(owner)
                    return result
        raise PythonError(f"{ast.unparse(node.func)[:30]} is not known here")

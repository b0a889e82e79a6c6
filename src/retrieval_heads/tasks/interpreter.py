"""What a small Python program of assignments and whole numbers comes to, without `exec` or `eval`.

It knows names, whole numbers, `+ - * // %`, lists, tuples, `range(n)`, `list[index]`, and assignments of them to a
name, an item or several targets at once. Everything else is refused.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from retrieval_heads.errors import PromptError

Outcome = int | list["Outcome"]
"""Of an expression. A tuple and a range are lists here: no program can tell them apart."""

_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[int], int]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def value_of(program: str, expression: str) -> Outcome:
    """The value of an expression at the end of a program.

    Raises:
        PromptError: There is something in them that this interpreter does not know, or Python would raise too.
    """
    variables: dict[str, Outcome] = {}
    try:
        for statement in ast.parse(program).body:
            if not isinstance(statement, ast.Assign):
                raise _unknown(statement)
            value = _value(statement.value, variables)
            for target in statement.targets:
                _assign(target, value, variables)
        return _value(ast.parse(expression, mode="eval").body, variables)
    except SyntaxError as error:
        raise PromptError(f"line {error.lineno} of a program is no Python: {error.msg}") from None
    except (KeyError, IndexError, ZeroDivisionError, ValueError, TypeError) as error:
        raise PromptError(f"a program raises {type(error).__name__}: {error}") from None


def _assign(target: ast.expr, value: Outcome, variables: dict[str, Outcome]) -> None:
    if isinstance(target, ast.Name):
        variables[target.id] = value
    elif isinstance(target, ast.Tuple | ast.List):
        for each, part in zip(target.elts, _listed(value), strict=True):
            _assign(each, part, variables)
    elif isinstance(target, ast.Subscript):
        _listed(_value(target.value, variables))[_whole(_value(target.slice, variables))] = value
    else:
        raise _unknown(target)


def _value(node: ast.expr, variables: Mapping[str, Outcome]) -> Outcome:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return variables[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, variables) for each in node.elts]
    if isinstance(node, ast.Subscript):
        return _listed(_value(node.value, variables))[_whole(_value(node.slice, variables))]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_whole(_value(node.left, variables)), _whole(_value(node.right, variables)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_whole(_value(node.operand, variables)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        (count,) = node.args
        return list(range(_whole(_value(count, variables))))
    raise _unknown(node)


def _whole(value: Outcome) -> int:
    if isinstance(value, list):
        raise TypeError("a number is expected, found a list")
    return value


def _listed(value: Outcome) -> list[Outcome]:
    if not isinstance(value, list):
        raise TypeError("a list is expected, found a number")
    return value


def _unknown(node: ast.stmt | ast.expr) -> PromptError:
    return PromptError(f"line {node.lineno} of a program holds what is not known here: {type(node).__name__}")

"""Reading code: what functions take, what classes set and read, what files import."""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def field_names(record) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def attributes_set_by(*classes: type) -> set[str]:
    """Names X of `self.X = ...` in the classes and their bases, and of everything defined on them."""
    bases = [base for cls in classes for base in cls.__mro__ if base is not object]
    names = {name for base in bases for name in vars(base)}
    for base in bases:
        for node in ast.walk(parsed(base)):
            if is_self_attribute(node) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


def attributes_read_by(cls: type) -> set[str]:
    """Names X of `self.X` and `super().X` in the class's own body."""
    supers = {
        node.attr
        for node in ast.walk(parsed(cls))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()"
    }
    return supers | {node.attr for node in ast.walk(parsed(cls)) if is_self_attribute(node)}


def parsed(code) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(code)))


def calls_in(code) -> dict[str, ast.Call]:
    """The last call of each name in the body of a function or class."""
    body = parsed(inspect.unwrap(code))
    return {ast.unparse(node.func): node for node in ast.walk(body) if isinstance(node, ast.Call)}


def imported_modules(path: Path) -> set[str]:
    """Of a file, at its top or later: modules, and what is imported of them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_self_attribute(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"

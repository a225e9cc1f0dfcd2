"""Which line of the package reads which setting: a small inference of types from annotations, enough for settings.

A name is of a configuration class where a parameter, an attribute or a call says so; ``config.training.seed`` is then a
read of ``TrainConfig.training`` and of ``TrainingConfig.seed``, and of no other ``seed``.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from .house import modules, name_of, python_files, resolved, tree

Key = tuple[str, str]  # module, class
SAME = ("replace", "load", "named", "of", "recipe", "preset", "model_validate", "fast", "reference", "mean")


@cache
def class_nodes() -> dict[Key, ast.ClassDef]:
    return {
        (name_of(path), node.name): node
        for path in python_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }


@cache
def names_in(path: Path) -> dict[str, Key]:
    """Classes and functions of the package by the names they have in a file, imports anywhere in it."""
    own, found = name_of(path), {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "morphogen":
            module = (node.module or "").removeprefix("morphogen").removeprefix(".")
            for alias in node.names:
                home = resolved(module, alias.name)
                named = "" if home == f"{module}.{alias.name}".strip(".") else alias.name
                found[alias.asname or alias.name] = (home, named)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.setdefault(node.name, (own, node.name))
    return found


@cache
def bases(key: Key) -> tuple[Key, ...]:
    """A class and those of the package that it is made of."""
    node = class_nodes().get(key)
    if node is None:
        return ()
    out = [key]
    for base in node.bases:
        for other in mentioned(base, modules()[key[0]]):
            out += [each for each in bases(other) if each not in out]
    return tuple(out)


@cache
def mentioned(annotation: ast.expr | None, path: Path) -> frozenset[Key]:
    """Classes of the package that an annotation names, wherever in it."""
    if annotation is None:
        return frozenset()
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:  # a string that is no annotation
            return frozenset()
    found, here = set(), names_in(path)
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and here.get(node.id) in class_nodes():
            found.add(here[node.id])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in here:
            home = here[node.value.id][0], node.attr
            found |= {home} if home in class_nodes() else set()
    return frozenset(found)


class Reader(ast.NodeVisitor):
    """One file, with what is known of all."""

    def __init__(self, path: Path, known: Known) -> None:
        self.path, self.known, self.names = path, known, names_in(path)
        self.scopes: list[dict[str, set[Key]]] = [{}]
        self.owner: Key | None = None

    # -- what an expression is

    def types(self, node: ast.expr | None) -> set[Key]:
        if isinstance(node, ast.Name):
            for scope in reversed(self.scopes):
                if node.id in scope:
                    return scope[node.id]
            return set()
        if isinstance(node, ast.Attribute):
            return self.known.attribute(
                self.types(node.value), node.attr, f"{name_of(self.path)}:{node.lineno}"
            )
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.BoolOp):
            return set().union(*map(self.types, node.values))
        if isinstance(node, ast.IfExp):
            return self.types(node.body) | self.types(node.orelse)
        if isinstance(node, ast.Subscript):
            return self.types(node.value)
        if isinstance(node, (ast.Await, ast.NamedExpr, ast.Starred)):
            return self.types(node.value)
        return set()

    def _called(self, node: ast.Call) -> set[Key]:
        function = node.func
        if isinstance(function, ast.Name):
            if function.id == "getattr" and len(node.args) >= 2 and isinstance(node.args[1], ast.Constant):
                place = f"{name_of(self.path)}:{node.lineno}"
                return self.known.attribute(self.types(node.args[0]), str(node.args[1].value), place)
            key = self.names.get(function.id)
            if key in class_nodes():
                return {key}
            given = mentioned(node.args[0], self.path) if node.args else set()
            return self.known.returns.get(key, set()) | given if key else given
        if isinstance(function, ast.Attribute):
            if isinstance(function.value, ast.Name) and self.names.get(function.value.id) in class_nodes():
                return {self.names[function.value.id]}  # a class method that gives one
            base = self.types(function.value)
            if function.attr in SAME:
                return base | (mentioned(node.args[0], self.path) if node.args else set())
            made = {
                each
                for key in base
                for each in self.known.returns.get((key[0], f"{key[1]}.{function.attr}"), ())
            }
            return made or (mentioned(node.args[0], self.path) if node.args else set())
        return set()

    # -- walking

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self.owner = self.owner, (name_of(self.path), node.name)
        self.generic_visit(node)
        self.owner = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, set[Key]] = {}
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in given:
            scope[argument.arg] = mentioned(argument.annotation, self.path)
        if self.owner is not None and given and given[0].arg in ("self", "cls") and not given[0].annotation:
            scope[given[0].arg] = {self.owner}
        name = node.name if self.owner is None else f"{self.owner[1]}.{node.name}"
        key = (name_of(self.path), name)
        self.known.returns[key] |= mentioned(node.returns, self.path)
        if isinstance(node.returns, ast.Name) and node.returns.id == "Self" and self.owner is not None:
            self.known.returns[key].add(self.owner)
        if self.owner is not None:  # properties are attributes
            self.known.attributes[self.owner][node.name] |= mentioned(node.returns, self.path)
        self.scopes.append(scope)
        owner = self.owner
        self.generic_visit(node)
        self.owner = owner
        self.scopes.pop()

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.scopes.append({argument.arg: set() for argument in node.args.args})
        self.generic_visit(node)
        self.scopes.pop()

    def _assign(self, target: ast.expr, value: ast.expr | None, found: set[Key]) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [None] * len(target.elts)
            for each, part in zip(target.elts, values, strict=False):
                self._assign(each, part, self.types(part) if part is not None else found)
        elif isinstance(target, ast.Name):
            self.scopes[-1][target.id] = self.scopes[-1].get(target.id, set()) | found
        elif isinstance(target, ast.Attribute):
            for key in self.types(target.value):
                self.known.attributes[key][target.attr] |= found

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value, self.types(node.value))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        found = mentioned(node.annotation, self.path) | self.types(node.value)
        if self.owner is not None and len(self.scopes) == 1 and isinstance(node.target, ast.Name):
            self.known.attributes[self.owner][node.target.id] |= found
        self._assign(node.target, node.value, found)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._assign(node.target, None, self.types(node.iter))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.types(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._called(node)
        self.generic_visit(node)

    def comprehension_first(self, node: ast.AST) -> None:
        for generator in getattr(node, "generators", []):
            self._assign(generator.target, None, self.types(generator.iter))
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = comprehension_first


class Known:
    """Types of attributes and of what functions return; and the reads that were found."""

    def __init__(self) -> None:
        self.attributes: dict[Key, dict[str, set[Key]]] = defaultdict(lambda: defaultdict(set))
        self.returns: dict[Key, set[Key]] = defaultdict(set)
        self.reads: dict[tuple[Key, str], set[str]] = defaultdict(set)

    def attribute(self, types: set[Key], name: str, place: str) -> set[Key]:
        found: set[Key] = set()
        for key in types:
            for each in bases(key):
                self.reads[each, name].add(place)
                found |= self.attributes[each].get(name, set())
        return found


@cache
def reads() -> dict[tuple[Key, str], set[str]]:
    """((module, class), setting) → the lines that read it. Read three times, because types follow from one another."""
    known = Known()
    for _ in range(3):
        known.reads.clear()
        for path in python_files():
            Reader(path, known).visit(tree(path))
    return dict(known.reads)

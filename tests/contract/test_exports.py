"""The public names of ``flux_async``, their docstrings, one base for all errors."""

from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path
from types import ModuleType

import pytest

import flux_async
from flux_async import api_errors, errors, models, public


def test_all_is_sorted() -> None:
    """``__all__`` is in alphabetical order, without repetition."""
    assert list(flux_async.__all__) == sorted(set(flux_async.__all__))


def test_all_is_every_public_name() -> None:
    """``__all__`` holds each public name of the package, and no other."""
    names = {
        name
        for name, value in vars(public).items()
        if name.isidentifier() and not name.startswith("_")
        if not isinstance(value, ModuleType) and name != "annotations"
    }
    assert set(flux_async.__all__) == names


def test_every_error_is_exported_and_has_the_one_base() -> None:
    """Every exception class of the two modules is exported, and ``except FluxError`` catches each of them."""
    kinds = {
        name: kind
        for name, kind in (vars(errors) | vars(api_errors)).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException)
    }
    assert kinds.keys() <= set(flux_async.__all__)
    exported = [getattr(flux_async, name) for name in flux_async.__all__]
    raised = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, BaseException)]
    assert all(issubclass(kind, errors.FluxError) for kind in raised)


def documented_assignments(module: ModuleType) -> set[str]:
    """Return the names whose assignment is followed by a docstring, as type checkers and editors show it."""
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    found = set()
    for node, following in itertools.pairwise(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(target, ast.Name) and is_text:
            found.add(target.id)
    return found


@pytest.mark.parametrize("name", flux_async.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    """Each class and function has a docstring of its own, and each type alias one below it."""
    value = getattr(flux_async, name)
    if inspect.isfunction(value):
        assert value.__doc__
    elif inspect.isclass(value):
        assert (vars(value).get("__doc__") or "").strip()
    else:
        assert name in documented_assignments(models)


@pytest.mark.parametrize("name", [n for n in flux_async.__all__ if inspect.isclass(getattr(flux_async, n))])
def test_every_public_method_has_a_docstring(name: str) -> None:
    """Each public method and property says what it does."""
    members = vars(getattr(flux_async, name)).items()
    functions = {n: getattr(m, "__func__", m) for n, m in members if not n.startswith("_")}
    bare = [
        n
        for n, f in functions.items()
        if (inspect.isfunction(f) or isinstance(f, property)) and not f.__doc__
    ]
    assert bare == []

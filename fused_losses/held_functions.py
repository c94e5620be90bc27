"""Where loaded modules hold a function under a name of their own, out of the reach of who replaces it at its home."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

__all__ = ["Holder", "exchange_everywhere", "holders_of", "is_outside_torch", "loaded_modules", "outside_torch"]


class Holder(NamedTuple):
    """One place that holds one of the functions that were looked for."""

    module: str
    """The module's name."""
    place: str
    """Within the module, as code would say it."""
    function: Callable[..., Any]
    exchange: Callable[[Any, Any], None]
    """Puts the second argument where the first stands now, if it stands there."""


def loaded_modules(package: str | None = None) -> list[ModuleType]:
    """Every module that is loaded, or a package and what is loaded below it."""
    modules = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    if package is not None:
        modules = [(name, module) for name, module in modules if f"{name}.".startswith(f"{package}.")]
    return [module for _, module in modules]


def holders_of(functions: Collection[Callable[..., Any]], modules: Iterable[ModuleType]) -> Iterator[Holder]:
    """Where these modules hold these functions: as a global, in a table that is one, wrapped in a ``partial``, as a
    default of an argument, as an attribute of a class. Nothing is imported or called."""
    sought = {id(function) for function in functions}
    for module in modules:
        for place, function, exchange in _of_namespace(module, "", sought, module.__name__):
            yield Holder(module.__name__, place, function, exchange)


def exchange_everywhere(pairs: Iterable[tuple[Callable[..., Any], Callable[..., Any]]]) -> None:
    """In every loaded module but torch's, the second function of each pair instead of the first."""
    replacement = dict(pairs)
    for holder in list(holders_of(replacement, outside_torch(loaded_modules()))):
        holder.exchange(holder.function, replacement[holder.function])


def outside_torch(modules: Iterable[ModuleType]) -> list[ModuleType]:
    """Without torch's modules and ours, whose tables of functions are about the functions themselves."""
    return [module for module in modules if is_outside_torch(module.__name__)]


def is_outside_torch(module: str) -> bool:
    return module.partition(".")[0] not in ("torch", "fused_losses")


_Found = tuple[str, Callable[..., Any], Callable[[Any, Any], None]]


def _of_namespace(owner: Any, prefix: str, sought: set[int], module: str) -> Iterator[_Found]:
    for name, value in list(vars(owner).items()):
        place = prefix + name
        if id(value) in sought:
            yield place, value, functools.partial(_exchange_attribute, owner, name)
        elif isinstance(value, (staticmethod, classmethod, FunctionType)):
            yield from _of_function(owner, name, place, value, sought, module)
        elif isinstance(value, functools.partial) and id(value.func) in sought:
            yield f"{place}.func", value.func, functools.partial(_exchange_partial, value)
        elif type(value) in (dict, list) and value is not sys.modules:
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if id(item) in sought:
                    yield f"{place}[{key!r}]", item, functools.partial(_exchange_item, value, key)
        elif isinstance(value, type) and value.__module__ == module and not prefix:
            yield from _of_namespace(value, f"{place}.", sought, module)


def _of_function(owner: Any, name: str, place: str, value: Any, sought: set[int], module: str) -> Iterator[_Found]:
    function = value if isinstance(value, FunctionType) else value.__func__
    if id(function) in sought:
        yield place, function, functools.partial(_exchange_method, owner, name)
    elif isinstance(function, FunctionType) and function.__module__ == module:
        defaults = function.__defaults__ or ()
        names = function.__code__.co_varnames[function.__code__.co_argcount - len(defaults) :]
        for parameter, default in (*zip(names, defaults, strict=False), *(function.__kwdefaults__ or {}).items()):
            if id(default) in sought:
                yield f"{place}({parameter}=)", default, functools.partial(_exchange_default, function)


def _exchange_attribute(owner: Any, name: str, old: Any, new: Any) -> None:
    if vars(owner).get(name) is old:
        setattr(owner, name, new)


def _exchange_method(owner: type, name: str, old: Any, new: Any) -> None:
    value = vars(owner).get(name)
    if isinstance(value, (staticmethod, classmethod)) and value.__func__ is old:
        setattr(owner, name, type(value)(new))


def _exchange_item(table: Any, key: Any, old: Any, new: Any) -> None:
    present = key in table if isinstance(table, dict) else key < len(table)
    if present and table[key] is old:
        table[key] = new


def _exchange_partial(partial: functools.partial[Any], old: Any, new: Any) -> None:
    if partial.func is old:
        partial.__setstate__((new, partial.args, partial.keywords, vars(partial)))  # type: ignore[attr-defined]


def _exchange_default(function: FunctionType, old: Any, new: Any) -> None:
    if function.__defaults__ is not None:
        function.__defaults__ = tuple(new if default is old else default for default in function.__defaults__)
    keywords = function.__kwdefaults__ or {}
    keywords.update({name: new for name, default in keywords.items() if default is old})

"""Tables of names, such as the policies of ``masking.policy``, to which other packages can add.

A member of a table is built in, or a program registers it, or it is a plug-in. A plug-in is an
*entry point* in the metadata of an installed package, in its ``pyproject.toml``:

    [project.entry-points."maskwise.policies"]
    by-verse = "my_package.policies:Verse"

Recipes and commands then know the policy ``by-verse``. The package is imported when one of its
names is looked up and is not built in, or when all names are listed.

A program registers a member in its own process. Workers of its pools (``jobs``) are told where the
members are defined, and treat them as entry points.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
import textwrap
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from keyword import iskeyword
from types import FunctionType, MethodType, ModuleType
from typing import Any, Generic, TypeAlias, TypeVar

from maskwise.base.errors import MaskwiseError, PlugInError, first_line

T = TypeVar("T")
Places: TypeAlias = dict[str, dict[str, str]]
"""Where members are defined, ``module:name``, keyed by group, then by name."""

_TABLES: list[weakref.ref[Table[Any]]] = []
_ADOPTED: Places = {}
"""The members that the process which started this one had registered."""


class Table(MutableMapping[str, T], Generic[T]):
    """The members of one kind, by name: built-in ones first, then registered ones, then plug-ins.

    >>> table = Table("policy", "maskwise.policies", {"token": str})
    >>> table.register("by-verse", int)
    >>> list(table)
    ['token', 'by-verse']

    Args:
        kind: the kind of member, for error messages, such as "policy".
        group: the group of the entry points.
        built_in: the built-in members, or their places, ``module:name``, which are imported when
            they are looked up.
        of: the type of a member. By default, a member is a function or a class.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, T | str],
        *,
        of: type[T] | None = None,
    ):
        self.kind = kind
        self.group = group
        self.of = of
        self._members: dict[str, T | str] = dict(built_in)
        self._registered = set[str]()
        self._loaded: dict[str, T] = {}
        self._warned = set[str]()
        _TABLES.append(weakref.ref(self))

    def register(self, name: str, member: T) -> None:
        """Add a member in this process. A package that others install has an entry point instead.

        Args:
            name: letters, digits and hyphens.
            member: a function or class that makes the object from the arguments of the name.

        Raises:
            MaskwiseError: the name is taken, or is no name.
        """
        # ``specs.parse_call`` reads hyphens as underscores of a Python name.
        word = name.replace("-", "_") if isinstance(name, str) and "_" not in name else ""
        if not word.isidentifier() or iskeyword(word):
            raise MaskwiseError(
                f"this is no name of a {self.kind}",
                got=name,
                allowed="letters, digits and hyphens, from a letter on, and no word of Python",
            )
        # A module that is run again, as in a notebook, registers the same function again.
        again = name in self._registered and _place(self._members[name]) == _place(member)
        if name in self._members and not again:
            raise MaskwiseError(
                f"there is a {self.kind} {name!r} already", got=_place(member), do="rename yours"
            )
        self._check(member, f"the {self.kind} {name!r}")
        self._members[name] = member
        _see_code(member)
        self._registered.add(name)

    def registered(self) -> dict[str, str]:
        """Return where those functions and classes are defined that were registered."""
        found = {}
        for name in self._registered & self._members.keys():
            if isinstance(self._members[name], type | FunctionType):
                found[name] = _place(self._members[name])
        return found

    def foreign(self) -> list[T]:
        """Return the members of other packages that this process has used or registered."""
        # Those that are not imported yet are built in.
        used = [each for each in self._members.values() if not isinstance(each, str)]
        return [member for member in [*used, *self._loaded.values()] if is_foreign(member)]

    def without_plugins(self) -> dict[str, T]:
        """Return the built-in and registered members. No package is imported."""
        return {name: self._member(name) for name in self._members}

    def _member(self, name: str) -> T:
        """Return a built-in or registered member, which is imported on first use."""
        member = self._members[name]
        if isinstance(member, str):
            loaded: T = EntryPoint(name, member, self.group).load()
            self._members[name] = loaded
            return loaded
        return member

    def usable(self) -> tuple[dict[str, T], list[str]]:
        """Return all members, and a line for each plug-in that cannot be used."""
        members = self.without_plugins()
        faults = []
        for name, points in self._plugins().items():
            if name not in self._members:
                try:
                    members[name] = self[name]
                except MaskwiseError as error:
                    faults.append(str(error))
                continue
            faults += self._ignored(name, points)
        return members, faults

    def _ignored(self, name: str, points: Iterable[EntryPoint]) -> list[str]:
        """Return a line for each plug-in whose name is taken."""
        lines = []
        for point in points:
            # A package may also register what its entry point names.
            if point.value.replace(" ", "") != _place(self._members[name]):
                lines.append(
                    f"the {self.kind} {name!r} of the package {_package(point)} is ignored, "
                    "because the name is taken"
                )
        return lines

    def __getitem__(self, name: str) -> T:
        if name in self._members:
            points = self._plugins(anew=False).get(name, [])
            if points and name not in self._warned:
                self._warned.add(name)
                for line in self._ignored(name, points):
                    warnings.warn(f"{line}; rename the entry point", stacklevel=2)
            return self._member(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._plugins()[name])
        return self._loaded[name]

    def added(self) -> set[str]:
        """Return the names that other packages and the running program have added."""
        registered = self._registered & self._members.keys()
        found = {name for name in registered if is_foreign(self._members[name])}
        for name, points in self._plugins(anew=False).items():
            own = all(point.value.startswith("maskwise.") for point in points)
            if name not in self._members and not own:
                found.add(name)
        return found

    def package(self, name: str) -> str:
        """Return the name and the version of the package that adds a member; "" for others."""
        points = [] if name in self._members else self._plugins().get(name, [])
        packages = [point.dist for point in points if point.dist is not None]
        return " ".join(f"{package.name} {package.version}" for package in packages)

    def _load(self, name: str, points: list[EntryPoint]) -> T:
        packages = " and ".join(dict.fromkeys(map(_package, points)))
        what = f"the {self.kind} {name!r} of the package {packages}"
        advice = f"update or uninstall {packages}"
        if name in _ADOPTED.get(self.group, {}):
            what = f"the {self.kind} {name!r}, which a program registered,"
            advice = "define it at the top of a module, which other processes can import"
        if len(points) > 1:
            places = " and ".join(point.value for point in points)
            raise MaskwiseError(
                f"{what}: two entry points have this name",
                got=places,
                do="uninstall one of them, or rename an entry point",
            )
        try:
            member = points[0].load()
        except KeyboardInterrupt:
            raise
        # Importing another package may raise anything.
        except BaseException as error:
            raise MaskwiseError(
                f"{what} cannot be loaded",
                got=f"{type(error).__name__}: {first_line(error)}",
                do=advice,
            ) from error
        self._check(member, what)
        _see_code(member)
        return member

    def _check(self, member: object, what: str) -> None:
        fits = callable(member) if self.of is None else isinstance(member, self.of)
        if not fits:
            wanted = "a function or a class" if self.of is None else f"a {self.of.__name__}"
            raise MaskwiseError(f"{what} is not valid", got=repr(member), allowed=wanted)

    def _plugins(self, *, anew: bool = True) -> dict[str, list[EntryPoint]]:
        """Return the entry points of this group.

        Args:
            anew: whether to find those installed meanwhile. Built-in members are looked up often,
                and reading the entry points takes some milliseconds.
        """
        if anew:
            _points.cache_clear()
        found = _points(tuple(sys.path)).get(self.group, {})
        adopted = _ADOPTED.get(self.group)
        if not adopted:
            return found
        points = {name: [EntryPoint(name, place, self.group)] for name, place in adopted.items()}
        return found | points

    def __contains__(self, name: object) -> bool:
        return name in self._members or name in self._loaded or name in self._plugins()

    def __iter__(self) -> Iterator[str]:
        yield from self._members
        yield from (name for name in self._plugins() if name not in self._members)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # Tests replace members for a while, as in any dict.

    def __setitem__(self, name: str, member: T) -> None:
        self._members[name] = member

    def __delitem__(self, name: str) -> None:
        del self._members[name]

    def clear(self) -> None:
        """Remove all members but plug-ins."""
        self._members.clear()

    def copy(self) -> dict[str, T]:
        """Return the built-in and registered members, which ``update`` restores."""
        return self.without_plugins()


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose public names are imported on first use.

    A recipe reads the settings of a package, and must not wait for torch.

    Args:
        package: the ``__name__`` of the package.
        homes: the modules of the package that define the names, by name.
    """

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return found


def registered() -> Places:
    """Return where the members are defined that this process knows without an installed package."""
    found = {group: dict(places) for group, places in _ADOPTED.items()}
    for table in _tables():
        if places := table.registered():
            found[table.group] = found.get(table.group, {}) | places
    return found


def _tables() -> list[Table[Any]]:
    """Return the tables that exist."""
    tables = []
    for reference in list(_TABLES):
        table = reference()
        if table is None:
            _TABLES.remove(reference)
        else:
            tables.append(table)
    return tables


def adopt(places: Places) -> None:
    """Know the members that another process had registered. They are imported when looked up."""
    own = registered()
    for group, names in places.items():
        known = own.get(group, {})
        new = {name: place for name, place in names.items() if known.get(name) != place}
        if new:
            _ADOPTED.setdefault(group, {}).update(new)


def require_call(what: str, function: Callable[..., object], *given: str, **named: object) -> None:
    """Raise an error if a function of the user's cannot be called with these arguments.

    Args:
        what: words for the function in the error message, such as "policy Verse(): cut".
        function: the function, or the bound method.
        given: the names of the arguments that are given by position.
        named: the arguments that are given by name.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # A function of a library in C need not have a signature.
        return
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        wanted = [*given, *(f"{name}={value!r}" for name, value in named.items())]
        raise PlugInError(
            f"{what} cannot be called: {error}",
            got=str(signature),
            allowed=f"({', '.join(wanted)})",
        ) from None


@lru_cache(maxsize=1)
def _points(path: tuple[str, ...]) -> dict[str, dict[str, list[EntryPoint]]]:
    """Return the entry points of maskwise's groups, keyed by group, then by name.

    They are kept for one ``sys.path``, because reading them takes some milliseconds.
    """
    found: dict[str, dict[str, list[EntryPoint]]] = {}
    points = entry_points()
    for group in points.groups:
        if group.startswith("maskwise."):
            names = found[group] = {}
            for point in points.select(group=group):
                names.setdefault(_name(point), []).append(point)
    return found


def code_of(settings: object) -> dict[str, str]:
    """Return a hash of the source code of each plug-in that settings name.

    It is that of the modules in which the plug-in is defined, without comments. For what the main
    program defines, it is that of each function and class of the plug-in.

    Args:
        settings: JSON values, in which names may have arguments.

    Returns:
        The hashes, keyed by the kind and the name, such as "policy by-verse".
    """
    words: set[str] | None = None
    found = {}
    for table in _tables():
        added = table.added()
        if not added:
            continue
        if words is None:
            words = set(_words(settings))
        for name in sorted(added & words):
            # Of what cannot be loaded, those who use it say so.
            with suppress(MaskwiseError):
                found[f"{table.kind} {name}"] = hash_of_code(table[name])
    return found


_WORD = re.compile(r"[^\W\d][\w-]*")


def _words(value: object) -> Iterator[str]:
    """Yield the words in JSON values, as ``specs.parse_call`` reads names."""
    if isinstance(value, str):
        for word in _WORD.findall(value):
            yield word.replace("_", "-")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _words(key)
            yield from _words(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _words(part)


def hash_of_code(member: object) -> str:
    """Return a hash of the source code of a plug-in; ``code_of`` says of which."""
    total = hashlib.sha256()
    homes = _homes(member)
    for name in sorted(homes):
        parts = homes[name]
        # A program runs once, and its functions and classes may be anywhere in it. Of a module, the
        # whole file counts.
        program = name == "__main__"
        named = parts if program else parts[-1:]
        total.update(f"{name}:{' '.join(part.__qualname__ for part in named)}".encode())
        sources = parts if program else [sys.modules[name]]
        for source in sources:
            # There is no source code of compiled modules and of some notebooks.
            with suppress(OSError, TypeError, SyntaxError):
                if isinstance(source, ModuleType):
                    code = code_of_module(source)
                else:
                    code = inspect.getsource(source)
                total.update(_without_comments(code).encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:16]


@lru_cache
def _without_comments(code: str) -> str:
    # All stages of a study have the code of the same few modules.
    return ast.unparse(ast.parse(textwrap.dedent(code)))


def _see_code(member: object) -> None:
    """Look at the code of a plug-in while it is that which was imported."""
    for name in _homes(member):
        with suppress(OSError, TypeError):
            code_of_module(sys.modules[name])


def code_of_module(module: ModuleType) -> str:
    """Return the source code of a module, as it was when this function first saw the module.

    If the file is edited afterwards, its functions do what they did before, until it is reloaded.
    An edit between the import and the first call is not noticed.

    Raises:
        OSError: there is no source code.
        TypeError: the module is a part of Python.
    """
    # A module that is reloaded has another specification.
    spec = module.__spec__
    if spec is None:
        return inspect.getsource(module)
    known = _SOURCES.get(id(spec))
    if known is None:
        known = _SOURCES[id(spec)] = spec, inspect.getsource(module)
    return known[1]


_SOURCES: dict[int, tuple[ModuleSpec, str]] = {}
"""The source code of modules, by the identities of their specifications, which are kept."""


def _homes(member: object) -> dict[str, list[type | FunctionType]]:
    """Return the functions and classes that a plug-in consists of, in order, by their modules.

    Those of maskwise and of Python are left out.
    """
    homes: dict[str, list[type | FunctionType]] = {}
    for part in dict.fromkeys(_parts(member)):
        top = part.__module__.partition(".")[0]
        if top != "maskwise" and top not in sys.stdlib_module_names:
            homes.setdefault(part.__module__, []).append(part)
    return homes


def _parts(member: object) -> Iterator[type | FunctionType]:
    if isinstance(member, type):
        package = member.__module__.partition(".")[0]
        # Bases of other packages have versions of their own.
        yield from (each for each in member.mro() if each.__module__.partition(".")[0] == package)
        return
    if isinstance(member, MethodType):
        yield from _parts(member.__func__)
        yield from _parts(type(member.__self__))
        return
    if isinstance(member, partial):
        yield from _parts(member.func)
        return
    # Decorators keep the function that they wrap.
    if (wrapped := getattr(member, "__wrapped__", None)) is not None:
        yield from _parts(wrapped)
    if isinstance(member, FunctionType):
        yield member
        return
    yield from _parts(type(member))
    for part in getattr(member, "__dict__", {}).values():
        if isinstance(part, type | FunctionType):
            yield from _parts(part)


def is_foreign(member: object) -> bool:
    """Whether a function, a class, or the class of an object, is of another package.

    What maskwise's own members return is not checked, because its tests do that.
    """
    return not _module(member).startswith("maskwise.")


def _module(member: object) -> str:
    """Return the module of a function, a class, or the class of an object."""
    home = member if isinstance(member, type | FunctionType | MethodType) else type(member)
    return home.__module__


def mistake_of(error: BaseException) -> PlugInError | None:
    """Return an error in one line, with the line of code, if a plug-in raised this exception.

    It may also have been raised in a library that the plug-in called. None for other exceptions.
    """
    packages = set[str]()
    for table in _tables():
        packages |= {_module(member).partition(".")[0] for member in table.foreign()}
    found = None
    trace = error.__traceback__
    while trace:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in packages:
            found = module, f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    if found is None:
        return None
    module, line = found
    return PlugInError(
        f"code of the module {module} failed",
        got=f"{type(error).__name__}: {first_line(error)} ({line})",
        do="mend it there, or name another member",
    )


def _name(point: EntryPoint) -> str:
    """Return the name of a plug-in as ``specs.parse_call`` reads it, with hyphens."""
    return point.name.replace("_", "-")


def _place(member: object) -> str:
    """Return ``module:name`` of a function or class, or of a place."""
    if isinstance(member, type | FunctionType):
        return f"{member.__module__}:{member.__qualname__}"
    return member if isinstance(member, str) else repr(member)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(":")[0]

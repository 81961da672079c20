"""What a configuration key is, and what follows from its declaration. The keys themselves stand in configs/base.py."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import dataclasses
import difflib
import itertools
import math
import operator
from typing import Any

import ml_collections

from tc_jepa.errors import UserError

UNUSED = object()  # what a condition sees in place of the value of a key that is itself unused, or missing


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on other keys, under which a key has an effect.

    `words` is the condition in English, `names` the keys it reads. `holds` takes a function from a key's name to its
    value, or to UNUSED: a condition on an unused key never holds, so conditions need not repeat those of their keys.
    """

    words: str
    names: tuple[str, ...]
    holds: Callable[[Callable[[str], Any]], bool]

    def __or__(self, other: "Condition") -> "Condition":
        names = self.names + other.names
        return Condition(f"{self.words} or {other.words}", names, lambda get: self.holds(get) or other.holds(get))


def when(name: str, *values: Any) -> Condition:
    """The key has one of the values."""
    return Condition(f"{name} is {' or '.join(map(str, values))}", (name,), lambda get: get(name) in values)


def unless(name: str, *values: Any) -> Condition:
    """The key has none of the values."""
    words = f"{name} is not {' or '.join(map(str, values))}"
    return Condition(words, (name,), lambda get: get(name) not in (UNUSED, *values))


def given(name: str) -> Condition:
    """The key is not empty."""
    return dataclasses.replace(unless(name, "", ()), words=f"{name} is given")


def empty(name: str) -> Condition:
    """The key is empty."""
    return dataclasses.replace(when(name, "", ()), words=f"{name} is empty")


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key. The type of a value is that of `default`, of a tuple's items `items` where it is empty.

    Bounds hold for every number of a tuple: `low` and `high` are allowed values, `above` and `below` are not. A tuple
    that is not empty by default is (low, high) with low <= high.
    """

    name: str
    default: Any
    meaning: str  # with its unit
    changes_results: bool  # else a runtime key, which may change between resumes of one run
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    listed: bool = False  # several of `choices`, separated by commas
    items: type | None = None
    path: bool = False  # a path, or several separated by commas
    used: tuple[Condition, ...] = ()  # it has an effect when all hold
    formerly: Mapping[Any, Any] = dataclasses.field(default_factory=dict)  # value in older runs -> the same today
    before: Any = None  # the value that runs had which are older than the key; None: the key is as old as the code

    @property
    def pair(self) -> bool:
        return isinstance(self.default, tuple) and bool(self.default)

    @property
    def allowed(self) -> str:
        """The values that are allowed, in English; "" where the type says it all."""
        words = " and ".join(f"{word} {bound}" for word, bound, _ in self._bounds())
        if self.choices:
            words = f"{'any' if self.listed else 'one'} of {', '.join(self.choices)}"
        return f"(low, high) with low <= high, each {words}" if self.pair else words

    def check(self, value: Any) -> None:
        """Raises UserError where `value` has the wrong type or is not allowed."""
        parts = self.check_type(value)
        if self.listed:
            parts = value.split(",")
        if self.pair and not (len(parts) == 2 and parts[0] <= parts[1]) or not all(map(self._allows, parts)):
            if value != self.default:
                raise UserError(f"{self.name}={value!r} must be {self.allowed or 'finite'}", about=self.name)

    def check_type(self, value: Any) -> tuple[Any, ...]:
        """Raises UserError where `value` has the wrong type; returns the items of a tuple, or the value alone."""
        is_tuple = isinstance(self.default, tuple)
        kind = self.items or type(self.default[0] if is_tuple else self.default)
        parts = value if is_tuple and isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) != is_tuple or not all(_is(part, kind) for part in parts):
            wanted = f"a tuple of {kind.__name__}" if is_tuple else kind.__name__
            raise UserError(f"{self.name}={value!r} is of the wrong type; give {wanted}", about=self.name)
        return parts

    def _allows(self, part: Any) -> bool:
        if self.choices:
            return part in self.choices
        if isinstance(part, str | bool):
            return True
        return math.isfinite(part) and all(holds(part, bound) for _, bound, holds in self._bounds())

    def _bounds(self) -> list[tuple[str, float, Callable[[float, float], bool]]]:
        """The bounds that are declared: in words, the number, and the comparison."""
        bounds = (
            ("at least", self.low, operator.ge),
            ("above", self.above, operator.gt),
            ("at most", self.high, operator.le),
            ("below", self.below, operator.lt),
        )
        return [bound for bound in bounds if bound[1] is not None]


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind or kind is float and type(value) is int


class Keys:
    """All keys of a program. Iterates over them in the order of their declaration.

    `used` pairs conditions with the keys that need them, each by its name or its group, with spaces between:
    "model.predictor" stands for all keys of that group.
    """

    def __init__(self, *keys: Key, used: Iterable[tuple[Condition, str]] = ()):
        self._keys = {key.name: key for key in keys}
        if len(self._keys) < len(keys):
            raise ValueError("a key is declared twice")
        for condition, groups in used:
            for group in groups.split():
                names = [name for name in self._keys if f"{name}.".startswith(f"{group}.")]
                if not names:
                    raise ValueError(f"{group} is not a key or a group of keys, to be used when {condition.words}")
                for name in names:
                    key = self._keys[name]
                    self._keys[name] = dataclasses.replace(key, used=(*key.used, condition))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def named(self, name: str, prefix: str = "") -> Key:
        """The key of that name. UserError, with the nearest name, where there is none, each after `prefix`."""
        if name not in self._keys:
            nearest = difflib.get_close_matches(name, self._keys, n=1, cutoff=0.0)[0]
            raise UserError(f"{prefix}{name} is not a key; did you mean {prefix}{nearest}?", about=name)
        return self._keys[name]

    def defaults(self) -> ml_collections.ConfigDict:
        """A configuration of all defaults. Locked: setting an undeclared key raises."""
        config = ml_collections.ConfigDict()
        _put(config, {key.name: key.default for key in self})
        return config.lock()

    def is_used(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a key has an effect beside these values, by full names. A key that is not declared is used."""
        return name not in self._keys or self._unmet(name, values) is None

    def _unmet(self, name: str, values: Mapping[str, Any]) -> Condition | None:
        """The first condition for using a key that does not hold; None where all do."""

        def get(other: str) -> Any:
            return values.get(other, UNUSED) if self.is_used(other, values) else UNUSED

        return next((condition for condition in self._keys[name].used if not condition.holds(get)), None)

    def check(self, config: Mapping[str, Any] | ml_collections.ConfigDict, *set_by_user: Collection[str]) -> None:
        """Raises UserError for an unknown or missing key, a value that is not allowed, and one without any effect.

        `set_by_user` are the names set on top of a configuration file, by a command line say; several are layers, the
        last on top. An unused key must keep its default, unless keys of a higher layer made it unused: what a file sets
        may stay when the user switches off what it belongs to, but nobody may set a key in vain.
        """
        values = flatten(config)
        for name in values:
            self.named(name)
        for key in self:
            if key.name not in values:
                raise UserError(f"the configuration lacks {key.name}; start from configs.base", about=key.name)
            key.check(values[key.name])
        for key in self:
            if values[key.name] != key.default and not self.is_used(key.name, values):
                layer = max((i for i, names in enumerate(set_by_user, 1) if key.name in names), default=0)
                if self._dependencies(key.name).isdisjoint(itertools.chain(*set_by_user[layer:])):
                    given = f"{key.name}={values[key.name]!r}"
                    reason = self._reason(key.name, values)
                    raise UserError(f"{given} has no effect unless {reason}; leave it out", about=key.name)

    def _dependencies(self, name: str) -> set[str]:
        """The keys that decide whether a key is used."""
        names = {other for condition in self._keys[name].used for other in condition.names}
        return names.union(*map(self._dependencies, names))

    def _reason(self, name: str, values: Mapping[str, Any]) -> str:
        """What would have to hold for an unused key to be used, and what the values are."""
        condition = self._unmet(name, values)
        unused = [other for other in condition.names if not self.is_used(other, values)]
        if unused:
            return self._reason(unused[0], values)
        here = ", ".join(f"{other}={values[other]!r}" for other in condition.names)
        return f"{condition.words} (here {here})"

    def differences(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        """Names of the keys that tell two experiments apart: they differ, change results, and one side uses them."""
        one, other = self._renamed(flatten(one)), self._renamed(flatten(other))
        one, other = one | self._missing(one), other | self._missing(other)
        runtime = {key.name for key in self if not key.changes_results}
        return [
            name
            for name in sorted((one.keys() | other.keys()) - runtime)
            if one.get(name, UNUSED) != other.get(name, UNUSED)
            and (self.is_used(name, one) or self.is_used(name, other))
        ]

    def complete(self, config: ml_collections.ConfigDict) -> list[str]:
        """Gives the configuration of an older run today's values (see `formerly`) and the keys declared since.

        Returns the keys whose value is not known.
        """
        values = self._renamed(flatten(config))
        with config.ignore_type():
            _put(config, {key.name: values[key.name] for key in self if key.formerly and key.name in values})
        _put(config, self._missing(values))
        return sorted(self._keys.keys() - flatten(config).keys())

    def _renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by full names, those that older versions wrote in another way as today's: see `formerly`."""
        former = {name: self._keys[name].formerly for name in values if name in self._keys}
        return {name: former.get(name, {}).get(value, value) for name, value in values.items()}

    def _missing(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the keys that `values` lack, as far as they are known: see `before`; defaults of the others
        where they change no results or are unused."""
        absent = {key.name: key for key in self if key.name not in values}
        known = {name: key.before for name, key in absent.items() if key.before is not None}
        known = {name: key.default for name, key in absent.items() if not key.changes_results} | known
        unused = {name: key.default for name, key in absent.items() if not self.is_used(name, {**values, **known})}
        return unused | known

    def describe(self) -> str:
        """One line a key, for --help."""
        lines = []
        for key in self:
            given = f"  {key.name}={key.default!r}{'' if key.changes_results else ' *'}: {key.meaning}"
            used = f"used when {' and '.join(condition.words for condition in key.used)}" if key.used else ""
            lines.append("; ".join(filter(None, (given, key.allowed, used))) + "\n")
        return "".join(lines)


def flatten(tree: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Nested groups -> {"train.seed": 0, ...}, with lists as tuples, so that JSON's reading equals the original."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def _put(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets keys by their full names; makes the groups that are missing."""
    with config.unlocked():
        for name, value in values.items():
            *groups, leaf = name.split(".")
            node = config
            for group in groups:
                if group not in node:
                    node[group] = ml_collections.ConfigDict()
                node = node[group]
            node[leaf] = value

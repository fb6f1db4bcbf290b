"""A dictionary that refuses to be changed, for the fields of a frozen data set.

It stays a `dict` (so `isinstance`, `|`, `**` and pickling work as people expect); its tensors are shared, not
copied.
"""

from __future__ import annotations

from typing import Any, NoReturn


class FrozenDict[V](dict[str, V]):
    """A `dict` with text keys whose entries cannot be added, replaced or removed."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("a data set is frozen; make a new one with dataclasses.replace(data, ...)")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

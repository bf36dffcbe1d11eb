# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether names that stand in a file tell things apart as a reader would."""

from collections.abc import Iterable, Iterator


def names_alike(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ by white space alone."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(name.split()), name)
        if other != name:
            yield other, name


def check_names_differ(names: Iterable[str], place: str, kind: str = "classes") -> None:
    """Raises ValueError if two names differ by white space alone: they are meant as one, and would be two.

    Args:
        place: the file, or file and column, for the message.
        kind: of what they are the names, in the plural.
    """
    for first, second in names_alike(names):
        raise ValueError(
            f"{place}: the {kind} {first!r} and {second!r} differ by white space alone. Write them alike, or as what they are."
        )

"""What a table of published names is: rules from the modules of a source to our paths.

A rule is (pattern, destination, kind). The pattern matches the whole name of a published module,
without ".weight" or ".bias"; the destination is our path, "a/b/c", with the groups of the pattern
(\\1); several paths share a packed tensor in equal parts; None is for what no encoder needs. The
kind says what the module's tensors become (KINDS in checkpoints/convert.py). First match wins; a
tensor without a rule is an error. The kind "zeros" is of no tensor: its destination is a regex of
our paths that the source does without, where zeros are the same.
"""

Rule = tuple[str, str | tuple[str, ...] | None, str]
Rules = tuple[Rule, ...]


def under(source: str, target: str, rules: Rules) -> Rules:
    """The rules below a prefix there (a regex without groups), below a path here."""

    def place(to: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if to is None:
            return None
        return target + to if isinstance(to, str) else tuple(target + one for one in to)

    return tuple((source + pattern, place(to), kind) for pattern, to, kind in rules)

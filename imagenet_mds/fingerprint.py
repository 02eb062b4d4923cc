"""Fingerprints of JSON values, and readable differences between them.

They identify what must not change between the parts of one run. A fingerprint is the SHA-256 of canonical JSON, cut to
64 bits: enough against accidental mix-ups, and short enough to read aloud. It does not protect against forgery.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(value: Any) -> str:
    """Return the fingerprint of a JSON value.

    Args:
        value: anything `json.dumps` accepts. The order of keys does not matter, the order of lists does.

    Returns:
        16 hexadecimal digits.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map dotted paths to the leaves of nested mappings: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, str] = ("before", "now")
) -> list[str]:
    """List where two trees differ, one line per path with both values, sorted by path. `names` say which is which."""
    old, new = flatten(before), flatten(now)
    missing = "(not there)"
    return [
        f"{path}: {old.get(path, missing)!r} {names[0]}, {new.get(path, missing)!r} {names[1]}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, missing) != new.get(path, missing)
    ]

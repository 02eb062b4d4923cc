"""Fingerprints: what must not change between the parts of one run, as one short name and as a readable difference.

A fingerprint is the SHA-256 of canonical JSON, cut to 64 bits: enough to tell apart what people mix up by accident,
short enough to be read aloud. It is not a defence against forgery.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(value: Any) -> str:
    """Name a JSON value by its content.

    Args:
        value: anything `json.dumps` takes; the order of keys does not matter, the order of lists does.

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


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say where two trees differ, a line each with both values, sorted by path; no line where they are equal."""
    old, new = flatten(before), flatten(now)
    missing = "(not there)"
    return [
        f"{path}: {old.get(path, missing)!r} before, {new.get(path, missing)!r} now"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, missing) != new.get(path, missing)
    ]

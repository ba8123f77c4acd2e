"""Values that a config takes from the environment and that look like secrets: run folders and trackers get the text of
the config in their place."""

import re
from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]

# Words in the name of a key or of an environment variable.
_WORDS = frozenset(
    [
        "token",
        "secret",
        "secrets",
        "pass",
        "passwd",
        "password",
        "passwords",
        "passphrase",
        "pwd",
        "pw",
        "pin",
        "pat",
        "jwt",
        "auth",
        "bearer",
        "cred",
        "creds",
        "credential",
        "credentials",
        "key",
        "keys",
        "apikey",
        "apikeys",
        "accesskey",
        "privatekey",
        "session",
        "cookie",
        "sig",
        "signature",
    ]
)
# A URL that names a user, perhaps with a password.
_URL = re.compile(r"://[^/\s]*@")
_VARIABLE = re.compile(r"oc\.env:\s*['\"]?(\w+)")
# A shorter secret can be a part of many a word.
_LEAST_LENGTH = 6


def secrets_of(written: Any, resolved: Any) -> dict[Place, str]:
    """Where the secrets of a config stand, each with its text as it was written, such as "${oc.env:API_TOKEN}".

    Args:
        written: the config with its interpolations.
        resolved: the same with their values.
    """
    taken = [(place, text, value) for place, text, value in _texts(written, resolved) if "${" in text]
    found = {place: text for place, text, value in taken if _is_secret(place, text, value)}
    values = {value for place, _, value in taken if place in found and len(value) >= _LEAST_LENGTH}
    # Another key may repeat it, by an interpolation of its own.
    return found | {place: text for place, text, value in taken if any(secret in value for secret in values)}


def without_secrets(resolved: Any, secrets: dict[Place, str], place: Place = ()) -> Any:
    """A copy of a resolved config with the written text where a secret stands."""
    if place in secrets:
        return secrets[place]
    if isinstance(resolved, dict):
        return {key: without_secrets(value, secrets, (*place, key)) for key, value in resolved.items()}
    if isinstance(resolved, list):
        return [without_secrets(value, secrets, (*place, i)) for i, value in enumerate(resolved)]
    return resolved


def _texts(written: Any, resolved: Any, place: Place = ()) -> Iterator[tuple[Place, str, str]]:
    """Place, written text and value of every text of a config."""
    if isinstance(written, dict) and isinstance(resolved, dict):
        for key, value in written.items():
            yield from _texts(value, resolved.get(key), (*place, key))
    elif isinstance(written, list) and isinstance(resolved, list):
        for i, (value, found) in enumerate(zip(written, resolved, strict=True)):
            yield from _texts(value, found, (*place, i))
    elif isinstance(written, str) and isinstance(resolved, str):  # a number, such as max_tokens, is no secret
        yield place, written, resolved


def _is_secret(place: Place, text: str, value: str) -> bool:
    variables = _VARIABLE.findall(text)
    names = [str(part) for part in place] + variables
    return bool(variables) and (any(map(_sounds_secret, names)) or _URL.search(value) is not None)


def _sounds_secret(name: str) -> bool:
    # "dbPassword", "DB_PASSWORD" and "db-password2" are two words each.
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return not _WORDS.isdisjoint(word.lower() for word in words)

"""No value of a sweep that is recorded holds a secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.secrets import hide, holder, secrets_in, shown
from orchestrator.sweep.document import Document, Keys
from orchestrator.sweep.yaml import SECRET_PLACES, secret_here

ARTIFACTS: Keys = ("tracking", "artifacts")


def check_secrets(document: Document, environ: Mapping[str, str]) -> None:
    """Note values that are the secret of a variable (as where the shell has replaced `$HF_TOKEN`), and a password in
    the address of the artifacts, which MLflow records with every run."""
    for keys, text in _texts(document.data, ()):
        if keys in SECRET_PLACES:
            continue
        name = holder(text, environ)
        if name is not None:
            rule, next_step = secret_here(name, keys)
            document.add(keys, rule, value=hide(text), next_step=next_step)
            document.broken.add(keys)
        elif keys == ARTIFACTS and secrets_in(text):
            rule, next_step = secret_here("", keys)
            rule = "MLflow records the address of the artifacts with every run, so it must not hold a password"
            document.add(keys, rule, value=shown(text), next_step=next_step)


def _texts(data: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    if isinstance(data, str):
        yield keys, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _texts(value, (*keys, name))
    elif isinstance(data, list):
        for position, value in enumerate(data):
            yield from _texts(value, (*keys, position))

"""What the sections [alerts] and [policy] must keep to beyond their types."""

from __future__ import annotations

from urllib.parse import urlsplit

from hdap_tui.config import schema
from hdap_tui.config.source import Source, did_you_mean


def check(file: schema.File, source: Source) -> None:
    """Check the addresses and names in both sections.

    Raises:
        SettingsError: an address is none, holds a secret, or a recipe is missing.
    """
    webhook, path = file.alerts.webhook, ("alerts", "webhook")
    if webhook.url:
        problem = _problem(webhook.url)
        if problem:
            raise source.error((*path, "url"), problem)
    if webhook.secret_env and webhook.secret_command:
        raise source.error(
            (*path, "secret_env"), "and secret_command are both there; one of them is enough."
        )
    if "\n" in webhook.prefix or "\r" in webhook.prefix:
        raise source.error((*path, "prefix"), "must be one line.")
    recipe = file.policy.recipe
    if recipe and recipe not in file.recipes:
        raise source.error(
            ("policy", "recipe"),
            f'is "{recipe}", which is no recipe; {did_you_mean(recipe, file.recipes)}',
        )


def _problem(url: str) -> str:
    """Return what is wrong with a webhook's address, without saying more of it than its start."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is no address: {error}."
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://."
    if not parts.hostname or port == 0 or any(c.isspace() or ord(c) < 32 for c in url):
        return "is no address."
    if parts.username is not None or parts.password is not None:
        return "holds a user or a password; put them into secret_env or secret_command."
    return ""

"""What may be said to a user."""

from __future__ import annotations

from live.core.errors import PseError


def check_sentence(text: str) -> None:
    """One line that says something."""
    assert text.strip(), "nothing is said"
    assert "\n" not in text, f"more than one line is said: {text!r}"
    assert "Traceback" not in text, f"a traceback is said: {text!r}"
    assert len(text.split()) > 2, f"this is no sentence: {text!r}"


def check_error(error: BaseException) -> None:
    """An error for the user: of our tree, and one sentence."""
    assert isinstance(error, PseError), f"not one of live.core.errors: {error!r}"
    check_sentence(str(error))

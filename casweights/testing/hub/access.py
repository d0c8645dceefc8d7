"""Who may do what, by a table of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from casweights.testing.hub.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.testing.hub.messages import Request

OWN_NAMESPACE = "me"  # of whoever asks

TokenTable = dict[str, Literal["read", "write"]]


class Access:
    """Checks the token of requests.

    Args:
        tokens: What each token may; with None everybody may do everything.
    """

    def __init__(self, tokens: Mapping[str, Literal["read", "write"]] | None) -> None:
        self._tokens = None if tokens is None else dict(tokens)

    def may_read(self, request: Request, private: bool) -> bool:
        """Whether a request may see something."""
        return self._tokens is None or not private or request.token in self._tokens

    def read(self, request: Request, private: bool) -> None:
        """Let those pass who may see something.

        Raises:
            Refusal: If the token is missing or unknown, and it is needed.
        """
        if not self.may_read(request, private):
            raise Refusal(401, "Invalid username or password.")

    def write(self, request: Request) -> None:
        """Let those pass who may change something.

        Raises:
            Refusal: If the token is missing, unknown or for reading only.
        """
        if self._tokens is None:
            return
        right = self._tokens.get(request.token or "")
        if right is None:
            raise Refusal(401, "Invalid username or password.")
        if right != "write":
            raise Refusal(403, "Forbidden: you must use a token with write access")

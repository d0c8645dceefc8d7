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
        users: Whose each token is: it may change only what is that user's, and does not see what
            others have in private. With None there is one user.
    """

    def __init__(
        self,
        tokens: Mapping[str, Literal["read", "write"]] | None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._tokens = None if tokens is None else dict(tokens)
        self._users = None if users is None else dict(users)

    def user(self, request: Request) -> str:
        """The user who asks, which is also the name of a namespace.

        Raises:
            Refusal: If the token is nobody's.
        """
        if self._users is None:
            return OWN_NAMESPACE
        user = self._users.get(request.token or "")
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def may_read(self, request: Request, namespace: str, private: bool) -> bool:
        """Whether a request may see something."""
        try:
            self.read(request, namespace, private)
        except Refusal:
            return False
        return True

    def read(self, request: Request, namespace: str, private: bool) -> None:
        """Let those pass who may see something.

        Raises:
            Refusal: If the token is missing or unknown, and it is needed, or if it is another
                user's.
        """
        if not private:
            return
        if self._tokens is not None and request.token not in self._tokens:
            raise Refusal(401, "Invalid username or password.")
        if not self._owns(request, namespace):
            raise Refusal(404, "Repository not found", "RepoNotFound")

    def write(self, request: Request, namespace: str) -> None:
        """Let those pass who may change something.

        Raises:
            Refusal: If the token is missing, unknown, for reading only or another user's.
        """
        if self._tokens is not None:
            right = self._tokens.get(request.token or "")
            if right is None:
                raise Refusal(401, "Invalid username or password.")
            if right != "write":
                raise Refusal(403, "Forbidden: you must use a token with write access")
        if not self._owns(request, namespace):
            raise Refusal(403, f"Forbidden: you have no rights in the namespace {namespace}")

    def _owns(self, request: Request, namespace: str) -> bool:
        return self._users is None or self.user(request) == namespace

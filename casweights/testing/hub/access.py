"""Access rights, from a table of tokens and a table of users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from casweights.testing.hub.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.testing.hub.messages import Request

OWN_NAMESPACE = "me"  # in a path it stands for the user who sends the request

Right = Literal["read", "add", "write"]  # "add" is to write, but not to delete files
TokenTable = dict[str, Right]


class Access:
    """Checks whether the token of a request grants what the request does.

    Args:
        tokens: The right of each token. With None, tokens are not checked.
        users: The user who owns each token. A user may change only the contents of their own
            namespace, and does not see what is private in others. With None there is one user,
            who owns everything.
    """

    def __init__(
        self,
        tokens: Mapping[str, Right] | None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._tokens = None if tokens is None else dict(tokens)
        self._users = None if users is None else dict(users)

    def user(self, request: Request) -> str:
        """Return the user who sends a request; it is also the name of the user's namespace.

        Raises:
            Refusal: No user owns the token.
        """
        if self._users is None:
            return OWN_NAMESPACE
        user = self._users.get(request.token or "")
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def may_read(self, request: Request, namespace: str, private: bool) -> bool:
        """Return whether a request may see something in a namespace."""
        try:
            self.read(request, namespace, private)
        except Refusal:
            return False
        return True

    def read(self, request: Request, namespace: str, private: bool) -> None:
        """Check that a request may see something in a namespace.

        Raises:
            Refusal: The thing is private, and the token is missing, unknown or another user's.
        """
        if not private:
            return
        if self._tokens is not None and request.token not in self._tokens:
            raise Refusal(401, "Invalid username or password.")
        if not self._owns(request, namespace):
            # As the real Hub: not 403, which would reveal that it exists.
            raise Refusal(404, "Repository not found", "RepoNotFound")

    def write(self, request: Request, namespace: str, *, deletes: bool = True) -> None:
        """Check that a request may change something in a namespace.

        Args:
            request: The request.
            namespace: The namespace.
            deletes: Whether the change may delete files.

        Raises:
            Refusal: The token is missing, unknown, for reading only, for adding only although the
                change may delete files, or another user's.
        """
        if self._tokens is not None:
            right = self._tokens.get(request.token or "")
            if right is None:
                raise Refusal(401, "Invalid username or password.")
            if right == "read" or (right == "add" and deletes):
                raise Refusal(403, "Forbidden: you must use a token with write access")
        if not self._owns(request, namespace):
            raise Refusal(403, f"Forbidden: you have no rights in the namespace {namespace}")

    def _owns(self, request: Request, namespace: str) -> bool:
        return self._users is None or self.user(request) == namespace

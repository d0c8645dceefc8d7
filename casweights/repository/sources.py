"""Opens what a repair takes chunks from."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from casweights.content.donated import files_of_store, files_on_disk
from casweights.database import Database
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.events import Reporter
from casweights.format.names import CONFIG
from casweights.stores.base import ObjectStore
from casweights.stores.url import open_model_files, open_object_store, with_readahead
from casweights.system.files import to_path
from casweights.system.threads import default_workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.config import RemoteOptions
    from casweights.content.donated import PlainFiles

    Source = Database | ObjectStore | str | os.PathLike[str]


@contextmanager
def opened_sources(
    sources: Sequence[Source], remote: RemoteOptions
) -> Iterator[tuple[list[tuple[str, Database]], list[PlainFiles]]]:
    """Open sources: the stores among them with their names, and the plain files.

    Args:
        sources: Open stores, or paths and URLs.
        remote: Options for those behind a network.

    Raises:
        InvalidInputError: A source does not exist, or is neither a store nor files.
        StoreError: A source could not be read.
    """
    stores: list[tuple[str, Database]] = []
    files: list[PlainFiles] = []
    with ExitStack() as stack:
        for source in sources:
            if isinstance(source, Database):
                stores.append((source.store.url, source))
                continue
            plain = None if isinstance(source, ObjectStore) else _plain_files(source, remote)
            if plain is not None:
                files.append(plain)
                continue
            database = _open_store(source, remote)
            stack.callback(database.close)
            name = source.url if isinstance(source, ObjectStore) else os.fspath(source)
            stores.append((name, database))
        yield stores, files


def _plain_files(source: str | os.PathLike[str], remote: RemoteOptions) -> PlainFiles | None:
    """Return the files of a directory or a model repository; None if the source is a store."""
    path, name = to_path(source), os.fspath(source)
    model = open_model_files(name, remote)
    if model is not None:
        return files_of_store(model, name)
    if "://" in name.removeprefix("file://"):
        return None
    root = to_path(name.removeprefix("file://")) if name.startswith("file://") else path
    return None if (root / CONFIG).is_file() else files_on_disk(root, name)


def _open_store(source: ObjectStore | str | os.PathLike[str], remote: RemoteOptions) -> Database:
    if isinstance(source, ObjectStore):
        objects = with_readahead(source, remote)
    else:
        objects = open_object_store(source, remote)
    try:
        return Database(objects, workers=default_workers(), cache_size=0, reporter=Reporter())
    except NotFoundError as error:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, error.message) from error

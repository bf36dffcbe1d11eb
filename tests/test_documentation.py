# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What README and docs/ show is true: every block of code runs, every public name has its place, every link leads somewhere."""

import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import family_pages
import local_hub
import offline_hub
import pytest

import ea_hf


REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# The commands of the documentation run as they stand, with a smaller budget after the reader's own arguments.
BUDGET = "--max_train_samples 12 --max_eval_samples 6 --max_predict_samples 6 --num_train_epochs 1"
# Programs in whose place a block's commands find another one.
STAND_INS = {
    "make": 'exec {make} --no-print-directory -n "$@" > /dev/null',  # the target exists
    "git": "exit 0",  # there is nothing to clone from
    "pip": "exit 0",  # everything is installed
    "python": 'case "$1" in */run_*.py) set -- "$@" {budget};; demo/app.py) exec {python} "$@" --help > /dev/null;; esac; exec {python} "$@"',
    # One seed of the default ones.
    "ea-hf": 'case "$1" in compare) shift; set -- compare --seeds 1 "$@";; esac; exec {python} -m ea_hf "$@"',
    "torchrun": 'case "$*" in */run_*.py*) set -- "$@" {budget};; esac; exec {torchrun} "$@"',
    "accelerate": 'case "$*" in */run_*.py*) set -- "$@" {budget};; esac; exec {accelerate} "$@"',
}
DRIVER = """
import subprocess, sys, traceback
namespace = {"__name__": "__main__"}
for kind, code in %r:
    print(code, flush=True)
    if kind == "python":
        exec(compile(code, "block", "exec"), namespace)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return offline_hub.write_offline_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def online_hub(tmp_path):
    """The environment of a user with an account on a server that has the stand-ins, for the page on pushing."""
    with local_hub.running_hub() as server:
        for name, write in offline_hub.MODELS.items():
            directory = tmp_path / "repositories" / name
            write(directory)
            server.hold(name, directory)
        yield {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": local_hub.TOKEN, **server.environment}


@pytest.fixture
def root(tmp_path):
    """A folder that looks like the repository, and programs with a smaller budget."""
    root, programs = tmp_path / "ea_hf", tmp_path / "bin"
    root.mkdir()
    programs.mkdir()
    offline_hub.link_repository(REPOSITORY, root)
    offline_hub.write_files(root)
    found = {name: offline_hub.executable(name) for name in ("make", "torchrun", "accelerate")}
    for name, script in STAND_INS.items():
        path = programs / name
        path.write_text("#!/usr/bin/env bash\n" + script.format(python=sys.executable, budget=BUDGET, **found) + "\n")
        path.chmod(0o755)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_every_block_runs(page, root, request):
    hub = request.getfixturevalue("online_hub" if page.name == "hub.md" else "hub")
    code = [(kind, text) for kind, text in blocks(page) if kind in ("python", "bash")]
    environment = {
        **os.environ,
        **hub,
        "PATH": f"{root.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", DRIVER % code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page):
    """A block without one would not be run."""
    unknown = {kind for kind, _ in blocks(page)} - {"python", "bash", "text", "yaml", "bibtex"}
    assert not unknown, f"blocks of the languages {unknown} in {page.name}"


API_PAGES = [REPOSITORY / "docs" / "api.md", *sorted((REPOSITORY / "docs" / "api").glob("*.md"))]


def api_texts() -> list[str]:
    """Those of the pages of the API reference, last of the families whose page is generated."""
    return [page.read_text() for page in API_PAGES] + [*map(family_pages.page_of, family_pages.families().values())]


def described(text: str) -> list[str]:
    """The public names whose place a page of the API reference is."""
    return re.findall(r"^::: ea_hf\.(?:estimators\.)?(\w+)$", text, re.MULTILINE)


def test_api_reference_has_every_public_name():
    assert sorted(name for text in api_texts() for name in described(text)) == sorted(ea_hf.__all__)


def documentation(name: str) -> str:
    return "" if name == "PRESETS" else inspect.getdoc(getattr(ea_hf, name)) or ""


def example(name: str) -> str:
    """The code of the docstring of a public name."""
    return textwrap.dedent("".join(re.findall(r"```python\n(.*?)```", documentation(name), re.DOTALL)))


def test_classes_of_models_say_what_they_take_and_return_with_an_example():
    """Or they refer to the class that does."""
    names = [name for family in ea_hf.FAMILIES for name in family.__all__ if re.search(r"(Model|For[A-Z]\w+)$", name)]
    for name in names:
        text = documentation(name)
        refers = None if example(name) else re.search(r"\[`(\w+)`\]\[ea_hf\.\1\]", text)
        if refers:
            name, text = refers[1], documentation(refers[1])
        assert example(name), name
        assert name.endswith("PreTrainedModel") or ("Takes" in text and "Returns" in text), name


@pytest.mark.slow
def test_examples_of_docstrings_run(root, hub):
    """Each after the code that its page begins with."""
    code = []
    for text in api_texts():
        code += [block for block in BLOCK.findall(text) if block[0] == "python"]
        code += [("python", example(name)) for name in described(text)]
    environment = {**os.environ, **hub, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER % code]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]


def test_site_builds_and_its_formulas_need_no_script(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    method = (tmp_path / "method" / "index.html").read_text()
    assert "<math" in method
    assert "arithmatex" not in method
    assert f"ea_hf {ea_hf.__version__}" in method and 'rel="next"' in method
    assert "0.1.0" in (tmp_path / "changelog" / "index.html").read_text()
    notebook = (tmp_path / "notebooks" / "quickstart" / "index.html").read_text()
    assert "held-out verses" in notebook and ".ipynb" not in notebook.replace("docs/notebooks/quickstart.ipynb", "")
    for path in tmp_path.rglob("*.html"):
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://(?!squidfunk)', path.read_text()), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target

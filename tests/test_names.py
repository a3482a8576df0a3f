"""Names that others use too: a module `kernels` that is not ours, and the `scratchgen` of the package index."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WRONG = "print('the wrong one runs')\n"


def python(*arguments, cwd, path=(ROOT,)):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


def refused(done, *words):
    assert done.returncode != 0 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and last.endswith(".") and all(str(word) in last for word in words), done.stderr


def test_a_kernels_py_where_python_starts_is_named_and_not_run(tmp_path):
    (tmp_path / "kernels.py").write_text(WRONG)
    refused(python("-c", "import scratchgen", cwd=tmp_path), tmp_path / "kernels.py", ROOT / "kernels", "rename")
    command = python("-m", "scratchgen", "recipes", cwd=tmp_path)
    assert command.returncode == 2 and command.stdout == "" and len(command.stderr.splitlines()) == 1
    assert command.stderr.startswith("scratchgen: scratchgen needs its own package kernels") and "rename" in command.stderr


def test_a_script_named_kernels_does_not_import_itself(tmp_path):
    (tmp_path / "kernels.py").write_text("import scratchgen\n" + WRONG)
    refused(python("kernels.py", cwd=tmp_path), tmp_path / "kernels.py")


def test_another_package_kernels_is_named(tmp_path):
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text(WRONG)
    refused(python("-c", "import scratchgen", cwd=tmp_path, path=(tmp_path / "site", ROOT)), tmp_path / "site" / "kernels")


def test_a_module_made_by_the_program_is_not_ours(tmp_path):
    made = "import sys, types; sys.modules['kernels'] = types.ModuleType('kernels'); import scratchgen"
    refused(python("-c", made, cwd=tmp_path), ROOT / "kernels")


def test_another_package_installed_over_ours_is_noticed(tmp_path):
    shutil.copytree(ROOT / "scratchgen", tmp_path / "scratchgen")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    refused(python("-c", "import scratchgen", cwd=tmp_path, path=()), tmp_path / "kernels", "over")


def test_without_kernels_the_sentence_is_the_same(tmp_path):
    shutil.copytree(ROOT / "scratchgen", tmp_path / "scratchgen")
    alone = f"import sys; sys.path.append({str(tmp_path)!r}); import scratchgen"
    refused(python("-I", "-S", "-c", alone, cwd=tmp_path), tmp_path / "kernels", "nothing")


def test_a_folder_named_kernels_is_no_harm(tmp_path):
    (tmp_path / "kernels").mkdir()
    done = python("-c", "import scratchgen as sg; print(sg.tensor([2.0]).sum().item())", cwd=tmp_path)
    assert done.stdout == "2.0\n", done.stderr


def test_nobody_is_told_to_install_another_projects_scratchgen():
    folders = [ROOT / name for name in ("scratchgen", "kernels", "tests", "benchmarks")]
    files = [file for folder in folders for file in folder.rglob("*.py") if file != Path(__file__)]
    files += [ROOT / name for name in ("README.md", "Makefile", "setup.cfg", "pyproject.toml")]
    told = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert len(told) > 5
    assert not [line for line in told if re.search(r"pip install\b.*\bscratchgen\b", line)]


@pytest.mark.parametrize("name", ["scratchgen", "kernels"])
def test_the_distribution_has_a_name_of_its_own_and_the_packages_keep_theirs(name):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["metadata"]["name"] == "generative-from-scratch"
    assert name in setup["options.packages.find"]["include"].split()

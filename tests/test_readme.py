"""Every Python block of the README runs, and prints what its comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def promised(block: str) -> str:
    """The comments behind and below each print, joined; a comment on any other line is prose."""
    lines, printing = [], False
    for line in block.splitlines():
        code, _, comment = line.partition("#")
        if code.strip():
            printing = code.lstrip().startswith("print")
        if printing and comment:
            lines.append(comment)
    return "".join("".join(lines).split())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.splitlines()[-1][:40])
def test_a_block_prints_what_it_says(block):
    run = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=True)
    assert promised(block) == "".join(run.stdout.split())


def test_there_are_blocks_and_promises():
    assert len(BLOCKS) >= 2 and all(promised(b) for b in BLOCKS)


def test_the_commands_of_the_readme_exist():
    from scratchgen.__main__ import main

    for command in sorted(set(re.findall(r"^    scratchgen (\w+)", README, re.MULTILINE))):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command


def test_the_files_of_the_readme_exist():
    for path in re.findall(r"`((?:scratchgen|kernels|tests)/[\w/.*]+)`", README):
        assert list(ROOT.glob(path)) or (ROOT / path).exists(), path
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (demo|test-deep|test|lint|docs)\b", README)) <= targets

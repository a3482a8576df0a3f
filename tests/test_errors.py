"""What goes wrong around the program is answered by one sentence, and what the program tells people to do works.

Damaged checkpoints, wrong environment variables, streams that are closed or full, names that a shell or a terminal would
take for something else. Damaged data are in `test_data.py`, mistakes on the command line in `test_cli.py`.
"""

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels import settings
from scratchgen import __main__ as command
from scratchgen import models, random
from scratchgen.__main__ import main
from scratchgen.data import DataError
from scratchgen.text import CharTokenizer
from scratchgen.training import TrainingError, demo, folder, loop, open_run, pictures, report, train
from scratchgen.training.folder import load_checkpoint, read_metrics, save_checkpoint, write_whole
from tests.strategies import DEEP

ROOT = Path(__file__).parent.parent
TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 20
FAST = {"batch_size": 8, "log_every": 2, "sample_every": 100, "eval_batches": 1}
VAE = {**FAST, "data": "digits", "hidden": 16, "latent": 3}
GPT = {**FAST, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
SET = [word for key, value in VAE.items() if key != "data" for word in ("--set", f"{key}={value}")]


def quiet(_):
    pass


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    monkeypatch.setattr(pictures, "curves", lambda panels, rows: b"")
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with small runs of a vae and a gpt; tests leave them as they are."""
    top = tmp_path_factory.mktemp("runs")
    (top / "text.txt").write_text(TEXT)
    state = random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "curves", lambda panels, rows: b"")
        train("vae", top / "vae", {**VAE, "steps": 4}, progress=False, say=quiet)
        train("gpt", top / "gpt", {**GPT, "steps": 4, "data": str(top / "text.txt")}, progress=False, say=quiet)
    random.set_rng_state(state)
    return top


def run(*words, shell=None, cwd=ROOT, **environment):
    """The command in a process of its own; the shell's redirections after its words."""
    words = shlex.join([sys.executable, "-m", "scratchgen", *map(str, words)])
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", f"{words} {shell or ''}"], cwd=cwd, env=env, capture_output=True, timeout=120)


def sentence(err):
    err = err.decode() if isinstance(err, bytes) else err
    assert err.startswith("scratchgen: ") and err.count("\n") == 1 and err.endswith(".\n"), err
    return err


# ---------------------------------------------------------------------------------------------------------------------
# Files that are written
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["write", "fsync", "replace", "surrogate"])
def test_a_failed_write_leaves_nothing(fails, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fails in ("fsync", "replace"):
        monkeypatch.setattr(os, fails, full)
    content = {"write": 3.5, "surrogate": "a\udcff"}.get(fails, "new")
    with pytest.raises((OSError, TypeError, UnicodeEncodeError)):
        write_whole(path, content)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    (tmp_path / "link").symlink_to("far/file")
    (tmp_path / "to-nothing").symlink_to("far/new")
    (tmp_path / "loop").symlink_to("loop")
    write_whole(tmp_path / "link", "new")
    write_whole(tmp_path / "to-nothing", "made")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        write_whole(tmp_path / "loop", "new")
    assert all((tmp_path / name).is_symlink() for name in ("link", "to-nothing", "loop"))
    assert (tmp_path / "far" / "file").read_text() == "new" and (tmp_path / "far" / "new").read_text() == "made"
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["file", "new"]


def test_a_path_need_not_be_utf_8(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(odd)
    (Path(odd) / "text.txt").write_text(TEXT)
    changes = {**GPT, "steps": 2, "data": f"{odd}/text.txt"}
    train("gpt", f"{odd}/run", changes, progress=False, say=quiet)
    assert json.loads((Path(odd) / "run" / "config.json").read_text(encoding="utf-8"))["recipe"]["data"] == changes["data"]
    train("gpt", f"{odd}/run", {"steps": 4}, resume=True, progress=False, say=quiet)
    assert main(["eval", f"{odd}/run"]) == 0 and open_run(f"{odd}/run").step == 4
    report.page(Path(odd) / "index.html", [(open_run(f"{odd}/run"), {})])
    assert not list(Path(odd).rglob("*.tmp"))


# ---------------------------------------------------------------------------------------------------------------------
# Files that are read
# ---------------------------------------------------------------------------------------------------------------------


def crafted(tree):
    """Checkpoints with a right checksum that this version would not have written."""
    for key in tree:
        yield f"without {key}", {k: v for k, v in tree.items() if k != key}
        if key not in ("random", "optimizers"):  # these are looked at where a run is continued only
            yield f"{key} of another type", {**tree, key: [3.5]}
    yield "another recipe", {**tree, "recipe": {**tree["recipe"], "name": "diffusion"}}
    yield "another setting", {**tree, "recipe": {**tree["recipe"], "model": {**tree["recipe"]["model"], "depth": 3}}}
    yield "another shape", {**tree, "model": {k: v[:1] for k, v in tree["model"].items()}}
    yield "text for weights", {**tree, "model": dict.fromkeys(tree["model"], "0.1")}
    yield "no weights", {**tree, "model": {}}
    yield "more weights", {**tree, "model": {**tree["model"], "more": np.zeros(3)}}
    if "tokenizer" in tree["metadata"]:
        yield "another tokenizer", {**tree, "metadata": {"tokenizer": {"kind": "syllable"}}}
    yield "a list", [tree]
    yield "a number", 3


def test_a_checkpoint_of_another_version_gets_a_sentence(runs, tmp_path, capsys):
    wanted = ("step", "recipe", "decided", "metadata", "checksums", "model", "ema")
    for name in ("vae", "gpt"):
        for what, tree in crafted(load_checkpoint(runs / name / "checkpoint.safetensors")):
            (tmp_path / "config.json").write_bytes((runs / name / "config.json").read_bytes())
            save_checkpoint(tmp_path / "checkpoint.safetensors", tree)
            if what.removeprefix("without ") in wanted or not what.startswith("without"):
                assert main(["sample", str(tmp_path), "-n", "1", "--out", str(tmp_path / "x.png")]) == 2, what
                said = sentence(capsys.readouterr().err)
                assert f"{tmp_path}/checkpoint.safetensors: written by another version" in said, what
            with contextlib.suppress(TrainingError):  # whatever continuing does not need may be missing
                train(name, tmp_path, {"steps": 5}, resume=True, progress=False, say=quiet)


def paths(tree, path=()):
    """The path to everything inside a tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in inside:
        yield (*path, key)
        yield from paths(value, (*path, key))


def replaced(tree, path, value):
    """The tree with another value at that path, or, where the value is Ellipsis, without what is there."""
    inside = dict(tree) if isinstance(tree, dict) else dict(enumerate(tree))
    inside[path[0]] = value if len(path) == 1 else replaced(inside[path[0]], path[1:], value)
    inside = {key: value for key, value in inside.items() if value is not ...}
    return inside if isinstance(tree, dict) else type(tree)(inside.values())


@pytest.mark.parametrize("name", ["vae", "gpt"])
def test_a_checkpoint_with_anything_anywhere(name, runs, tmp_path):
    """Each of the crafted checkpoints is taken as it is, or refused in a sentence, by what samples and by what continues."""
    odd = [..., None, -1, 0, 3.5, "x", [], {}, True, np.zeros(2), float("nan"), (1, 2), {"a": 1}]
    tree = load_checkpoint(runs / name / "checkpoint.safetensors")
    everywhere, rng, refused = list(paths(tree)), np.random.default_rng() if DEEP else np.random.default_rng(4), 0
    for _ in range(1000 if DEEP else 25):
        path, value = everywhere[rng.integers(len(everywhere))], odd[rng.integers(len(odd))]
        (tmp_path / "config.json").write_bytes((runs / name / "config.json").read_bytes())
        for take in (open_run, lambda run: train(name, run, {"steps": 5}, resume=True, progress=False, say=quiet)):
            save_checkpoint(tmp_path / "checkpoint.safetensors", replaced(tree, path, value))
            try:
                take(tmp_path)
            except (TrainingError, DataError, MemoryError):
                refused += 1
            except Exception as error:
                raise AssertionError(f"{value!r} at {path}: {type(error).__name__}: {error}") from error
    assert refused > 10


@pytest.mark.parametrize("step", [-1, [1, 2], -0.5])
def test_an_optimiser_refuses_a_step_that_none_took(step):
    from scratchgen import nn, optim

    optimizer = optim.Adam([nn.Parameter(np.ones(2, np.float32))])
    state = optimizer.state_dict() | {"state": {0: {"step": step, "exp_avg": np.zeros(2), "exp_avg_sq": np.zeros(2)}}}
    with pytest.raises(ValueError, match="step of parameter 0 to be a number of at least 0"):
        optimizer.load_state_dict(state)
    (group,) = optimizer.state_dict()["param_groups"]
    with pytest.raises(ValueError, match="expected amsgrad to be true or false"):
        optimizer.load_state_dict({"state": {}, "param_groups": [group | {"amsgrad": np.zeros(2)}]})


def test_crafted_headers_with_a_right_seal(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"a": np.arange(4.0), "b": [1, 2.5, None]})
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    entry = json.loads(header["__metadata__"]["scratchgen"])
    trees = [{}, {"sha256": "0" * 64}, {"sha256": "0" * 64, "state": {"array": "none"}}]
    states = {"dict": 3}, {"dict": [[[], 1]]}, {"a": 1, "b": 2}, {"list": 1}
    trees += [{"sha256": "0" * 64, "state": state} for state in states]
    headers = [{**header, "__metadata__": {"scratchgen": json.dumps(tree)}} for tree in trees]
    headers += [{**header, "__metadata__": {"other": json.dumps(entry)}}, {"__metadata__": {"scratchgen": json.dumps(entry)}}]
    for change in ({"dtype": "BF16"}, {"dtype": "F7"}, {"shape": [10**12]}, {"shape": [-1]}, {"data_offsets": [0, 10**15]}):
        headers.append({**header, "a": {**header["a"], **change}})
    bodies = [json.dumps(h).encode() for h in headers]
    deep = json.dumps({"sha256": "0" * 64, "state": 0})[:-2] + "[" * 100_000 + "]" * 100_000 + "}"
    bodies.append(json.dumps({**header, "__metadata__": {"scratchgen": deep}}).encode())
    bodies += [b"[]" + json.dumps(entry).replace('"', '\\"').encode(), json.dumps(header).encode() + b"}"]
    refused = 0
    for body in bodies:
        crafted = bytearray(len(body).to_bytes(8, "little") + body + raw[8 + size :])
        if folder._SEAL.search(crafted):
            crafted[slice(*folder._SEAL.search(crafted).span(1))] = folder._digest(crafted).encode()
            refused += 1
        path.write_bytes(crafted)
        with pytest.raises(TrainingError, match=r"another version|damaged"):
            load_checkpoint(path)
    assert refused > 12, "their seals are right: what is refused is their content"


def test_metrics_that_no_run_wrote(runs, tmp_path, capsys):
    lines = ['{"step": 2, "loss": 1}', "[]", '"step"', '{"step": "3", "seconds": 1}', '{"step": 3, "seconds": "1"}']
    lines += ['{"step": 4, "seconds": NaN}', '{"step": true, "seconds": 1}', '{"step": 5, "seconds": 2.5, "loss": 1}', "{", ""]
    lines += ["[" * 10**5, '{"step": 5, "seconds": 9}', '{"step": 4.5, "seconds": 9}', '{"step": 7, "seconds": null}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "seconds": 2.5, "loss": 1}]
    for name in ("config.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((runs / "vae" / name).read_bytes())
    train("vae", tmp_path, {"steps": 8}, resume=True, progress=False, say=quiet)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [6, 8]
    (tmp_path / "metrics.jsonl").unlink()  # and a page of a run without any
    report.page(tmp_path / "index.html", [(open_run(tmp_path), {})])
    assert (tmp_path / "index.html").stat().st_size > 1000


# ---------------------------------------------------------------------------------------------------------------------
# The environment
# ---------------------------------------------------------------------------------------------------------------------

WRONG = {
    "SCRATCHGEN_KERNELS": ["gpu", "CPU", " cpu", "cuda"],
    "SCRATCHGEN_THREADS": ["0", "-1", "two", "1.5", " 2", "²", "1" * 30, "0x2"],
    "SCRATCHGEN_SIMD": ["64", "avx2", "512 ", "0", "-128"],
    "SCRATCHGEN_TF32": ["yes", "true", "2"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_variable_that_means_nothing_gets_a_sentence(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value in WRONG[name]:
        monkeypatch.setenv(name, value)
        with pytest.raises(settings.SettingError, match=f"{name}: expected .*, got {value!r}"):
            settings.check()
        for words in (["info"], ["train", "vae", "--steps", "1"], ["eval", "x"], ["demo", "--quick"], ["gradcheck", "exp"]):
            assert main(words) == 2
            assert name in sentence(capsys.readouterr().err)
    assert not list(tmp_path.iterdir()), "nothing was begun"
    monkeypatch.setenv(name, "")
    settings.check()


def test_variables_that_mean_something(monkeypatch):
    read = {"SCRATCHGEN_KERNELS": settings.backend, "SCRATCHGEN_THREADS": settings.threads}
    read |= {"SCRATCHGEN_SIMD": settings.vector_bits, "SCRATCHGEN_TF32": settings.tf32}
    right = {"reference": "reference", "cpu": "cpu", "": None}, {"3": 3, "08": 8, "": None}
    right += {"128": 128, "256": 256, "512": 512, "": None}, {"1": True, "0": False, "": False}
    for (name, setting), values in zip(read.items(), right, strict=True):
        for text, value in values.items():
            monkeypatch.setenv(name, text)
            assert setting() == value
        monkeypatch.delenv(name)
        assert setting() == values[""]


def test_the_package_can_be_imported_whatever_the_variables_say():
    """The command line can answer with a sentence only if importing the package raises nothing."""
    code = "import kernels, numpy as np; import scratchgen; kernels.matmul(np.ones((2, 2)), np.ones((2, 2)))"
    environment = {**os.environ, "SCRATCHGEN_KERNELS": "gpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stderr.endswith("SettingError: SCRATCHGEN_KERNELS: expected reference or cpu, got 'gpu'.\n")
    done = run("info", SCRATCHGEN_KERNELS="gpu")
    assert done.returncode == 2 and "'gpu'" in sentence(done.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------------


def test_closed_and_full_streams(tmp_path):
    words = ["train", "vae", "--steps", "2", "--set", "sample_every=1000", *SET]
    done = run(*words, "--out", tmp_path / "a", shell="2>&- </dev/null")
    assert done.returncode == 0 and b"done: 2 steps" in done.stdout
    assert run(*words, "--out", tmp_path / "b", shell="<&- >&- 2>&-").returncode == 0
    assert open_run(tmp_path / "b").step == 2
    done = run("eval", tmp_path / "nowhere", shell="2>&-")
    assert done.returncode == 2 and not done.stdout, "what belongs on stderr does not go elsewhere"
    assert run("eval", tmp_path / "nowhere", shell="2>/dev/full").returncode == 2
    done = run("recipes", shell=">/dev/full")
    assert done.returncode == 2 and os.strerror(errno.ENOSPC) in sentence(done.stderr)
    done = run("--help", shell="| true; exit ${PIPESTATUS[0]}")
    assert done.returncode in (0, 141) and not done.stderr


def test_control_characters_do_not_reach_the_terminal(runs, monkeypatch, capsys, tmp_path):
    text = "a\x1b]0;title\x07\x1b[2Jb\tc\nd\r\x00\x7f\x9b31me — ä\x85\xa0€😀"
    monkeypatch.setattr(models.GPT, "generate", lambda self, ids, n, **rules: np.zeros((1, 1)))
    monkeypatch.setattr(CharTokenizer, "decode", lambda self, ids: text)
    assert main(["sample", str(runs / "gpt")]) == 0
    out = capsys.readouterr().out
    assert out == "a\\x1b]0;title\\x07\\x1b[2Jb\tc\nd\\r\\x00\\x7f\\x9b31me — ä\\x85\xa0€😀\n"
    assert main(["sample", str(runs / "gpt"), "--out", str(tmp_path / "x.txt")]) == 0
    assert (tmp_path / "x.txt").read_bytes().decode() == text + "\n", "a file gets the text as it is"
    for words in (["eval", "no\x1b[2Jrun"], ["train", "vae", "--data", "no\x1b[2Jdata"], ["train", "v\x1b[2J"]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert "\x1b" not in out + sentence(err) and "\\x1b[2J" in err
    odd = tmp_path / "odd\x1b[2J"
    odd.mkdir()
    (odd / "t.txt").write_text(TEXT)
    changes = [word for key, value in GPT.items() for word in ("--set", f"{key}={value}")]
    assert main(["train", "gpt", "--data", str(odd), "--out", str(odd / "run"), "--steps", "1", *changes]) in (0, 2)
    assert "\x1b" not in "".join(capsys.readouterr())


# ---------------------------------------------------------------------------------------------------------------------
# What people are told to do
# ---------------------------------------------------------------------------------------------------------------------


def stopped(words, monkeypatch, capsys):
    """What the program says when it is interrupted in the first step: the words of the command to go on with."""
    real, calls = loop.State.advance, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 2:  # the first call is the rehearsal, before anything is written
            signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.State, "advance", interrupted)
        assert main(words) == 130
    told = re.search(r"to go on: (.*)\n$", capsys.readouterr().err)[1]
    program, *words = shlex.split(told)
    assert program == "scratchgen"
    return words


def test_a_stopped_training_goes_on_as_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for out in ("my runs/vae $HOME 'x'", "-x", "plain"):
        again = stopped(["train", "vae", "--steps", "3", f"--out={out}", "--quiet", *SET], monkeypatch, capsys)
        assert main(again) == 0 and open_run(tmp_path / out).step == 3
        told = re.search(r"next: (.*) and (.*)\n$", capsys.readouterr().out)
        for words in map(shlex.split, told.groups()):
            assert words[0] == "scratchgen" and main(words[1:]) == 0
        capsys.readouterr()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["-x", "my runs", "plain"]
    assert stopped(["train", "vae", "--steps", "3", *SET], monkeypatch, capsys) == ["train", "vae", "--resume"]


def test_a_stopped_demo_goes_on_as_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TOUR", {"vae": {**VAE, "steps": 40, "sample_every": 100}})
    monkeypatch.setattr(report, "page", lambda path, shown: path.write_text("page"))
    for out, options in (("my demo", ["--seed", "3", "--quick"]), ("runs/demo", ["--quick"]), ("-x", ["--seed", "1"])):
        again = stopped(["demo", f"--out={out}", *options], monkeypatch, capsys)
        assert again[0] == "demo" and set(options) <= set(again)
        assert main(again) == 0 and (tmp_path / out / "index.html").exists()
        assert open_run(tmp_path / out / "vae").step == (4 if "--quick" in options else 40)
        capsys.readouterr()


def test_the_program_is_called_as_it_was(monkeypatch, tmp_path):
    for called, found, name in (
        ("/x/bin/scratchgen", True, "scratchgen"),
        ("/x y/bin/scratchgen", False, "'/x y/bin/scratchgen'"),
        ("/x/scratchgen/__main__.py", True, "python -m scratchgen"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        monkeypatch.setattr("shutil.which", lambda word, found=found: sys.executable if found else None)
        assert command._command("eval", "a b") == f"{name} eval 'a b'"
    monkeypatch.setattr("shutil.which", lambda word: None)
    assert command._command("info") == f"{shlex.quote(sys.executable)} -m scratchgen info"


def test_paths_are_what_they_say(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["train", "vae", "--steps", "1", "--out=~/vae", *SET]) == 0
    assert main(["sample", "~/vae", "-n", "1", "--out=~/x.png"]) == 0 and main(["eval", "~/vae"]) == 0
    assert main(["sample", str(runs / "gpt"), "--length", "3", "--out=~/x.txt"]) == 0
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["vae", "x.png", "x.txt"]
    capsys.readouterr()
    for words in (
        ["sample", str(runs / "gpt"), "--out", "new/"],
        ["sample", str(runs / "vae"), "--out", "new.png/"],
        ["sample", str(runs / "gpt"), "--out", "."],
        ["sample", str(runs / "gpt"), "--out", ""],
        ["train", "vae", "--out", ""],
        ["train", "vae", "--data", ""],
        ["eval", ""],
        ["train", "vae", "--data", "~nobody-of-that-name/x"],
    ):
        assert main(words) == 2
        assert re.search(r"name of a file, got|expected a path|no data set", sentence(capsys.readouterr().err))
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


def test_an_out_that_is_a_link_stays_one(runs, tmp_path, capsys):
    for name, target in (("x.txt", "written.txt"), ("x.png", "written.png")):
        (tmp_path / name).symlink_to(target)
        run = runs / ("gpt" if name == "x.txt" else "vae")
        assert main(["sample", str(run), "-n", "1", "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).is_symlink() and (tmp_path / target).stat().st_size > 10


def test_numbers_that_no_memory_holds(runs, capsys):
    for words in (["-n", str(10**20)], ["-n", "10001"], ["--length", str(10**20)], ["-n", "1" + "0" * 400]):
        assert main(["sample", str(runs / "gpt"), *words]) == 2
        assert "at most 10000" in sentence(capsys.readouterr().err)
    for words in (["--steps", "1" + "0" * 400], ["--seed", "1" + "0" * 400], ["--set", f"batch_size={10**30}"]):
        assert main(["train", "gpt", "--out", str(runs / "never"), *words]) == 2
        sentence(capsys.readouterr().err)
    assert not (runs / "never").exists()


def test_a_run_that_cannot_be_written_is_still_scored(runs, capsys, monkeypatch):
    def refused(path, content):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    assert main(["eval", str(runs / "vae")]) == 0  # its classifier is kept from now on
    capsys.readouterr()
    monkeypatch.setattr(folder, "write_whole", refused)
    assert main(["eval", str(runs / "vae"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["scores"]["elbo"] < 0 and "eval.json" in sentence(err)
    assert main(["eval", str(runs / "vae")]) == 0
    out, err = capsys.readouterr()
    assert "elbo" in out and "eval.json" not in out and "eval.json" in sentence(err)
    assert main(["sample", str(runs / "vae"), "-n", "1"]) == 2
    assert "--out" in sentence(capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------------------------------
# Ctrl-C while the program starts
# ---------------------------------------------------------------------------------------------------------------------

# As a sitecustomize: SIGINT when a certain module is about to be imported.
INTERRUPT = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def interrupted(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    (tmp_path / "scratchgen").write_text("import sys\nfrom scratchgen.__main__ import main\nsys.exit(main())\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    def at(module, *words, **options):
        environment = {**os.environ, "PYTHONPATH": path, "INTERRUPT_AT": module}
        options |= {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        return subprocess.run([sys.executable, *words], **options)

    return at


@pytest.mark.parametrize("module", ["numpy", "scratchgen.ops", "scratchgen.models", "argparse", "scratchgen.training.loop"])
def test_ctrl_c_while_the_command_loads(module, interrupted, tmp_path):
    for words in (["-m", "scratchgen"], [str(tmp_path / "bin" / "scratchgen")]):
        if words[0] != "-m":
            (tmp_path / "bin").mkdir()
            (tmp_path / "scratchgen").rename(tmp_path / "bin" / "scratchgen")
        done = interrupted(module, *words, "train", "vae", "--out", str(tmp_path / "run"))
        assert done.returncode in (130, -signal.SIGINT), "what a shell calls 130"
        assert done.stderr == "\nscratchgen: stopped.\n" and not done.stdout
    assert not (tmp_path / "run").exists()


def test_ctrl_c_elsewhere_stays_what_it_is(interrupted):
    done = interrupted("numpy", "-c", "import scratchgen")
    assert done.returncode == -signal.SIGINT and done.stderr.endswith("KeyboardInterrupt\n")
    program = "try:\n import scratchgen\nexcept KeyboardInterrupt:\n print('mine')"
    assert interrupted("scratchgen.ops", "-c", program).stdout == "mine\n"
    ignored = interrupted(
        "numpy", "-m", "scratchgen", "recipes", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    assert ignored.returncode == 0 and "vae" in ignored.stdout, "where Ctrl-C is ignored it stays so"

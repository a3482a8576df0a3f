"""`scratchgen tokenizer`, tokens in colours, and a language model on tokens other than characters."""

import re

import numpy as np
import pytest

from scratchgen.__main__ import main
from scratchgen.text import BPETokenizer, ByteTokenizer, CharTokenizer, show
from scratchgen.training import open_run

TEXT = "the cat sat on the mat, the cat ran.\n" * 40


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def test_learned_used_and_shown_from_the_command_line(text, tmp_path, capsys):
    folder = str(tmp_path / "bpe")
    assert main(["tokenizer", "train", text, "--size", "270", "--out", folder, "--special", "<|end|>"]) == 0
    assert "270 tokens, " in capsys.readouterr().out
    tokenizer = BPETokenizer.load(folder)
    assert tokenizer.special == {"<|end|>": 269}
    assert main(["tokenizer", "encode", folder, "the cat"]) == 0
    said = capsys.readouterr().out
    assert said.split() == [str(i) for i in tokenizer.encode("the cat")]
    assert main(["tokenizer", "decode", folder, said]) == 0 and capsys.readouterr().out == "the cat\n"
    assert main(["tokenizer", "decode", "bytes", "104 105"]) == 0 and capsys.readouterr().out == "hi\n"
    assert main(["tokenizer", "show", folder, "the cats"]) == 0
    shown, count = capsys.readouterr().out.splitlines()
    assert shown.replace("|", "") == "the cats" and count == f"{len(tokenizer.encode('the cats'))} tokens of 270"
    page = tmp_path / "page.html"
    assert main(["tokenizer", "show", folder, "a < b\nthe cat", "--html", str(page)]) == 0
    written = page.read_text(encoding="utf-8")
    assert f'title="{tokenizer.encode("the")[0]}"' in written and "a &lt;" not in written and "&lt;" in written
    assert "http" not in written, "the page fetches nothing"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "nowhere", "x"], "nowhere: expected a folder with vocab.json and merges.txt, the folder of a run"),
        (["decode", "bytes", "3 x"], "expected whole numbers with spaces between, got '3 x'"),
        (["decode", "bytes", "300"], "expected tokens in 0 … 255, got 300 at position 0"),
        (["train", "digits"], "a tokenizer learns from text, and this is"),
        (["train", "TEXT", "--size", "256", "--special", "<a>"], "size: expected at least 257"),
        (["train", "TEXT", "--ties", "x"], "ties: expected lowest or greatest, got 'x'"),
        (["train", "TEXT", "more"], "tokenizer train: expected one name or path of a text, got two"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(words, says, text, capsys):
    assert main(["tokenizer", *(text if word == "TEXT" else word for word in words)]) == 2
    assert says in capsys.readouterr().err


def test_a_terminal_shows_every_token_and_obeys_none():
    tokens = ["ab", " c\n", "\x1b[2J", "d"]
    shown = show.terminal(tokens)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain == "ab c⏎\n\\x1b[2Jd" and shown.count("\x1b[0m") == 4
    assert show.pieces(ByteTokenizer(), ByteTokenizer().encode("é!")) == ["\\xc3", "\\xa9", "!"]
    assert show.pieces(CharTokenizer("ab"), np.array([1, 0])) == ["b", "a"]


SMALL = [f"{key}={value}" for key, value in {
    "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 4, "eval_batches": 1, "sample_every": 4,
    "save_every": 2, "warmup": 0, "final": 1}.items()]  # fmt: skip


@pytest.mark.parametrize(("kind", "size"), [("bytes", 256), ("bpe", 262), ("folder", 264)])
def test_a_language_model_learns_tokens_of_any_kind(kind, size, text, tmp_path, capsys):
    """The run keeps its tokenizer, so that sampling needs neither text nor folder; resumed, it ends in the same bits"""
    where = kind
    if kind == "folder":
        where = str(tmp_path / "bpe")
        BPETokenizer.train(TEXT, size).save(where)
    sets = [word for pair in (*SMALL, f"tokenizer={where}", f"tokens={size}") for word in ("--set", pair)]
    run = ["train", "gpt", "--data", text, "--quiet", *sets]
    assert main([*run, "--steps", "4", "--out", str(tmp_path / "a")]) == 0
    assert main([*run, "--steps", "2", "--out", str(tmp_path / "b")]) == 0
    assert main(["train", "gpt", "--resume", "--steps", "4", "--quiet", "--out", str(tmp_path / "b")]) == 0
    assert open_run(tmp_path / "a").model.config.vocab_size == size
    models = [open_run(tmp_path / name).model.state_dict() for name in "ab"]
    assert all(np.array_equal(models[0][key], models[1][key]) for key in models[0])
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "a"), "--prompt", "the ", "--length", "5"]) == 0
    assert capsys.readouterr().out.startswith("the ")
    assert main(["tokenizer", "show", str(tmp_path / "a"), "the cat"]) == 0
    assert f"tokens of {size}" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "a")]) == 0 and "bits per byte" in capsys.readouterr().out


def test_a_folder_without_a_tokenizer_is_told(text, tmp_path, capsys):
    assert main(["train", "gpt", "--data", text, "--set", f"tokenizer={tmp_path}", "--out", str(tmp_path / "x")]) == 2
    assert "tokenizer: " in capsys.readouterr().err


def test_texts_end_before_what_stops_them_and_repeat_less_under_a_penalty(text, tmp_path, capsys):
    sets = [word for pair in SMALL for word in ("--set", pair)]
    out = str(tmp_path / "run")
    assert main(["train", "gpt", "--data", text, "--quiet", *sets, "--steps", "4", "--out", out]) == 0
    run, rng = open_run(out), np.random.default_rng
    whole = run.draw(3, rng(0), prompt="the ", length=60)
    for stop in ("t", "a"):
        for cut, full in zip(run.draw(3, rng(0), prompt="the ", length=60, stop=stop), whole, strict=True):
            at = full.find(stop, 4)
            assert cut == (full if at < 0 else full[:at])
    assert run.draw(3, rng(0), prompt="the ", length=60, stop="nowhere") == whole
    many = lambda **how: len(set(run.draw(1, rng(0), prompt="the ", length=40, temperature=0, **how)[0]))  # noqa: E731
    assert many(repetition_penalty=5.0) > many()
    capsys.readouterr()
    for words, says in ((["--min-p", "2"], "a number above 0 and up to 1"), (["--repetition-penalty", "0"], "above 0")):
        assert main(["sample", out, *words]) == 2 and says in capsys.readouterr().err

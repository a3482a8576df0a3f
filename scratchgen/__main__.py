"""The command line: `scratchgen` or `python -m scratchgen`.

A mistake of the user is answered by one sentence on stderr and exit code 2; whatever else goes wrong shows its traceback.
Each command imports what it needs, so that help is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scratchgen import startup

if TYPE_CHECKING:
    from scratchgen.models.family import Option
    from scratchgen.training import Recipe


class UsageError(ValueError):
    """The command line says what it cannot mean; the message is one sentence."""


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    from scratchgen.training import demo

    again = ["demo", *_option("--out", args.out, "runs/demo"), *_option("--seed", args.seed, 0), *["--quick"] * args.quick]
    return _end(demo.run(Path(args.out), seed=args.seed, quick=args.quick, say=_say), again)


def train(args: argparse.Namespace) -> int:
    from scratchgen import training

    device = _device(args.device)
    changes: dict[str, Any] = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set: expected KEY=VALUE, got {setting!r}.")
        changes[key] = value
    changes |= {key: value for key in ("data", "begun_from", "steps", "seed") if (value := getattr(args, key)) is not None}
    folder = args.out or f"runs/{args.recipe}"
    progress = False if args.quiet else None
    outcome = training.train(args.recipe, folder, changes, resume=args.resume, device=device, progress=progress, say=_say,
                             table=args.table)  # fmt: skip
    on_device, quiet = _option("--device", device, "cpu"), ["--quiet"] * args.quiet
    if outcome.signal is None:
        following = " and ".join(_command(word, _operand(folder), *on_device) for word in ("sample", "eval"))
        _say(f"done: {outcome.step:,} steps in {folder}; next: {following}")
    return _end(outcome, ["train", args.recipe, "--resume", *_option("--out", args.out, None), *on_device, *quiet])


def _end(outcome: Any, again: list[str]) -> int:
    """The exit code of a command that trained, and how to go on if a signal stopped it."""
    if outcome is None or outcome.signal is None:
        return 0
    _tell(f"stopped and saved at step {outcome.step:,} of {outcome.steps:,}; to go on: {_command(*again)}")
    return 128 + outcome.signal


def _command(*words: str) -> str:
    """A command of this program that a shell understands as these words."""
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    """The words that call this program: its plain name, or, where a shell would not find that, as it was called."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("scratchgen", "__main__.py"):  # python -m scratchgen
        python = shutil.which("python")
        return ["python" if python and os.path.samefile(python, sys.executable) else sys.executable, "-m", "scratchgen"]
    return [sys.argv[0] if called.name == "scratchgen" and not shutil.which("scratchgen") else "scratchgen"]


def _option(name: str, value: Any, default: Any) -> list[str]:
    """The words of an option with this value; no words where the value is the default."""
    if value == default:
        return []
    return [f"{name}={value}"] if str(value).startswith("-") else [name, str(value)]


def _operand(path: str) -> str:
    """A path that no command takes for an option."""
    return os.path.join(os.curdir, path) if path.startswith("-") else path


def sample(args: argparse.Namespace) -> int:
    from scratchgen.training import folder, open_run, samples
    from scratchgen.training.media import MEDIA

    run = open_run(args.run, _device(args.device), args.table)
    family = run.recipe.family
    medium, taken = MEDIA[family.makes], [option.name for option in family.options]
    options = {key.removeprefix(_CONDITION): value for key, value in vars(args).items() if key.startswith(_CONDITION)}
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in taken:
            others = f"takes {', '.join(map(_flag, taken))}" if taken else "draws without any such option"
            raise UsageError(f"{_flag(name)}: the recipe {run.recipe.name!r} does not take it; it {others}.")
    out, content = Path(args.out) if args.out else None, medium.file
    if medium.printed is None:
        out = out or Path(args.run) / folder.SAMPLES / f"seed-{args.seed}{medium.suffix}"
        kinds = {medium.suffix: medium.file, **medium.others}
        if out.suffix.lower() not in kinds:
            raise UsageError(f"--out: expected the name of a {' or '.join(kinds)} file, got {args.out!r}.")
        content = kinds[out.suffix.lower()]
    if out and out.exists() and not out.is_file():
        raise UsageError(f"--out: expected the name of a file, got {args.out!r}, which is something else.")

    made = samples(run, args.n or family.many, args.seed, **options)
    if out is None:
        _say(medium.printed(made), end="")
        return 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.write_whole(out, content(made))
    except OSError as error:
        hint = "" if args.out else "; another file can be named (--out)"
        raise UsageError(_sentence(error).rstrip(".") + hint + ".") from error
    _say(str(out))
    return 0


_CONDITION = "condition "  # in the parsed arguments, it begins the names of the options that families declare


def _flag(name: str) -> str:
    """An option of `sample` as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def edit(args: argparse.Namespace) -> int:
    from scratchgen.training import edit, open_run

    run = open_run(args.run, _device(args.device), args.table)
    told = {field.name: getattr(args, field.name) for field in dataclasses.fields(edit.Options)}
    options = edit.Options(**{name: value for name, value in told.items() if value is not None})
    try:
        paths = edit.edit(run, args.how, args.pictures, options, Path(args.out) if args.out else None)
        judged = edit.judge(run, args.how, options, args.judge, lambda text: _tell(f"scratchgen: {text}")) if args.judge else ""
    except OSError as error:
        raise UsageError(
            _sentence(error).rstrip(".") + ("" if args.out else "; another file can be named (--out)") + "."
        ) from error
    for path in paths:
        _say(str(path))
    if judged:
        _say(judged)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from scratchgen.models.family import side_by_side
    from scratchgen.training import folder, moved, open_run, scores

    run = open_run(args.run, _device(args.device), args.table)
    if args.data is not None:
        run = moved(run, args.data)
    found = scores(run, say=lambda text: _tell(f"scratchgen: {text}"))
    content = {"recipe": run.recipe.name, "data": run.recipe.data, "step": run.step, "scores": found}
    text = json.dumps(content, indent=2, allow_nan=False)
    if args.json:
        _say(text)
    else:
        _say(f"{run.recipe.name} on held-out {run.recipe.data}, step {run.step:,}\n")
        columns, rows = side_by_side(found)
        _table([("", *columns), *((key.replace("_", " "), *map(_number, values)) for key, values in rows)])
    try:
        folder.write_whole(run.folder / "eval.json", text + "\n")
    except (
        OSError
    ) as error:  # a run of somebody else's, or on a read-only disk: the scores, which were asked for, are printed all the same
        _tell(f"scratchgen: these scores are not kept, since the file cannot be written: {_sentence(error)}")
        return 0
    if not args.json:
        _say(f"\n{run.folder / 'eval.json'}")
    return 0


def page(args: argparse.Namespace) -> int:
    from scratchgen.training import open_run, report, scores

    run = open_run(args.run, table=args.table)
    out = Path(args.out) if args.out else run.folder / "index.html"
    if out.exists() and not out.is_file():
        raise UsageError(f"--out: expected the name of a file, got {args.out!r}, which is something else.")
    found = scores(run, say=lambda text: _tell(f"scratchgen: {text}"))
    out.parent.mkdir(parents=True, exist_ok=True)
    report.page(out, [(run, found)])
    _say(str(out))
    return 0


def dirac(args: argparse.Namespace) -> int:
    import numpy as np

    from scratchgen.models.dirac import WAYS, paths
    from scratchgen.training import folder, pictures

    def told(eigenvalues: np.ndarray) -> str:
        low, high = eigenvalues
        if high.imag:
            return f"{high.real:.3g} ± {high.imag:.3g} i" if high.real else f"± {high.imag:.3g} i"
        return f"{low.real:.3g}, {high.real:.3g}"

    drawn, out = paths(), Path(args.out)
    rows = [("both players", "eigenvalues at (0, 0)", "× a step", f"distance from 0 after {len(drawn.paths[0][1]) - 1} steps")]
    for (name, path, _), way in zip(drawn.paths, WAYS.values(), strict=True):
        smooth = not way.gradient_penalty  # else the field jumps at ψ = 0
        first = (told(way.eigenvalues()), f"{way.factors()[-1]:.4f}") if smooth else ("none: not smooth there", "")
        rows.append((name, *first, f"{np.hypot(*path[0]):.3f} → {np.hypot(*path[-1]):.2g}"))
    _table(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.write_whole(out, pictures.paths(drawn))
    _say(f"\n{out}")
    return 0


def compare(args: argparse.Namespace) -> int:
    from scratchgen.training import compare

    again = ["compare", *_option("--data", args.data, "fashion-mnist"), *_option("--minutes", args.minutes, 5.0),
             *_option("--seed", args.seed, 0), *_option("--out", args.out, "runs/compare")]  # fmt: skip
    outcome = compare.run(
        Path(args.out), name_or_path=args.data, minutes=args.minutes, seed=args.seed, say=_say, table=args.table
    )
    return _end(outcome, again)


def gradcheck(args: argparse.Namespace) -> int:
    from scratchgen import catalog

    return catalog.main(args.names, order=args.order, curve=args.curve)


def tokenizer(args: argparse.Namespace) -> int:
    from scratchgen.training import vocabulary

    if args.how == "train":
        if args.text is not None:
            raise UsageError("tokenizer train: expected one name or path of a text, got two.")
        _say(vocabulary.learn(args.where, args.size, Path(args.out), special=args.special, ties=args.ties))
        return 0
    found = vocabulary.find(args.where)
    text = sys.stdin.read() if args.text is None else args.text
    if args.how == "encode":
        _say(" ".join(map(str, found.encode(text).tolist())))
    elif args.how == "decode":
        _say(found.decode(vocabulary.numbers(text)))
    elif args.html:
        vocabulary.write_page(found, text, Path(args.html))
        _say(args.html)
    else:
        colours = sys.stdout.isatty()
        (print if colours else _say)(vocabulary.shown(found, text, colours=colours))
    return 0


def recipes(args: argparse.Namespace) -> int:
    from scratchgen import training

    if args.recipe:
        chosen = training.recipe(args.recipe, args.table)
        _say(f"{chosen.name}: {chosen.what}\n\nsettings for --set KEY=VALUE:")
        _table([(f"  {key}", str(value)) for key, value in training.settings(chosen).items()])
        return 0
    _table([("recipe", "data", "steps", "what"), *[(r.name, r.data, f"{r.steps:,}", r.what) for r in args.table.values()]])
    _say("\nscratchgen recipes RECIPE lists the settings; scratchgen train RECIPE trains it.")
    return 0


def data(args: argparse.Namespace) -> int:
    from scratchgen import data

    for source in data.catalogue():
        _say(f"{source.name}: {source.what}")
        _say(f"    from {source.where or 'the network, when first used'}\n    {source.licence}")
    _say("\n--data also takes a .txt file or a folder of them, a folder of images, and a .npz file of images or points;")
    _say("pix2pix a folder of pairs of images: a and b side by side in one, or of equal names in sub-folders a and b.")
    return 0


def info(args: argparse.Namespace) -> int:
    import platform
    from importlib import metadata

    import numpy as np

    import kernels
    from scratchgen import data, device

    build = np.show_config(mode="dicts")
    blas = build["Build Dependencies"]["blas"]
    simd = build["SIMD Extensions"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    try:
        from threadpoolctl import threadpool_info

        threads = (
            ", ".join(f"{p['num_threads']} threads" for p in threadpool_info() if p["user_api"] == "blas") or "threads unknown"
        )
    except ImportError:
        threads = "threads unknown"
    folder, facts = os.environ.get("SCRATCHGEN_DATA"), kernels.chosen()
    _table(
        [
            ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            ("NumPy", np.__version__),
            ("Numba", version("numba")),
            ("SciPy", version("scipy")),
            ("BLAS", f"{blas.get('name', 'unknown')} {blas.get('version', '')}, {threads}"),
            ("cores", str(cores)),
            ("vector units", " ".join([*simd.get("baseline", []), *simd.get("found", [])]) or "unknown"),
            ("kernels", f"{facts.pop('kernels')} ({facts.pop('because of')})"),
            *facts.items(),
            ("device", device.found()),
            ("data", f"looked for in $SCRATCHGEN_DATA ({folder or 'not set'}), the user's cache and the system"),
            ("data found", ", ".join(s.name for s in data.catalogue() if s.where)),
        ]
    )
    return 0


def _device(name: str) -> str:
    """The device of that name, where there is one. Raises UsageError or DeviceError."""
    from scratchgen import device

    try:
        name = device.checked(name)
    except ValueError as error:
        raise UsageError(f"--{error}.") from None
    if name != "cpu":
        device.library()
    return name


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].lower()}{message[1:].rstrip('.')}; see {self.prog} --help.")


def _reader(kind: type, least: float, says: str, most: float = sys.float_info.max) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {says}, got {text!r}")
        return value

    return read


def _reads(option: Option) -> Callable[[str], Any]:
    """Reads the value of an option that a family declares."""

    def read(text: str) -> Any:
        try:
            return option.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _options(table: Mapping[str, Recipe]) -> list[Option]:
    """The options that any family of the table declares. Raises UsageError where two families read one differently."""
    found: dict[str, list[Option]] = {}
    for family in {recipe.family.name: recipe.family for recipe in table.values()}.values():
        for option in family.options:
            same = found.setdefault(option.name, [])
            if same and dataclasses.replace(option, what=same[0].what, metavar=same[0].metavar) != same[0]:
                raise UsageError(f"{_flag(option.name)}: the families of the recipes read its value in different ways.")
            same.append(option)
    return [dataclasses.replace(same[0], what="; ".join(dict.fromkeys(o.what for o in same))) for same in found.values()]


_natural = _reader(int, 0, "a whole number of at least 0")
_positive = _reader(int, 1, "a whole number of at least 1")
_many = _reader(int, 1, "a whole number of at least 1 and at most 10000", 10_000)  # as many as one file of samples can show


def _path(text: str) -> str:
    """A path with ~ as the user's home, since a shell does not expand the ~ of `--out=~/x`."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return os.path.expanduser(text)


def _file(text: str) -> str:
    """The path of a file to write."""
    if os.path.basename(text) in ("", os.curdir, os.pardir):
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r}")
    return _path(text)


def _examples(*commands: str) -> str:
    return "examples:\n" + "\n".join(f"  scratchgen {command}" for command in commands)


def _parser(table: Mapping[str, Recipe]) -> argparse.ArgumentParser:
    main = _Parser(
        prog="scratchgen",
        description="Generative models from nothing but NumPy and Numba.",
        epilog=_examples("demo", "train vae --set latent=2", "sample runs/vae") + "\n\nscratchgen COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], what: str, *examples: str) -> argparse.ArgumentParser:
        epilog = _examples(*examples) if examples else None
        parser = commands.add_parser(
            name,
            help=what,
            description=what,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(command=run, table=table)
        return parser

    def on_device(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, or cuda for a GPU (cpu)")

    p = command(
        "demo", demo, "the tour: train a GAN, a VAE and a GPT on real data, and show on one page what they make", "demo"
    )
    p.add_argument("--out", type=_path, default="runs/demo", metavar="DIR", help="folder of the page and the runs (runs/demo)")
    p.add_argument("--seed", type=_natural, default=0, metavar="S", help="of everything random (0)")
    p.add_argument("--quick", action="store_true", help="a tenth of the steps: to see that all works")

    p = command("train", train, "train a recipe in a folder of its own, or continue what is there",
                "train gan", "train gpt --data notes.txt --steps 5000 --out runs/notes", "train gpt --resume",
                "train vae --set latent=2 --set lr=5e-4")  # fmt: skip
    p.add_argument("recipe", metavar="RECIPE", help="a name that `scratchgen recipes` lists")
    p.add_argument("--data", type=_path, metavar="D", help="a name that `scratchgen data` lists, or a path (the recipe's own); "
                   "with --resume, where the run's data are now")  # fmt: skip
    p.add_argument("--from", type=_path, dest="begun_from", metavar="RUN", help="the finished run that a `prior` builds on")
    p.add_argument("--steps", type=_positive, metavar="N", help="length of the run; with --resume, a larger one extends it")
    p.add_argument("--seed", type=_natural, metavar="S", help="of everything random")
    on_device(p)
    p.add_argument("--out", type=_path, metavar="DIR", help="folder of the run (runs/RECIPE)")
    p.add_argument(
        "--resume", action="store_true", help="continue the run in the folder; ends as if it had never been interrupted"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting that `scratchgen recipes RECIPE` lists",
    )
    p.add_argument("--quiet", action="store_true", help="plain lines instead of a progress bar")

    p = command("sample", sample, "draw from a trained model: pictures and points as a PNG file, text on the screen",
                "sample runs/gan -n 100 --out digits.png", "sample runs/pix2pix --image sketch.png --out made.png",
                "sample runs/gpt --prompt 'The class ' --temperature 0.7 --top-p 0.95")  # fmt: skip
    p.add_argument("run", type=_path, metavar="RUN", help="folder of the run")
    p.add_argument("-n", type=_many, metavar="N", help="how many (64 pictures, 16 held-out pairs, 2500 points, or 1 text)")
    p.add_argument("--seed", type=_natural, default=0, metavar="S", help="the same seed draws the same (0)")
    on_device(p)
    p.add_argument(
        "--out",
        type=_file,
        metavar="FILE",
        help="where to write (pictures and points: RUN/samples/seed-S.png; points also as .npz or .csv)",
    )
    for option in _options(table):
        p.add_argument(_flag(option.name), dest=_CONDITION + option.name, type=_reads(option), metavar=option.metavar,
                       help=option.what)  # fmt: skip

    p = command("edit", edit, "work with the codes of a trained autoencoder, and write a picture of it",
                "edit runs/vae interpolate 3 17 --way spherical", "edit runs/vae arithmetic --minus sandal --plus 'ankle boot'",
                "edit runs/vae map", "edit runs/cvae transfer my-shoe.png --label Sneaker")  # fmt: skip
    p.add_argument("run", type=_path, metavar="RUN", help="folder of the run")
    p.add_argument("how", metavar="HOW", choices=("reconstruct", "interpolate", "arithmetic", "traverse", "map", "transfer"),
                   help="reconstruct, interpolate, arithmetic, traverse, map or transfer")  # fmt: skip
    p.add_argument(
        "pictures", nargs="*", type=_path, metavar="PICTURE", help="a file, or the number of a held-out picture (some)"
    )
    p.add_argument("--minus", metavar="CLASS", help="arithmetic: what is taken away")
    p.add_argument("--plus", metavar="CLASS", help="arithmetic: what is added")
    p.add_argument("--amount", type=_reader(float, -100, "a number from -100 to 100", 100), metavar="A", help="of it (1)")
    p.add_argument("--way", metavar="WAY", help="interpolate: linear or spherical (linear)")
    p.add_argument(
        "--steps",
        type=_reader(int, 2, "a whole number from 2 to 100", 100),
        metavar="N",
        help="interpolate: pictures on the way (12)",
    )
    p.add_argument("--label", metavar="K", help="the class of pictures from files, where the model is told classes")
    p.add_argument("--to", metavar="K", help="transfer: to this class only")
    p.add_argument("--judge", type=_reader(int, 1, "a whole number of at least 1"), metavar="N",
                   help="also say what a classifier takes N held-out pictures for, edited so")  # fmt: skip
    p.add_argument("--seed", type=_natural, metavar="S", help="which held-out pictures, where none is named (0)")
    on_device(p)
    p.add_argument("--out", type=_file, metavar="FILE", help="where to write (RUN/edits/HOW.png)")

    p = command("tokenizer", tokenizer, "learn a vocabulary of byte pairs, and look at text through it",
                "tokenizer train python-docs --size 2048 --out bpe", "tokenizer show bpe 'The quick brown fox'",
                "tokenizer encode bpe 'The quick' | scratchgen tokenizer decode bpe")  # fmt: skip
    p.add_argument("how", metavar="HOW", choices=("train", "encode", "decode", "show"), help="train, encode, decode or show")
    p.add_argument("where", type=_path, metavar="WHERE",
                   help="train: a text; else a folder of vocab.json and merges.txt, a run, or bytes")  # fmt: skip
    p.add_argument("text", nargs="?", metavar="TEXT", help="what to encode, decode or show (standard input)")
    p.add_argument("--size", type=_reader(int, 256, "a whole number of at least 256"), default=4096, metavar="N",
                   help="train: tokens in the vocabulary (4096)")  # fmt: skip
    p.add_argument("--out", type=_path, default="tokenizer", metavar="DIR", help="train: folder of the files (tokenizer)")
    p.add_argument("--special", action="append", default=[], metavar="NAME", help="train: a special token; repeatable")
    p.add_argument("--ties", default="lowest", metavar="RULE", help="train: of equal pairs the lowest or greatest (lowest)")
    p.add_argument("--html", type=_file, metavar="FILE", help="show: write a page")

    p = command(
        "eval",
        evaluate,
        "score a trained model on held-out data: a table, and RUN/eval.json",
        "eval runs/vae",
        "eval runs/gpt --json",
        "eval runs/notes --data moved/notes.txt",
    )
    p.add_argument("run", type=_path, metavar="RUN", help="folder of the run")
    p.add_argument("--data", type=_path, metavar="D", help="where its data are now, if they have moved")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    on_device(p)

    p = command("page", page, "show a trained model on a page: samples, curves, scores, the equations", "page runs/toy-gan")
    p.add_argument("run", type=_path, metavar="RUN", help="folder of the run")
    p.add_argument("--out", type=_file, metavar="HTML", help="where to write (RUN/index.html)")

    p = command("dirac", dirac, "draw the smallest adversarial game: four ways to play it, and where they lead", "dirac")
    p.add_argument("--out", type=_file, default="dirac.png", metavar="PNG", help="where to write (dirac.png)")

    p = command("compare", compare, "a GAN, a VAE, codes with a transformer and a flow, each trained for the same minutes",
                "compare --minutes 1", "compare --data my-pictures/ --minutes 10")  # fmt: skip
    p.add_argument(
        "--data", type=_path, default="fashion-mnist", metavar="D", help="pictures: a name or a path (fashion-mnist)"
    )
    p.add_argument(
        "--minutes", type=_reader(float, 0.01, "a number of at least 0.01"), default=5.0, metavar="M", help="for each (5)"
    )
    p.add_argument("--seed", type=_natural, default=0, metavar="S", help="of everything random (0)")
    p.add_argument(
        "--out", type=_path, default="runs/compare", metavar="DIR", help="folder of the runs and the page (runs/compare)"
    )

    p = command(
        "gradcheck",
        gradcheck,
        "check gradients against finite differences, and print the largest error of each",
        "gradcheck",
        "gradcheck softmax conv2d",
    )
    p.add_argument("names", nargs="*", metavar="NAME", help="ops, layers, models (all), or path/to/file.py:name of your own")
    p.add_argument("--order", type=int, choices=(1, 2), default=2, help="of your own: 1 leaves out the second derivative")
    p.add_argument("--curve", type=_file, metavar="PNG", help="of your own: draw the error of the worst element over the step")

    p = command("recipes", recipes, "what can be trained", "recipes", "recipes vae")
    p.add_argument("recipe", nargs="?", metavar="RECIPE", help="list the settings of this one")
    command("data", data, "what it can be trained on, and where that is")
    command("info", info, "on which machine, with which libraries and kernels")
    return main


def main(argv: list[str] | None = None, table: Mapping[str, Recipe] | None = None) -> int:
    """Run a command and return its exit code: 0; 2 for a mistake of the user; 1 where training went astray; 130 for Ctrl-C.

    `table` holds the recipes that can be trained, those of the library without it. So a program of three lines gives recipes
    of one's own this command line: `sys.exit(main(table={**RECIPES, "toy": TOY}))`.
    """
    _open_streams()
    try:
        startup.end()
        return _run(argv, table)
    except BrokenPipeError:  # the reader of our output has closed it
        return 141
    except KeyboardInterrupt:
        _tell("\nscratchgen: stopped.")
        return 130
    except _mistakes() as error:
        _tell(f"scratchgen: {_sentence(error)}")
        return 1 if type(error).__name__ == "Diverged" else 2
    finally:
        _close(sys.stdout)


def _run(argv: list[str] | None, table: Mapping[str, Recipe] | None) -> int:
    try:
        from scratchgen.training import RECIPES

        args = _parser(RECIPES if table is None else table).parse_args(argv)
        from kernels import settings

        settings.check()
        return args.command(args) or 0
    finally:
        sys.stdout.flush()  # here, so that `main` answers a full disk or a closed pipe, not Python at its end


def _open_streams() -> None:
    """Make the standard streams printable: a closed one leads nowhere, and characters that a terminal lacks become "?"."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the caller closed it; its descriptor is taken here, so that no file of ours gets it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _close(stream: Any) -> None:
    """Flush a stream; redirect one that cannot be written to nowhere, since Python would try again at its end, and complain."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(text: str, end: str = "\n") -> None:
    print(_visible(text), end=end)


def _tell(text: str) -> None:
    """Print a remark on stderr, or nothing where stderr cannot be written: a remark is no reason to fail."""
    with contextlib.suppress(OSError):
        print(_visible(text), file=sys.stderr, flush=True)
    _close(sys.stderr)


def _visible(text: str) -> str:
    """The text with control characters as escapes, since a terminal would obey those in a file's name or in a sample."""
    return re.sub("[^\t\n -~\xa0-\U0010ffff]", lambda found: ascii(found[0])[1:-1], text)


def _mistakes() -> tuple[type[Exception], ...]:
    """The errors whose message tells the user what to do, from the modules that are loaded: to look, none is loaded."""
    names = (
        ("kernels.settings", "SettingError"),
        ("scratchgen.training.folder", "TrainingError"),
        ("scratchgen.device", "DeviceError"),
        ("scratchgen.data", "DataError"),
        ("scratchgen.text", "TokenError"),
        ("scratchgen.models.family", "OptionError"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (UsageError, OSError, MemoryError, *loaded)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or "not enough memory"
    return " ".join(text.split()).rstrip(".") + "."


if __name__ == "__main__":
    sys.exit(main())

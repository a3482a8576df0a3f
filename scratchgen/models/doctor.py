r"""What the curves of a run say: rules, each a function of the metrics to one sentence, or to none.

A rule reads the rows of `metrics.jsonl` up to now and the config of the model, and nothing else: a run that was resumed says
what it would have said without a break. Its sentence gives the figures that it saw, what they mean, and what to try. A family
names its rules where it declares itself (`Family.rules`); training asks them at each snapshot, when scores are new.

Thresholds are ours, set between what healthy runs of the recipes showed and what runs made to fail showed, and beside each
stand both figures. They are wide, since an alarm that is false is worse than one that comes late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scratchgen.models import adversarial

Rows = Sequence[Mapping[str, Any]]
Rule = Callable[[Rows, Any], str | None]  # (rows, config of the model) → a sentence, or None


def lately(rows: Rows, steps: int = 300, least: int = 10) -> Rows:
    """The last rows that lie within so many steps, and no fewer than `least`; none of a run that is not that long."""
    first = len(rows) - 1
    while first > 0 and (rows[-1]["step"] - rows[first]["step"] < steps or len(rows) - first < least):
        first -= 1
    return rows[first:] if rows and rows[-1]["step"] - rows[first]["step"] >= steps and len(rows) - first >= least else []


def mean(rows: Rows, key: str) -> float:
    """The mean of a number over those rows that tell it; NaN where none does."""
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else math.nan


def snapshots(rows: Rows, *keys: str) -> Rows:
    """The rows that tell all of these numbers."""
    return [row for row in rows if all(key in row for key in keys)]


def last_two(rows: Rows, *keys: str) -> Rows:
    """The last two rows that tell all of these numbers, from step 500 on; none before: one snapshot may be chance."""
    kept = snapshots(rows, *keys)[-2:]
    return kept if len(kept) == 2 and kept[-1]["step"] >= 500 else []


# ---------------------------------------------------------------------------------------------------------------------
# Any model that lowers a loss
# ---------------------------------------------------------------------------------------------------------------------


def flat(key: str, rate: str = "lr") -> Rule:
    """Does this loss lie, after 500 steps and more, where it lay at first? `rate`: the setting to raise."""

    def rule(rows: Rows, config: Any) -> str | None:
        now = lately(rows)
        if not now or now[-1]["step"] < 500:
            return None
        first, last = mean(rows[:3], key), mean(now, key)
        # by step 500 the recipes' losses have fallen by a third and more; at a hundred-thousandth of the rate, by 0.1 %
        if not first - last < 0.02 * abs(first):
            return None
        return (
            f"the loss is flat: {key} was {first:.4g} in its first steps and is {last:.4g} after {now[-1]['step']:,}, so the "
            f"model learns nothing; raise its learning rate (--set {rate}={10 * getattr(config, rate):g})"
        )

    return rule


def held_out(score: str, sign: int = 1, loss: str = "loss", rate: str = "lr") -> Rule:
    """Does a held-out score no longer improve, or become worse? Lower ones are better, or, with sign −1, higher ones.

    The same score of training data tells why: where that one goes on improving, the model learns the data by heart.
    What is much is measured by the way that the score of training data has come, from `loss` in the first steps to its best.
    """

    def rule(rows: Rows, config: Any) -> str | None:
        kept = snapshots(rows, f"test_{score}", f"train_{score}")
        if len(kept) < 4:
            return None
        tested, learned = ([sign * row[f"{of}_{score}"] for row in kept] for of in ("test", "train"))
        best = min(tested)
        way = max(mean(rows[:3], loss), tested[0]) - min(learned)
        since = next(i for i, value in enumerate(tested) if value <= best + 0.02 * way)  # from here on it was about as good
        then, now = kept[since], kept[-1]
        seen = (
            f"held-out {score} was {then[f'test_{score}']:.4g} at step {then['step']:,} and is {now[f'test_{score}']:.4g} now, "
            f"that of training data went from {then[f'train_{score}']:.4g} to {now[f'train_{score}']:.4g}"
        )
        # healthy: less than 1 % is lost again from one snapshot to the next; here a tenth, and not made good at the next one
        lost = min(tested[-2:]) - best > 0.1 * way
        # healthy: the two end 3 % of the way apart, of codes 11 %; on 32 pictures, from which little is to be learned, 95 %
        apart = tested[-1] - learned[-1] > 0.15 * way
        by_heart = apart and (learned[since] - learned[-1] > 0.1 * way or (lost and learned[-1] <= learned[since]))
        if by_heart and len(kept) - since > 3:
            return f"the model learns by heart: {seen}; train for {then['step']:,} steps, on more data, or a smaller model"
        if lost:
            return f"the model unlearns: {seen}; lower its learning rate (--set {rate}={getattr(config, rate) / 10:g})"
        return None

    return rule


# ---------------------------------------------------------------------------------------------------------------------
# An autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def posterior_collapse(rows: Rows, config: Any) -> str | None:
    """Do nearly all latents tell nothing, so that the decoder draws by itself?"""
    kept = last_two(rows, "test_active_units")
    if not kept:
        return None
    active, of = max(row["test_active_units"] for row in kept), config.latent
    # healthy: all of 8 on digits, 20 of 20, 10 of 10 and 50 of 50 on Fashion-MNIST; β = 4 on digits, whose pictures are small,
    # or five samples, 50 latents and networks 32 wide (at three times the rate 37 are, of 12 latents 5): none
    if not active <= 0.15 * of:
        return None
    if config.samples > 1:  # whose bound has no terms to weigh
        advice, cure = "learn faster, or fewer", [f"--set lr={3 * config.lr:g}", f"--set latent={max(1, of // 4)}"]
    else:
        advice, cure = "let the code cost less at first", []
        cure += [f"--set beta={config.beta / 10:g}"] * (config.beta > 1) + ["--set free_bits=0.1"] * (not config.free_bits)
        cure += ["--set beta_warmup=0.3"] * (not config.beta_warmup) or [f"--set beta={config.beta / 10:g}"]
    return (
        f"the posterior has collapsed: {active:g} of {of} latents are active, {mean(kept, 'test_kl'):.2g} nats in all, so that "
        f"the decoder draws nearly the same of any picture; {advice} ({' or '.join(cure[:2])})"
    )


def parked_at_free_bits(rows: Rows, config: Any) -> str | None:
    """Does nearly every latent take what is free, and nothing more?"""
    kept = last_two(rows, "test_parked")
    if not kept:
        return None
    parked, of, free = min(row["test_parked"] for row in kept), config.latent, config.free_bits
    # healthy: 0 of 20 at λ = 0.1 nats, and 4 early on; at λ = 1, more than digits need: 20
    if not parked >= 0.8 * of:
        return None
    return (
        f"the KL is parked at the free bits: {parked:g} of {of} latents cost the {free:g} nats that are free, or less, so the "
        f"bound is not lowered further for them; make less free (--set free_bits={free / 4:g}) or take fewer latents"
    )


def scale_at_floor(rows: Rows, config: Any) -> str | None:
    """Are many pixels foretold as exactly as the decoder may, so that the floor decides the likelihood?"""
    kept = last_two(rows, "test_at_floor")
    if not kept:
        return None
    share = min(row["test_at_floor"] for row in kept)
    # healthy: 0 on digits with a floor of 0.002, and on dequantised ones; with a floor of 0.05, that of the noise: 0.3 and more
    if not share > 0.2:
        return None
    return (
        f"the decoder's scale is at its floor, {config.sigma_min:g}, in {100 * share:.0f} % of pixels: these are foretold "
        f"exactly, and the nats say how low the floor is; add noise to the pixels (--set pixels=dequantized) or raise the "
        f"floor (--set sigma_min={10 * config.sigma_min:g})"
    )


def dead_codes(rows: Rows, config: Any) -> str | None:
    """Are most codes those of no held-out picture?"""
    kept = last_two(rows, "test_codes_used", "test_perplexity")
    if not kept:
        return None
    used, codes = max(row["test_codes_used"] for row in kept), config.size
    # healthy: 127 and 120 of 128 on digits, 128 on Fashion-MNIST; at a rate a hundred times as high: 4 and 1
    if not used < 0.5 * codes:
        return None
    return (
        f"codes are dead: {used:g} of {codes} are used by held-out pictures, as various as "
        f"{kept[-1]['test_perplexity']:.2g} evenly used ones; lower the learning rate (--set lr={config.lr / 10:g}), or take "
        f"fewer codes"
    )


# ---------------------------------------------------------------------------------------------------------------------
# An adversarial game
# ---------------------------------------------------------------------------------------------------------------------


def d_has_won(rows: Rows, config: Any) -> str | None:
    """Is D so sure that little is left for it to lower, and G learns little from it?"""
    now, blind = lately(rows), adversarial.objective(config.loss).blind
    if not now or not blind:  # a critic's loss has no floor
        return None
    share = mean(now, "loss_d") / blind
    if not share < 0.05:
        return None
    slope, at_first = mean(now, "grad_g"), mean(rows[:10], "grad_g")
    vanished = slope < 0.01 * at_first
    cure = ["--set loss=non-saturating"] * (config.loss == "minimax") + [_set_rate_d(config, 0.1)]
    return (
        f"D has won: real {mean(now, 'd_real'):.2g}, generated {mean(now, 'd_fake'):.2g} for {_span(now)} steps, its loss "
        f"{100 * share:.1g} % of what it is where D can tell nothing; G's gradient "
        f"{'has vanished, from' if vanished else 'went from'} {at_first:.2g} to {slope:.2g}: give D less of an advantage "
        f"({' or '.join(cure)})"
    )


def d_has_lost(rows: Rows, config: Any) -> str | None:
    """Does D take generated pictures for real ones, and real ones for generated?"""
    now = lately(rows)
    if not now or not np.mean([row["d_fake"] > row["d_real"] for row in now]) > 0.9:
        return None
    return (
        f"D has lost: for {_span(now)} steps it has judged generated pictures above real ones ({mean(now, 'd_fake'):.2g} and "
        f"{mean(now, 'd_real'):.2g}), so G is led astray: let D learn faster ({_set_rate_d(config, 10)}) or G more slowly"
    )


def collapse(rows: Rows, config: Any) -> str | None:
    """Does G make the same few pictures of whatever it is given?"""
    kept = snapshots(rows, "test_spacing")
    if len(kept) < 2 or kept[-1]["step"] < 500:
        return None
    before, now = (row["test_spacing"] for row in kept[-2:])
    # healthy: 0.61 and more of any GAN on Fashion-MNIST, 0.43 on digits, 0.63 of pix2pix, 0.88 of text2image-gan; G at lr
    # 0.1: 0.01
    if not (max(before, now) < 0.2 and now <= max(1.1 * before, 0.05)):  # not where it is on the way out again
        return None
    return (
        f"G has collapsed: from a picture that it makes to the nearest other it is {now:.2g} of what it is between real "
        f"pictures, at steps {kept[-2]['step']:,} and {kept[-1]['step']:,}: it makes the same few pictures of whatever it is "
        f"given; go back to a checkpoint before, with a lower rate of G (--set lr={config.lr / 10:g}){_or_bound(config)}"
    )


def d_overfits(rows: Rows, config: Any) -> str | None:
    """Does D know the pictures that it learned from by heart?"""
    kept = snapshots(rows, "test_auc", "train_auc")[-2:]
    if len(kept) < 2:
        return None
    learned, held_out = (min(row["train_auc"] for row in kept), max(row["test_auc"] for row in kept))
    # healthy: 0.93 and 0.90 at most (hinge-gan), 0.88 and 0.83 of text2image-gan, 0.63 and 0.62 of pix2pix; on 32 pictures:
    # 0.98 and 0.7
    if not (learned > 0.9 and held_out - 0.5 < 0.5 * (learned - 0.5)):
        return None
    last = kept[-1]
    return (
        f"D overfits: it judges pictures to learn from {last['train_d_real']:.2g}, held-out ones {last['test_d_real']:.2g} and "
        f"generated ones {last['test_d_fake']:.2g}, and ranks the first above the last in {100 * learned:.0f} % of pairs, but "
        f"held-out ones in {100 * held_out:.0f} %: it learns the pictures by heart, and G copies them; take more pictures or "
        f"fewer steps{_or_bound(config)}"
    )


GAME = (d_has_won, d_has_lost, collapse, d_overfits)


def _span(rows: Rows) -> str:
    return f"{rows[-1]['step'] - rows[0]['step']:,}"


def _or_bound(config: Any) -> str:
    """The advice to bound D's slope, where the model has a setting for that."""
    return ", or bound D's slope (--set r1=1)" if hasattr(config, "r1") else ""


def _set_rate_d(config: Any, factor: float) -> str:
    return f"--set lr_d={factor * (config.lr_d or config.lr):g}"

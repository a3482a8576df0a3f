"""The benchmark is fair: no side is held to another processor's instructions, and the table says what each uses."""

import platform

import pytest

import kernels.cpu.attention_ladder
import kernels.cpu.ladder
from benchmarks import assembly, clock, critics, machine, pieces
from benchmarks.__main__ import main


def test_rivals_run_without_what_forces_a_processor(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    monkeypatch.setenv("HOME", "/somewhere")
    found = clock.environment(3)
    assert not set(found) & set(clock.FORCED) and found["HOME"] == "/somewhere"
    assert all(found[name] == "3" for name in clock.POOLS)


def test_the_table_names_the_instructions_of_each_side(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    forced = machine.description()["instructions"]
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert machine.description()["instructions"] == forced
    assert forced.startswith("ours ") and ", numpy " in forced


def test_a_piece_is_checked_and_can_be_timed():
    for which in pieces.PASSES:
        pieces.build("ours", f"silu {which}")()


@pytest.mark.parametrize("case", [case for case, (model, _) in critics.CASES.items() if model["network"] == "mlp"])
def test_steps_of_a_critic_lower_what_it_lowers(case):
    step = critics.build("ours", case)
    values = [step() for _ in range(8)]
    assert values[-1] < values[0] - 0.3


# ---------------------------------------------------------------------------------------------------------------------
# The machine code of a ladder's steps
# ---------------------------------------------------------------------------------------------------------------------

TEXT = """
.LBB0_1:
	vmovups	(%rax), %zmm1
.LBB0_2:
	vbroadcastss	(%rcx,%r8), %zmm30
	vfmadd231ps	(%rdi){1to16}, %zmm1, %zmm2
	vfmadd231ps	%zmm30, %zmm1, %zmm3
	prefetcht0	(%rcx,%rax)
	leaq	(%rcx,%r8), %rcx
	vmovups	%zmm3, 64(%rsi)
	cmpq	%rax, 8(%rdi)
	jne	.LBB0_2
	jmp	.LBB0_1
.LBB0_3:
	vfmadd231ss	(%rdi), %xmm1, %xmm2
	jne	.LBB0_3
"""


def test_the_hot_loop_is_the_innermost_with_the_most_products_and_its_loads_are_counted():
    loop = assembly.hot_loop(TEXT)
    assert loop.lines[0] == ".LBB0_2:" and loop.lines[-1] == "\tjne\t.LBB0_2" and loop.elements == 32
    assert loop.summary() == (
        "fused multiply-adds: 2 on zmm registers; loads: 3, 2 of them into all lanes; stores: 1; prefetches: 1; "
        "multiply-adds for each load: 0.67"
    )
    assert assembly.hot_loop(TEXT, one_lane=True).summary().startswith("fused multiply-adds: 1 on one lane; loads: 1, 0 of")
    with pytest.raises(ValueError, match="expected a text with such a loop, got none"):
        assembly.hot_loop("	ret")


def test_the_steps_whose_code_can_be_printed_are_those_of_the_ladders():
    assert list(assembly.STEPS["matmul"]) == list(kernels.cpu.ladder.LADDER)
    forward, backward = kernels.cpu.attention_ladder.FORWARD, kernels.cpu.attention_ladder.BACKWARD
    assert {step.partition(",")[0] for step in (*forward, *backward)} == set(assembly.STEPS["attention"])


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the instructions of other processors are not counted"
)
def test_the_command_prints_a_register_tile_made_of_fused_multiply_adds(capsys):
    assert main(["matmul", "--asm", "register tile"]) == 0
    shown = capsys.readouterr().out
    counts = shown.splitlines()[-1]
    assert shown.startswith("matmul, register tile: the hot loop of kernels.cpu.ladder.register_tile, float32\n")
    products, loads = (int(counts.partition(f"{name}: ")[2].split()[0].strip(",;")) for name in ("multiply-adds", "loads"))
    assert shown.count("vfmadd") == products and "stores: 0;" in counts
    assert products / loads > 1.2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rows", "--asm", "tile"], "benchmarks: --asm is for matmul and attention, got rows\n"),
        (["matmul", "--asm", "k j i"], "benchmarks: --asm: expected a part of one of 'i j k', 'i k j', "),
    ],
)
def test_the_command_says_whose_machine_code_there_is(capsys, arguments, says):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(says)

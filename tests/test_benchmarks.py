"""The benchmark is fair: no side is held to another processor's instructions, and the table says what each uses."""

from benchmarks import clock, machine, pieces


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

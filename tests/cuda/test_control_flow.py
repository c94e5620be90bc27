"""What counts the instructions of machine code, on code small enough to count by hand."""

import pytest

from benchmarks.cuda_resources.control_flow import LOOP, NoWayError, Way, control_flow

LISTING = """\
\t.section\t.text._Z4rowsv,"ax",@progbits
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 EXIT ;
.L_x_rows:
        /*0020*/                   LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0030*/               @P1 LDG.E R8, desc[UR4][R2.64] ;
        /*0040*/                   BRA.DIV UR4, `(.L_x_divergent) ;
        /*0050*/               @P2 BRA `(.L_x_absent) ;
        /*0060*/                   FADD R4, R4, R5 ;
        /*0070*/                   MUFU.EX2 R4, R4 ;
.L_x_absent:
        /*0080*/              @!P0 BRA P1, `(.L_x_fast) ;
        /*0090*/                   CALL.REL.NOINC `($slow_division) ;
        /*00a0*/                   BRA `(.L_x_more) ;
.L_x_fast:
        /*00b0*/                   MUFU.RCP R5, R4 ;
        /*00c0*/                   NOP ;
.L_x_more:
        /*00d0*/                   IADD3 R6, R6, 0x1, RZ ;
        /*00e0*/                   MUFU.EX2 R4, R4 ;
        /*00f0*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0100*/              @!P3 BRA `(.L_x_more) ;
        /*0110*/               @P4 CALL.REL.NOINC `(.L_x_end) ;
        /*0118*/                   BRA `(.L_x_rows) ;
.L_x_end:
        /*0120*/                   EXIT ;
.L_x_divergent:
        /*0130*/                   WARPSYNC.COLLECTIVE R15, `(.L_x_absent) ;
        /*0140*/                   BRA `(.L_x_absent) ;
.L_x_trap:
        /*0150*/                   BRA `(.L_x_trap) ;
\t.section\t.text._Z5emptyv,"ax",@progbits
        /*0000*/                   EXIT ;
"""


@pytest.fixture
def rows():
    return control_flow(LISTING)["_Z4rowsv"]


def test_kernels_are_told_apart():
    assert list(control_flow(LISTING)) == ["_Z4rowsv", "_Z5emptyv"]
    assert control_flow(LISTING)["_Z5emptyv"].loops == []


def test_loops_are_nested(rows):
    outer, inner = rows.loops
    assert rows.inside(outer) == [inner]
    assert rows.inside(inner) == []
    assert rows.work(inner) == {"exponentials": 1, "narrow_stores": 1}
    assert rows.work(outer) == {"wide_loads": 1, "narrow_loads": 1, "exponentials": 2, "narrow_stores": 1}


def test_cheapest_way_leaves_out_what_is_jumped_over(rows):
    # Two loads, BRA.DIV and BRA, the branch to the fast way, MUFU.RCP, the branch back; predicated instructions count,
    # NOP does not, and the inner loop is passed by. A call of a label is a jump.
    assert rows.cheapest(rows.loops[0], {}) == Way(issued=8, special=1)


def test_way_does_what_is_demanded(rows):
    assert rows.cheapest(rows.loops[0], {"exponentials": 1, "narrow_loads": 1}) == Way(issued=10, special=2)


def test_inner_loop_is_passed_and_counted_by_itself(rows):
    outer, inner = rows.loops
    assert rows.cheapest(outer, {LOOP.format(inner.head): 1}) == Way(issued=8, special=1)
    assert rows.cheapest(inner, {"narrow_stores": 1}) == Way(issued=4, special=1)


@pytest.mark.parametrize("demands", [{"wide_stores": 1}, {"exponentials": 2}, {LOOP.format(99): 1}])
def test_no_way_is_an_error(rows, demands):
    with pytest.raises(NoWayError, match="no way round the loop"):
        rows.cheapest(rows.loops[0], demands)


def test_forbidden_work_is_an_error(rows):
    with pytest.raises(NoWayError, match="narrow_stores"):
        rows.cheapest(rows.loops[1], {}, frozenset({"narrow_stores"}))

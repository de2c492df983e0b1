"""FLOPs at the true widths and sizes (fewer layers): what is counted agrees with the formulas, and what the design promises holds."""

from dataclasses import replace

import pytest

from benchmarks.flops import LUCY_EDIT, TURN_5, Setting, measure


@pytest.mark.parametrize("setting", [LUCY_EDIT, TURN_5], ids=["lucy-edit", "turn-5"])
def test_counted_flops_agree_with_the_formulas(setting: Setting) -> None:
    found = measure(replace(setting, num_layers=9), share=0.5)
    for what, counted, formula in found:
        assert counted == pytest.approx(formula, rel=0.02), what
    base, joint, merged, isolated, _ = (counted for _, counted, _ in found)
    if setting is LUCY_EDIT:
        assert isolated < 1.25 * base
    else:
        assert merged < 0.7 * joint

"""A bundle whose models open but run on nothing is found out; one that merely dislikes zeros is not refused."""

import numpy as np
import pytest
from servers import GatedModel, tiny_guard

from guard.errors import BundleError, ModelError
from serving.trial import try_out


class Picky(GatedModel):
    """Fails on inputs of one value, as a model does that divides by their spread."""

    def run(self, inputs, names):
        if np.ptp(inputs["x"]) == 0:
            raise ModelError("NaN")
        return super().run(inputs, names)


@pytest.mark.parametrize("part", ["original", "bounded"])
def test_models_that_answer_nothing_are_refused_with_their_reason(part):
    guard = tiny_guard(**{part: GatedModel(error=ModelError("no kernel"))})
    with pytest.raises(BundleError, match=r"none of three trial inputs: .*no kernel"):
        try_out(guard)


def test_a_model_that_has_no_answer_to_zeros_may_have_one_to_a_ramp():
    try_out(tiny_guard(original=Picky(), bounded=Picky(cap=4)))


def test_one_row_is_enough_where_zeros_are_answered():
    model = GatedModel()
    try_out(tiny_guard(original=model))
    assert model.rows_run == [1]

from contextlib import suppress

import numpy as np
import pytest
from tiny import PURE, jpeg, reference

from packshot.errors import AnswersDiffer, DamagedFile
from packshot.golden import check_answers, check_pixels, make_golden, read_golden
from packshot.image import ImageSpec

SPEC = ImageSpec()


@pytest.fixture
def golden():
    return make_golden([jpeg(colour) for colour in PURE.values()], SPEC, reference)


def test_survive_the_file(golden):
    again = read_golden(golden.to_bytes())
    assert again.encoded == golden.encoded
    assert np.array_equal(again.pixels, golden.pixels)
    assert np.array_equal(again.logits, golden.logits)


def test_a_damaged_file_is_named_so(golden):
    with pytest.raises(DamagedFile):
        read_golden(golden.to_bytes()[:500])


def test_whichever_byte_is_damaged_nothing_else_is_raised(golden):
    content = golden.to_bytes()
    for at in range(len(content)):
        with suppress(DamagedFile):  # a byte of a date or a name's case does not matter
            read_golden(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])


def test_the_right_engine_passes(golden):
    assert check_answers(reference(golden.pixels), golden.logits, tolerance=0.0) == 0.0
    assert check_pixels(golden, SPEC) == 0


def test_wrong_answers_are_refused(golden):
    logits, right = reference(golden.pixels), golden.logits
    with pytest.raises(AnswersDiffer, match=r"differ by 0\.5"):
        check_answers(logits + 0.5, right, tolerance=0.4)
    with pytest.raises(AnswersDiffer):
        check_answers(logits * np.nan, right, tolerance=1e9)
    with pytest.raises(AnswersDiffer, match="golden samples have"):
        check_answers(logits[:, :2], right, tolerance=1e9)


def test_another_preprocessing_is_refused(golden):
    crooked = make_golden([jpeg((200, 20, 20)), *golden.encoded[1:]], SPEC, reference)
    samples = type(golden)(encoded=golden.encoded, pixels=crooked.pixels, logits=golden.logits)
    with pytest.raises(AnswersDiffer, match="30 grey levels"):
        check_pixels(samples, SPEC)

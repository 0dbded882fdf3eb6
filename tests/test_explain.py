"""Evidence of an alarm: what can be worked out by hand, computed only when asked for, drawn by guard-calibrate."""

import math
from dataclasses import replace

import numpy as np
import pytest
from bundles import TRIGGERED, tiny_bundle
from calibrate_runs import check_refused
from guards import guard_of
from PIL import Image
from witnessed import ALERT, N_PLACES, bright, bundle, save

from calibrate.__main__ import main
from calibrate.explanation import render_explanation, verdict_of
from calibrate.explanation_pictures import shown_image
from guard import CappedChannel, Guard, InputError
from guard.model import OrtModel

PREPROCESSING = {"scale": 255.0, "mean": [0.5], "std": [0.25], "layout": "nchw"}


class Counting:
    """A model that counts its runs."""

    def __init__(self, model: OrtModel) -> None:
        self.model, self.inputs, self.n_runs = model, model.inputs, 0

    def run(self, inputs, names):
        self.n_runs += 1
        return self.model.run(inputs, names)


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.from_bundle(bundle(), threads=1)


def explain(guard, x):
    return guard(x).explain(0)


def test_a_channel_capped_at_a_place_is_named_with_how_far_it_went(guard):
    evidence = explain(guard, bright(5.0))
    # Channel 1 goes to 5, is bounded at 1 and has a standard deviation of 2.
    assert evidence.channels == (CappedChannel(site="a", channel=1, excess=2.0),)
    assert evidence.sites == ("a",)
    assert evidence.capped.tolist() == [2.0]
    expected = np.zeros((4, 4))
    expected[2, 3] = math.log(1 + 2)
    np.testing.assert_allclose(evidence.excess_map, expected, rtol=1e-6)
    assert evidence.place == ((2 + 0.5) / 4, (3 + 0.5) / 4)


def test_some_rows_of_a_verdict_are_judged_and_explained_as_in_the_whole(guard):
    whole = guard(np.concatenate([bright(0.5), bright(9.0), bright(5.0)]))
    part = whole.of(slice(1, 3))
    assert part.flagged.tolist() == whole.flagged.tolist()[1:]
    assert part.outputs.tolist() == whole.outputs.tolist()[1:]
    assert part.explain(1).row == 1
    assert part.explain(1).channels == whole.explain(2).channels != whole.explain(1).channels
    with pytest.raises(InputError, match="row 2 is not among the 2 rows"):
        part.explain(2)


def test_the_profile_is_told_in_clean_standard_deviations_with_what_alarms_alone(guard):
    evidence = explain(guard, bright(5.0))
    assert evidence.numbers == ("peak", "level", "greatest level", "reach")
    mean = 5 / N_PLACES  # of channel 1; channel 0 is 0
    expected = [
        [math.log(1 + 5 / 2)], [math.log(1 + 10 * mean / math.sqrt(2))],
        [math.log(1 + mean)], [math.log(1 + 10 * 5 / math.sqrt(2))],
    ]  # fmt: skip
    np.testing.assert_allclose(evidence.away, expected, rtol=1e-5)
    # The distance is 4 peak^2 + level^2 and next to nothing more, and the alarm is above ALERT.
    np.testing.assert_allclose(evidence.limits[:2], [[math.sqrt(ALERT / 4)], [math.sqrt(ALERT)]])
    assert (evidence.limits[2:] > 1000).all()


def test_evidence_agrees_with_the_verdict_and_names_the_score_that_spoke(guard):
    verdict = guard(np.concatenate([bright(0.1), bright(5.0)]))
    evidence = verdict.explain(np.int64(1))
    distance = 4 * evidence.away[0, 0] ** 2 + evidence.away[1, 0] ** 2
    lost = (5 - 1) / N_PLACES
    assert (evidence.row, evidence.predicted_class, evidence.flagged, evidence.corrected) == (1, 1, True, True)
    assert evidence.corrected_class == verdict.corrected_class[1] == 0
    assert evidence.score == verdict.score[1] == max(evidence.profile, evidence.head) == evidence.profile
    assert evidence.profile == pytest.approx(distance)
    assert 0 < evidence.head <= lost / 0.5
    assert evidence.raised_by == "profile"
    assert evidence.p_value == verdict.p_value[1] == 1 / 201


def test_the_head_is_named_where_it_speaks():
    deaf = bundle()
    deaf = replace(deaf, detector=replace(deaf.detector, precision=np.eye(4) * 1e-6))
    evidence = explain(Guard.from_bundle(deaf, threads=1), bright(100.0))
    assert evidence.raised_by == "head"
    assert evidence.score == evidence.head > evidence.profile


@pytest.mark.parametrize(("channel", "place"), [(0, (0, 0)), (1, (3, 1)), (0, (1, 3))])
def test_another_place_and_channel_is_found_too(guard, channel, place):
    evidence = explain(guard, bright(9.0, channel=channel, place=place))
    assert [found.channel for found in evidence.channels] == [channel]
    assert evidence.place == ((place[0] + 0.5) / 4, (place[1] + 0.5) / 4)


def test_the_channel_that_went_furthest_comes_first(guard):
    evidence = explain(guard, bright(3.0, channel=0) + bright(4.0, channel=1))
    assert [(found.channel, found.excess) for found in evidence.channels] == [(0, 2.0), (1, 1.5)]


def test_where_nothing_passes_a_bound_there_is_no_place(guard):
    evidence = explain(guard, bright(0.5))
    assert (evidence.channels, evidence.place, evidence.capped.tolist()) == ((), None, [0.0])
    assert not evidence.excess_map.any()


def test_inputs_that_are_no_images_have_no_map():
    evidence = explain(Guard.from_bundle(bundle(is_image=False), threads=1), bright(5.0))
    assert (evidence.excess_map, evidence.place) == (None, None)
    assert evidence.channels[0].excess == 2.0


def test_a_row_has_the_same_evidence_in_any_batch(guard):
    alone, among = guard(bright(7.0)).explain(0), guard(np.concatenate([bright(2.0), bright(7.0)])).explain(1)
    assert alone.channels == among.channels
    assert (alone.profile, alone.head, alone.place) == (among.profile, among.head, among.place)


def test_nothing_is_run_until_evidence_is_asked_for():
    found = bundle()
    models = [OrtModel(content, label="m", threads=1) for content in (found.observed, found.bounded)]
    original, bounded = map(Counting, models)
    verdict = Guard(found, original=original, bounded=bounded)(bright(0.1))
    assert (original.n_runs, bounded.n_runs) == (1, 0)
    verdict.explain(0)
    assert (original.n_runs, bounded.n_runs) == (1, 1)


def test_a_wrapped_endpoint_gives_the_same_evidence(guard):
    wrapped = guard.wrap(lambda x: guard.run_original(x).outputs)(bright(5.0)).explain(0)
    assert wrapped.channels == explain(guard, bright(5.0)).channels


@pytest.mark.parametrize("row", [-1, 1, 7, 0.0, "0", None])
def test_a_row_that_is_not_there_is_refused(guard, row):
    with pytest.raises(InputError, match=rf"row {row} is not among the 1 rows"):
        guard(bright(5.0)).explain(row)


def test_a_bundle_without_a_detector_keeps_no_evidence():
    with pytest.raises(InputError, match="fit it with --method auto"):
        guard_of()(TRIGGERED).explain(0)


def test_the_representation_of_a_verdict_does_not_show_its_inputs(guard):
    assert "evidence_of" not in repr(guard(bright(5.0)))


@pytest.mark.parametrize(
    ("value", "box", "line"),
    [
        (5.0, "alert", "Alarm: the model says class 1, and the guard answers class 0"),
        (0.05, "warning", "No alarm, but unusual: answered more cautiously, with class 1"),
        (0.5, "good", "Nothing unusual: class 1, as the model says"),
    ],
)
def test_the_page_says_the_verdict_in_words(guard, value, box, line):
    evidence = replace(
        explain(guard, bright(value)), flagged=box == "alert", corrected=box != "good",
        corrected_class=0 if box == "alert" else 1,
    )  # fmt: skip
    assert verdict_of(evidence) == line
    page = render_explanation(guard.manifest, evidence, bright(value), name="<b>x").decode()
    assert f"<p class='{box} verdict'>{line}.</p>" in page
    assert "<b>x" not in page
    assert page == render_explanation(guard.manifest, evidence, bright(value), name="<b>x").decode()


def test_the_page_of_what_is_no_image_has_no_heat_map(guard):
    images, other = guard, Guard.from_bundle(bundle(is_image=False), threads=1)
    pages = [render_explanation(g.manifest, explain(g, bright(5.0)), bright(5.0), name="x") for g in (images, other)]
    assert [b"Where in the image" in page for page in pages] == [True, False]
    assert all(b"past its bound by" in page for page in pages)


def test_evidence_that_is_no_number_is_drawn(guard):
    odd = replace(
        explain(guard, bright(5.0)), away=np.array([[np.nan], [np.inf], [-np.inf], [0.0]]), capped=np.array([np.inf]),
        score=np.inf, head=np.nan, excess_map=np.full((4, 4), np.inf), limits=np.full((4, 1), np.inf),
    )  # fmt: skip
    assert b"<svg" in render_explanation(guard.manifest, odd, bright(5.0), name="x")


def test_images_are_shown_as_they_were_before_preprocessing():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4)) / 255
    shown = shown_image((pixels - 0.5) / 0.25, PREPROCESSING)
    np.testing.assert_allclose(shown, np.moveaxis(pixels, 0, -1), atol=1e-12)
    last = {**PREPROCESSING, "layout": "nhwc"}
    np.testing.assert_allclose(shown_image((shown - 0.5) / 0.25, last), shown, atol=1e-12)


def test_images_of_other_values_and_channels_are_stretched_to_grey():
    shown = shown_image(np.array([[[-3.0, 1.0]], [[-3.0, 5.0]]]), {**PREPROCESSING, "mean": [0.0], "std": [1.0]})
    np.testing.assert_allclose(shown, [[[0.0] * 3, [1.0] * 3]])
    np.testing.assert_allclose(shown_image(np.full((1, 1, 1), 51, np.uint8), PREPROCESSING), 0.2)


def test_the_command_explains_an_alarm_of_a_fitted_bundle(digits, digits_bundle, tmp_path, capsys):
    arguments = ["explain", str(digits_bundle), "--input", str(digits.triggered), "--row", "3"]
    assert main([*arguments, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    with np.load(digits.triggered) as arrays:
        verdict = Guard.load(digits_bundle)(arrays["inputs"][3:4])
    assert capsys.readouterr().out.splitlines()[0] == verdict_of(verdict.explain(0))
    assert "triggered.npz, row 3" in text
    assert "Where in the image" in text
    assert "http" not in text


def test_the_command_explains_an_image_as_an_array_of_it(digits_bundle, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "digit.png")
    np.save(tmp_path / "digit.npy", pixels)
    for name in ("digit.png", "digit.npy"):
        arguments = ["--input", str(tmp_path / name), "--out", str(tmp_path / f"{name}.html")]
        assert main(["explain", str(digits_bundle), *arguments]) == 0
    image, array = ((tmp_path / f"{name}.html").read_text() for name in ("digit.png", "digit.npy"))
    assert image.replace("digit.png", "X") == array.replace("digit.npy, row 0", "X")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--input", "none.png"], "none.png is no file; give an image, an .npz or an .npy"),
        (["--input", "."], "is no file"),
        (["--input", "image.png"], "has 2 channels in layout nchw"),
        (["--input", "three.npy", "--row", "3"], "three.npy has no row 3; its 3 are counted from 0"),
        (["--input", "image.png", "--row", "1"], "image.png has no row 1"),
        (["--input", "three.npy", "--row", "-1"], "'-1'"),
        (["--input", "flat.npy"], "do not fit the model's input"),
    ],
)
def test_inputs_that_cannot_be_explained_are_refused_in_one_line(tmp_path, monkeypatch, capfd, options, says):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "bundle")
    np.save("three.npy", np.zeros((3, 2, 4, 4), np.float32))
    np.save("flat.npy", np.zeros((3, 4), np.float32))
    Image.new("RGB", (64, 64)).save("image.png")
    check_refused(main(["explain", "bundle", *options, "--out", "page.html"]), capfd, says)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"no image", "x.png is no image of a known format"), (b"\x89PNG\r\n\x1a\n" + bytes(9), "x.png")],
)
def test_files_that_are_no_images_are_refused_in_one_line(digits_bundle, tmp_path, capfd, content, says):
    (tmp_path / "x.png").write_bytes(content)
    arguments = ["--input", str(tmp_path / "x.png"), "--out", str(tmp_path / "page.html")]
    check_refused(main(["explain", str(digits_bundle), *arguments]), capfd, says)


def test_a_damaged_image_is_refused_in_one_line(digits_bundle, tmp_path, capfd):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    arguments = ["--input", str(tmp_path / "half.png"), "--out", str(tmp_path / "page.html")]
    check_refused(main(["explain", str(digits_bundle), *arguments]), capfd, "half.png cannot be read as an image")


def test_a_bundle_without_a_detector_is_refused_in_one_line(tmp_path, capfd):
    np.save(tmp_path / "x.npy", TRIGGERED)
    arguments = ["--input", str(tmp_path / "x.npy"), "--out", str(tmp_path / "page.html")]
    check_refused(main(["explain", str(tiny_bundle(tmp_path)), *arguments]), capfd, "fit it with --method auto")


def test_a_page_inside_the_bundle_is_refused(tmp_path, capfd):
    save(tmp_path / "bundle")
    arguments = ["--input", "x.npy", "--out", str(tmp_path / "bundle" / "page.html")]
    check_refused(main(["explain", str(tmp_path / "bundle"), *arguments]), capfd, "inside the bundle")

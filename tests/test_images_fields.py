"""What a request for pictures may say, the files it gives and gets, and a picture on its way: no engine, no server."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from vllm_infogain.images.canvas import UNKNOWN, PartialPicture
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.serving.images.encoding import FORMATS, codes_to_redraw, encoded, json_with_file, pixels_of
from vllm_infogain.serving.images.fields import (
    FIELDS,
    NOT_IN_XARGS,
    REFUSED,
    PictureRequest,
    check_size,
    form_body,
    picture_request,
)

SIDE = 16

# Fields.


def test_a_prompt_alone_asks_for_one_picture_in_a_whole_response():
    assert picture_request({"prompt": "a cat"}) == PictureRequest("a cat")


def test_fields_of_openai_and_of_other_servers_become_parameters_of_ours():
    request = picture_request({
        "prompt": "a cat", "model": "m", "n": 3, "size": "auto", "response_format": "b64_json", "quality": "auto",
        "output_format": "webp", "background": "opaque", "user": "u", "safety_identifier": "s", "seed": 5,
        "temperature": 1, "top_p": 0.9, "guidance_scale": 3.5, "num_inference_steps": 20, "negative_prompt": "dogs",
        "vllm_xargs": {"sampler": "maskgit", "schedule": None}, "stream": None,
    })  # fmt: skip
    assert request.knobs == {"sampler": "maskgit", "guidance_scale": 3.5, "steps": 20}
    assert request.drawing == {"seed": 5, "temperature": 1.0, "top_p": 0.9}
    assert (request.n, request.output_format, request.negative_prompt) == (3, "webp", "dogs")


WRONG = {
    "prompt": [None, 3, ["a", "b"], ""],
    "model": [3],
    "n": [0, 11, 1.5, "2", True],
    "response_format": ["url", "file"],
    "output_format": ["gif", "svg", "PNG"],
    "quality": ["high", "hd"],
    "background": ["transparent"],
    "stream": ["yes", 2],
    "partial_images": [-1, 4],
    "seed": [-1, 0.5],
    "temperature": [-0.1, "hot", float("nan")],
    "guidance_scale": [-1, 1e9, "strong"],
    "num_inference_steps": [0, 1 << 20],
    "vllm_xargs": ["sampler", [1]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_cannot_be_honoured_is_refused_by_its_name(name, value):
    with pytest.raises(ParameterError) as refusal:
        picture_request({"prompt": "a cat", "stream": True} | {name: value})
    assert refusal.value.parameter == name


@pytest.mark.parametrize("name", [*REFUSED, "promt", "sampler", "num_candidate"])
def test_a_field_that_nothing_would_read_is_refused_with_its_reason(name):
    with pytest.raises(ParameterError) as refusal:
        picture_request({"prompt": "a cat", name: 1})
    assert refusal.value.parameter == name
    assert REFUSED.get(name, "") in str(refusal.value)
    assert name not in FIELDS


def test_a_misspelt_or_misplaced_field_is_told_what_is_meant():
    remedies = {"promts": "prompt", "sampler": "put it in vllm_xargs", "num_candidate": "num_candidates"}
    for name, remedy in remedies.items():
        with pytest.raises(ParameterError, match=remedy):
            picture_request({"prompt": "a cat", name: 1})


@pytest.mark.parametrize("name", NOT_IN_XARGS)
def test_a_parameter_that_another_field_says_is_refused_in_vllm_xargs(name):
    with pytest.raises(ParameterError) as refusal:
        picture_request({"prompt": "a cat", "vllm_xargs": {name: 1}})
    assert refusal.value.parameter == f"vllm_xargs.{name}"


@pytest.mark.parametrize(("fields", "named"), [
    ({"stream": True, "n": 2}, "n"),
    ({"partial_images": 2}, "partial_images"),
    ({"stream": True, "partial_images": 1, "vllm_xargs": {"sampler": "beam"}}, "partial_images"),
    ({"guidance_scale": 1, "vllm_xargs": {"guidance_scale": 2}}, "guidance_scale"),
    ({"num_inference_steps": 5, "vllm_xargs": {"steps": 6}}, "num_inference_steps"),
])  # fmt: skip
def test_fields_that_do_not_go_together_are_refused(fields, named):
    with pytest.raises(ParameterError) as refusal:
        picture_request({"prompt": "a cat"} | fields)
    assert refusal.value.parameter == named


@pytest.mark.parametrize("body", [None, [], "a cat", 3])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(ParameterError, match="object"):
        picture_request(body)


def test_only_the_models_own_size_is_taken():
    for size in (None, "auto", "16x16"):
        check_size(size, SIDE)
    for size in ("1024x1024", "16", "16x17", ""):
        with pytest.raises(ParameterError, match="16x16"):
            check_size(size, SIDE)


def test_a_forms_texts_are_read_as_what_they_stand_for():
    body = form_body([
        ("prompt", "7"), ("n", "2"), ("stream", "true"), ("guidance_scale", "3.5"), ("negative_prompt", "null"),
        ("vllm_xargs[sampler]", "entropy"), ("vllm_xargs[steps]", "5"),
    ])  # fmt: skip
    assert body == {
        "prompt": "7", "n": 2, "stream": True, "guidance_scale": 3.5, "negative_prompt": "null",
        "vllm_xargs": {"sampler": "entropy", "steps": 5},
    }  # fmt: skip
    assert form_body([("vllm_xargs", '{"steps": 5}')]) == {"vllm_xargs": {"steps": 5}}
    with pytest.raises(ParameterError, match="twice"):
        form_body([("n", "2"), ("n", "3")])


# Files.


@pytest.fixture
def rgb() -> bytes:
    return np.random.default_rng(0).integers(0, 256, SIDE * SIDE * 3, dtype=np.uint8).tobytes()


def test_a_pictures_file_holds_its_pixels(rgb):
    for output_format in FORMATS:
        file = base64.b64decode(encoded(rgb, SIDE, output_format))
        picture = Image.open(io.BytesIO(file))
        assert (picture.format, picture.size) == (output_format.upper(), (SIDE, SIDE))
        if output_format != "jpeg":
            assert picture.convert("RGB").tobytes() == rgb
            assert pixels_of("image", file, SIDE) == rgb


def test_a_file_stands_in_json_as_an_encoder_would_write_it():
    fields = {"type": "a", "n": None, "infogain": {"text": 'ä\n"}'}}
    assert json.loads(json_with_file(fields, b"aGk+/w==")) == {**fields, "b64_json": "aGk+/w=="}
    assert json_with_file({}, b"aGk=") == b'{"b64_json":"aGk="}'


def file_of(picture: Image.Image, file_format: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format)
    return file.getvalue()


def test_a_code_is_drawn_anew_where_any_of_its_pixels_is_transparent():
    mask = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    mask.putpixel((4, 15), (0, 0, 0, 0))  # the second code of the last row
    mask.putpixel((0, 0), (0, 0, 0, 1))  # not wholly
    redrawn = codes_to_redraw("mask", file_of(mask), SIDE, 4)
    assert [place for place, is_redrawn in enumerate(redrawn) if is_redrawn] == [13]


BAD_FILES = {
    "empty": (b"", "no picture"),
    "a beginning": (b"\x89PNG\r\n\x1a\n", "no picture"),
    "cut": (file_of(Image.effect_noise((SIDE, SIDE), 50))[:100], "no picture"),
    "of another format": (file_of(Image.new("RGB", (SIDE, SIDE)), "bmp"), "no picture"),
    "of another size": (file_of(Image.new("RGB", (SIDE, 8))), "16x8"),
    "huge": (file_of(Image.new("1", (20_000, 20_000))), "no picture|20000x20000"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_not_a_picture_of_the_models_size_is_refused(what):
    file, said = BAD_FILES[what]
    for read in (pixels_of, lambda *given: codes_to_redraw(*given, 4)):
        with pytest.raises(ParameterError, match=said) as refusal:
            read("mask", file, SIDE)
        assert refusal.value.parameter == "mask"


def test_a_mask_that_marks_nothing_is_refused():
    for mode in ("RGB", "RGBA"):
        opaque = file_of(Image.new(mode, (SIDE, SIDE), "white"))
        with pytest.raises(ParameterError, match="nothing in it is transparent"):
            codes_to_redraw("mask", opaque, SIDE, 4)


# A picture on its way.


def step(*positions: int) -> dict:
    return {"positions": positions, "tokens": [100 + position for position in positions]}


def test_a_picture_is_looked_at_when_each_further_share_of_it_is_written():
    steps = [step(5), step(0, 1), step(2, 3), step(4), step(6), step(7)]
    looks = PartialPicture([UNKNOWN] * 8, 100, 3).write(steps)
    known = [[place for place, code in enumerate(codes) if code != UNKNOWN] for _, codes in looks]
    assert [taken for taken, _ in looks] == [2, 3, 4]
    assert known == [[0, 1, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert looks[0][1][5] == 5


def test_the_looks_do_not_depend_on_how_steps_arrive():
    steps = [step(place) for place in range(8)]
    whole, bit_by_bit = PartialPicture([UNKNOWN] * 8, 100, 2), PartialPicture([UNKNOWN] * 8, 100, 2)
    assert whole.write(steps) == [look for one in steps for look in bit_by_bit.write([one])]


def test_a_step_that_writes_all_is_no_look_and_what_stood_there_is_no_share():
    assert PartialPicture([UNKNOWN] * 8, 100, 3).write([step(*range(8))]) == []
    picture = PartialPicture([3, 3, UNKNOWN, UNKNOWN], 100, 1)
    assert picture.write([step(2)]) == [(1, [3, 3, 2, UNKNOWN])]
    assert picture.write([step(3)]) == []

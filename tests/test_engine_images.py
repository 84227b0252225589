"""An image model on the engine: pictures and texts, alone and in one batch, equal the oracle."""

import pytest
import torch
from checkpoints import write_magvit, write_mmada
from engines import MASK_ID, Engine, Job, assert_matches_oracle, assert_preemptions_change_nothing, running
from knobs import fitting
from PIL import Image, ImageChops

from vllm_infogain import InfoGainSampler
from vllm_infogain.embedded.tokenizer import VOCAB
from vllm_infogain.engine.pictures import IN_THE_MODEL
from vllm_infogain.images import generate, reading_prompt
from vllm_infogain.images.magvit import Magvit
from vllm_infogain.reference.cached import CachingLLaDA
from vllm_infogain.reference.llada import LLaDA
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine

CODES = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[LLaDA, str]:
    path = tmp_path_factory.mktemp("mmada")
    write_magvit(path / IN_THE_MODEL)
    return write_mmada(path), path


@pytest.fixture(scope="module")
def engine(model):
    plain, path = model
    with running(path, CachingLLaDA(plain)) as engine:
        yield engine


def picture(engine: Engine, text: str, knobs: dict, temperature: float = 0.0, seed: int | None = None, **fields) -> Job:
    tokens = ImageTokens.of(engine.llm.llm_engine.vllm_config.model_config.hf_config)
    assert tokens is not None
    ids = tokens.prompt(engine.llm.get_tokenizer().encode(text, add_special_tokens=False))
    return Job(ids, {"image": True, **knobs}, CODES, temperature, seed, fields={"detokenize": False, **fields})


def mixed(engine: Engine) -> list[Job]:
    """Pictures and texts that differ in everything."""
    return [
        picture(engine, "a red circle", {"steps": 6}),
        picture(engine, "a guided one", {"steps": 5, "guidance_scale": 3.5}),
        Job("a guided text", {"guidance_scale": 1.5, "sampler": "entropy", "tokens_per_step": 2}, 12),
        Job("a text between", {"block_length": 8, "bypass_threshold": 1.0}, 20),
        picture(engine, "two", {"sampler": "entropy", "schedule": "linear", "steps": 5}),
        picture(engine, "klass", {"sampler": "klass", "tokens_per_step": 2}),
        Job("klass of a text", {"sampler": "klass", "tokens_per_step": 2}, 12),
        picture(engine, "guided", {"guidance_scale": 2.0, "steps": 5, "state_uncertainty": "sum"}),
        picture(engine, "in blocks", {"block_length": 4, "tokens_per_step": 1, "cache": "dual"}),
        picture(engine, "drawn", {"steps": 5, "state_uncertainty": "sum"}, 0.4, 3),
        picture(engine, "beam", {"sampler": "beam", "beam_width": 3, "num_candidates": 3, "steps": 6}),
        Job("drawn text", {"tokens_per_step": 2}, 16, 0.7, 5),
        picture(engine, "log-probabilities", {"steps": 8}, logprobs=3),
        picture(engine, "part of it stands", {"diffusion_seed_canvas": [*[102] * 8, *[MASK_ID] * 8], "steps": 4}),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_sampler_makes_the_oracles_picture(engine: Engine, temperature: float):
    knobs = [fitting({"sampler": sampler, "tokens_per_step": 3, "num_candidates": 4}) for sampler in SAMPLERS]
    jobs = [picture(engine, "a blue square", one, temperature, 7) for one in knobs]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)


def test_pictures_and_texts_in_one_batch_equal_the_oracle_request_by_request(engine: Engine):
    jobs, free = mixed(engine), engine.free_pages()
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)
    assert engine.free_pages() == free


def test_a_preemption_changes_no_picture(engine: Engine):
    assert assert_preemptions_change_nothing(engine, mixed(engine)[:6]) > 0


def test_a_chat_about_a_picture_is_the_oracles_text_behind_the_published_prompt(engine: Engine, model):
    """Beside a chat without one; the encoder's codes are those of the library."""
    plain, path = model
    noise = torch.randint(256, (24, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = Image.fromarray(noise.numpy())
    question = {"type": "text", "text": "what is it"}
    chats = [[{"role": "user", "content": [{"type": "image_pil", "image_pil": shown}, question]}]]
    chats += [[{"role": "user", "content": [question]}]]
    sampler = InfoGainSampler(plain, engine.llm.get_tokenizer())
    magvit = Magvit.from_checkpoint(path / IN_THE_MODEL)
    ids = reading_prompt(sampler, shown, "what is it", tokenizer=magvit)
    prompts = [ids, ids[ids.index(VOCAB["}"]) + 1 :]]
    free = engine.free_pages()
    for knobs in ({"tokens_per_step": 2}, {"guidance_scale": 1.5, "sampler": "entropy", "tokens_per_step": 3}):
        jobs = [Job(prompt, knobs, 12) for prompt in prompts]
        params = [job.sampling_params(return_trajectory=True) for job in jobs]
        outputs = engine.llm.chat(chats, params, use_tqdm=False)
        for job, output in zip(jobs, outputs, strict=True):
            assert list(output.prompt_token_ids) == job.prompt
            assert_matches_oracle(engine, job, output)
        assert outputs[0].outputs[0].token_ids != outputs[1].outputs[0].token_ids
    assert engine.free_pages() == free


def test_pictures_are_those_of_the_library(engine: Engine, model):
    plain, path = model
    given = {"n": 2, "seed": 3, "sampler": "entropy", "steps": 4, "schedule": "linear"}
    prompts = ["a red circle", "two"]
    ours = generate(engine.llm, prompts, **given)
    sampler = InfoGainSampler(plain, engine.llm.get_tokenizer())
    due = generate(sampler, prompts, tokenizer=Magvit.from_checkpoint(path / IN_THE_MODEL), **given)
    assert len({tuple(picture.info["codes"]) for picture in due}) == len(due) == len(ours) == 4
    for picture, expected in zip(ours, due, strict=True):
        assert picture.info["codes"] == expected.info["codes"]
        assert picture.info["infogain"]["steps"] == expected.info["infogain"]["steps"] == 4
        differences = ImageChops.difference(picture, expected).getextrema()
        assert max(high for _, high in differences) <= 1, "but for fractions that are cut off"

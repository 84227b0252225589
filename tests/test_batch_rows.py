"""What a batch reads and writes: rows to requests, ids, seeds, files, the output folder. No engine, no Ray."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vllm import SamplingParams

from vllm_infogain import ParameterError
from vllm_infogain.batch import source
from vllm_infogain.batch.folder import Folder, output_row, part_table
from vllm_infogain.batch.rows import row_request, row_seed

FIELDS = tuple(name for name in SamplingParams.__struct_fields__ if not name.startswith("_"))


def request(row, defaults=None, key="a"):
    return row_request(row, key, defaults=defaults or {}, seed=0, fields=FIELDS)


def asked(row, defaults=None):
    """Its sampling parameters but for the seed."""
    sampling = dict(request({"prompt": "x"} | row, defaults).sampling_params)
    del sampling["seed"]
    return sampling


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return [path]


def test_parameters_stand_by_themselves_or_under_sampling_params():
    wanted = {"max_tokens": 8, "extra_args": {"sampler": "ar", "block_length": 4}}
    assert asked({"max_tokens": 8, "sampler": "ar", "block_length": 4}) == wanted
    assert asked({"sampling_params": {"max_tokens": 8, "extra_args": {"sampler": "ar", "block_length": 4}}}) == wanted
    assert asked({"sampling_params": {"max_tokens": 8, "sampler": "ar"}, "extra_args": {"block_length": 4}}) == wanted


def test_none_is_as_left_out_and_a_rows_own_comes_before_the_defaults():
    nothing = {"max_tokens": None, "sampler": None, "unheard_of": None, "sampling_params": {"stop": None}}
    assert asked(nothing) == {}
    assert asked(nothing, {"max_tokens": 4, "sampler": "eb"}) == {"max_tokens": 4, "extra_args": {"sampler": "eb"}}
    assert asked({"max_tokens": 8}, {"max_tokens": 4}) == {"max_tokens": 8}


def test_what_is_asked_for_makes_parameters_of_vllm():
    row = {"logit_bias": {"5": 1.5, "7": None}, "stop": ["a"], "temperature": 0.5, "sampler": "ar"}
    params = SamplingParams(**asked(row))
    assert (params.logit_bias, params.stop, params.extra_args) == ({5: 1.5}, ["a"], {"sampler": "ar"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "tempature": 1}, "tempature=1: unknown; a row has prompt, .*sampler, "),
        ({"prompt": "x", "output_kind": 2}, "output_kind=2: unknown"),
        ({"prompt": "x", "sampler": "ar", "sampling_params": {"sampler": "eb"}}, "sampler=.*given twice"),
        ({"prompt": "x", "extra_args": 3}, "extra_args=3: give an object"),
        ({"prompt": "x", "n": 2}, "n=2: a row has one sample; give a row for each"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias='a': give token ids"),
        ({}, "prompt=None: give one of prompt, prompt_token_ids, messages"),
        ({"prompt": "x", "messages": [{"role": "user"}]}, "give one of"),
        ({"prompt": ""}, "prompt='': give a text, not empty"),
        ({"prompt_token_ids": [1, "2"]}, "prompt_token_ids=.*give a list of token ids"),
        ({"messages": ["hello"]}, "messages=.*give a list of messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages=.*image_url.*chats are of text",
        ),
    ],
)
def test_a_row_that_is_no_request_is_refused_by_column(row, said):
    with pytest.raises(ParameterError, match=said):
        request(row)


def test_a_row_without_a_seed_has_its_ids():
    seeds = [request({"prompt": "x"}, key=str(row)).sampling_params["seed"] for row in range(1000)]
    assert seeds == [row_seed(0, str(row)) for row in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert row_seed(1, "0") != seeds[0]
    assert request({"prompt": "x", "seed": 3}).sampling_params["seed"] == 3


def test_rows_are_numbered_unless_they_have_an_id(tmp_path):
    files = write(tmp_path / "a.jsonl", {"prompt": "x"}, "", {"prompt": "y", "id": "mine"}, "{", "[1]")
    rows = list(source.read_rows(files, None))
    assert [(row.key, row.identifier) for row in rows] == [("0", 0), ("mine", "mine"), ("2", 2), ("3", 3)]
    assert [row.columns for row in rows[:2]] == [{"prompt": "x"}, {"prompt": "y"}]
    assert "a.jsonl: line 4 is no JSON" in rows[2].error
    assert "a.jsonl: line 5 is no object" in rows[3].error


def test_a_line_that_is_no_utf_8_costs_no_other_row(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "\xff"}\n{"prompt": "\xc3\xa9"}\n')
    first, second = source.read_rows([file], None)
    assert "line 1 is no JSON" in first.error
    assert second.columns == {"prompt": "é"}


def test_several_files_are_numbered_through_and_read_alike_in_both_formats(tmp_path):
    rows = [{"prompt": f"{number}", "max_tokens": 4, "steps": None} for number in range(5)]
    (tmp_path / "json").mkdir()
    write(tmp_path / "json" / "b.jsonl", *rows[3:])
    write(tmp_path / "json" / "a.jsonl", *rows[:3])
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "a.parquet")
    read = [list(source.read_rows(source.files_of(tmp_path / name), None)) for name in ("json", "parquet")]
    assert read[0] == read[1]
    assert [row.columns for row in read[0]] == rows


@pytest.mark.parametrize(
    ("rows", "column", "said"),
    [
        ([{"id": 1}, {"id": "1"}], None, "two rows have the id '1'"),
        ([{"id": "1"}, {}], None, "two rows have the id 1"),  # its number
        ([{"key": 1}, {"id": 1}], "key", "row 1 of a.jsonl has no 'key'"),
        ([{"id": [1]}], None, "id=.* in row 0: give text or a whole number"),
    ],
)
def test_ids_that_do_not_tell_rows_apart_are_refused_before_anything_starts(tmp_path, rows, column, said):
    with pytest.raises(source.InputError, match=said):
        source.count_rows(write(tmp_path / "a.jsonl", *rows), column)


def test_staging_keeps_every_rows_columns_as_they_are(tmp_path):
    rows = [{"prompt": "x", "stop": "a"}, {"prompt": "y", "stop": ["a", "b"], "steps": 3}, {"messages": [{"a": 1}]}]
    source.stage(write(tmp_path / "a.jsonl", *rows), None, tmp_path / "staged", 2)
    staged = [row for file in sorted((tmp_path / "staged").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert len(list((tmp_path / "staged").iterdir())) == 2
    assert [row["id"] for row in staged] == ["0", "1", "2"]
    assert [json.loads(row["row"])["columns"] for row in staged] == rows


def test_a_folder_goes_on_with_its_own_job_only(tmp_path):
    job = {"input": "abc", "seed": 0}
    assert Folder(tmp_path / "out").open(job) is None
    assert Folder(tmp_path / "out").open(job) is None, "ended before its input was staged"
    Folder(tmp_path / "out").close_staging(job | {"rows": 3})
    assert Folder(tmp_path / "out").open(job) == job | {"rows": 3}
    with pytest.raises(source.InputError, match="a job with another seed"):
        Folder(tmp_path / "out").open(job | {"seed": 1})
    write(tmp_path / "of_somebody_else", {})
    with pytest.raises(source.InputError, match="is not empty, and no job of this command"):
        Folder(tmp_path).open(job)


def test_parts_have_one_schema_whatever_rows_are_among_them():
    report = {"infogain": {"steps": 1}}
    data = {"generated_text": "t", "generated_tokens": [1], "num_input_tokens": 2, "metrics": report, "logprobs": None}
    good = output_row(7, data, {"any": [1]}, None)
    bad = output_row("b", {}, None, "tempature=1: unknown")
    tables = [part_table([json.dumps(row) for row in rows]) for rows in ([good], [bad], [good, bad])]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    assert pa.concat_tables(tables[:2]).to_pylist() == tables[2].to_pylist()
    first, second = tables[2].to_pylist()
    assert (first["id"], first["text"], first["token_ids"], first["error"]) == ("7", "t", [1], None)
    assert (json.loads(first["report"]), json.loads(first["metadata"])) == ({"steps": 1}, {"any": [1]})
    assert (second["id"], second["text"], second["error"]) == ("b", None, "tempature=1: unknown")

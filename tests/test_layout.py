"""Every position of every candidate lies in exactly one place, and what candidates share is one copy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_infogain.engine.batch import SequenceGroup, build_batch
from vllm_infogain.engine.kv_layout import layout, most_own_pages
from vllm_infogain.engine.records import GroupPlan
from vllm_infogain.sampling.forward_window import ForwardWindow

windows = st.tuples(st.integers(1, 200), st.integers(1, 200), st.integers(0, 200)).map(
    lambda sizes: ForwardWindow(
        rows=range(sizes[0] - 1, sizes[0] - 1 + sizes[1]),
        own=range(sizes[0] - 1, sizes[0] - 1 + sizes[1]),
        keys=sizes[0] - 1 + sizes[1] + sizes[2],
    )
)


@given(window=windows, page_size=st.sampled_from([16, 32, 128]))
def test_a_bidirectional_layout_places_every_position_once_and_the_window_in_own_pages(
    window: ForwardWindow, page_size: int
):
    place = layout(window, page_size, in_order=False)
    assert sorted(place.slots.tolist()) == list(range(window.keys)), "no hole, or the kernel would read old keys"
    pages = place.slots[window.own.start : window.own.stop] // page_size
    assert set(pages) <= set(place.own)
    assert len(place.own) <= most_own_pages(len(window.own), window.keys, page_size)
    shared = np.setdiff1d(np.arange(window.keys), np.array(window.own))
    inside = [position for position in shared if place.slots[position] // page_size in place.own]
    assert all(place.slots[position] // page_size == place.own.start for position in inside), "one page is copied"
    assert place.is_copied == bool(inside)
    if len(window.own) % page_size == 0:
        assert not inside, "a window of whole pages needs no copy"


@given(window=windows, page_size=st.sampled_from([16, 32]))
def test_a_block_causal_layout_keeps_the_order_of_the_text(window: ForwardWindow, page_size: int):
    window = ForwardWindow(window.rows, window.own, keys=window.own.stop)
    place = layout(window, page_size, in_order=True)
    assert place.slots.tolist() == list(range(window.keys))
    assert place.own.start == window.own.start // page_size
    assert place.own.stop * page_size >= window.keys
    assert len(place.own) <= most_own_pages(len(window.own), window.keys, page_size)


def group(window: ForwardWindow, count: int, pages: GroupPlan, block: int = 0) -> SequenceGroup:
    tokens = np.arange(100, 100 + 80) + np.arange(count)[:, None] * 1000
    masked = np.tile(np.array([[window.own.start, window.own.stop - 1]]), (count, 1))
    return SequenceGroup(tokens, masked, window, np.zeros(count, dtype=np.int64), pages, block)


def test_candidates_write_to_pages_of_their_own_and_read_the_shared_ones():
    window = ForwardWindow(
        rows=range(40, 56), own=range(40, 56), keys=80
    )  # 16 of a page of 32: 16 shared ones fill it up
    batch = build_batch([group(window, 3, GroupPlan(3, ((5, 6, 7),), (8, 9)))], 32, torch.device("cpu"))
    assert batch.page_table.tolist() == [[5, 6, 7], [5, 8, 7], [5, 9, 7]]
    assert batch.copied_pages.tolist() == [[6, 6], [8, 9]]
    assert batch.input_ids.view(3, 16)[2].tolist() == list(range(2140, 2156))
    assert batch.positions.view(3, 16)[1].tolist() == list(range(40, 56))
    assert [set((row // 32).tolist()) for row in batch.slot_mapping.view(3, 16)] == [{6}, {8}, {9}]
    assert batch.keys.tolist() == [80, 80, 80]
    assert batch.query_start.tolist() == [0, 16, 32, 48]
    assert batch.logit_rows.tolist() == [0, 15, 16, 31, 32, 47]


def test_a_refresh_writes_every_state_into_its_own_context():
    window = ForwardWindow(rows=range(80), own=range(40, 56), keys=80, refresh=True)
    states = group(window, 2, GroupPlan(2, ((5, 6, 7), (1, 2, 3))))
    states = SequenceGroup(states.tokens, states.masked, window, np.array([1, 0]), states.pages, 0)
    batch = build_batch([states], 32, torch.device("cpu"))
    assert batch.page_table.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch.copied_pages.numel() == 0
    assert len(set(batch.slot_mapping.tolist())) == 160


def test_rows_of_a_block_causal_state_attend_up_to_the_end_of_their_block():
    window = ForwardWindow(rows=range(4, 14), own=range(12, 14), keys=14, refresh=True)
    batch = build_batch([group(window, 1, GroupPlan(1, ((5, 6, 7),)), block=4)], 32, torch.device("cpu"))
    assert batch.query_start.tolist() == [0, 4, 8, 10]
    assert batch.keys.tolist() == [8, 12, 14]
    assert batch.page_table.tolist() == [[5, 6, 7]] * 3
    assert batch.slot_mapping.tolist() == [5 * 32 + position for position in range(4, 14)]


def test_rows_of_guides_are_those_of_the_group_before_and_no_logits_are_read_of_them():
    def whole(length: int, pages: GroupPlan, scale: float = 0.0) -> SequenceGroup:
        made = group(ForwardWindow(range(length), range(length), length), 2, pages)
        return replace(made, tokens=made.tokens[:, :length], guidance_scale=scale)

    groups = [
        whole(4, GroupPlan(2, ((1,),), (2,))),
        whole(6, GroupPlan(2, ((3,),), (4,))),
        whole(5, GroupPlan(2, ((5,),), (6,)), scale=1.5),
        whole(3, GroupPlan(2, ((7,),), (8,))),
    ]
    batch = build_batch(groups, 32, torch.device("cpu"))
    assert batch.logit_rows.tolist() == [0, 3, 4, 7, 8, 13, 14, 19, 30, 32, 33, 35]
    assert batch.guided_rows.tolist() == [8, 13, 14, 19]
    assert batch.guide_rows.tolist() == [20, 24, 25, 29]
    assert batch.guidance_scale.tolist() == [[1.5]] * 4


@pytest.mark.parametrize("page_size", [16, 32])
def test_groups_of_different_lengths_share_one_batch(page_size: int):
    one = group(ForwardWindow(range(40, 56), range(40, 56), 80), 2, GroupPlan(2, ((1, 2, 3, 4, 5),), (6, 7, 8, 9)))
    other = group(ForwardWindow(range(20), range(20), 20), 1, GroupPlan(1, ((10, 11),)))
    batch = build_batch([one, other], page_size, torch.device("cpu"))
    assert batch.query_start.tolist() == [0, 16, 32, 52]
    assert batch.keys.tolist() == [80, 80, 20]
    assert batch.logit_rows.tolist() == [0, 15, 16, 31, 32, 51]
    assert (batch.longest, batch.most_keys) == (20, 80)
    assert batch.page_table[2, 2:].eq(0).all()

"""The scaling model: every formula against a hand-worked case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.bench.scaling_model import (
    ROWS,
    Constants,
    allreduce_seconds,
    collectives_seconds,
    estimate,
    exposed_seconds,
    ring_bytes,
    selection_payload,
    table,
)

#: Round numbers: 1 GB of gradients in buckets of 250 MB, nodes of 2 GPUs, 1 GB/s between nodes and 10 within.
ROUND = Constants(
    parameters=250_000_000,
    bucket_bytes=250_000_000,
    gpus_a_node=2,
    network_bytes_per_second=1e9,
    intra_bytes_per_second=1e10,
    latency_seconds=0.001,
    batch_a_gpu=10,
    gpu_images_per_second=10.0,
    backward_share=0.5,
    images=1000,
    decode_ms=5,
    image_bytes=100,
    checkpoint_every_steps=10,
    checkpoint_stall_seconds=0.0,
    price_a_gpu_hour=3.6,
)


def test_a_ring_sends_twice_the_payload_less_one_share() -> None:
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 2) == 100
    assert ring_bytes(100, 4) == 150


def test_the_selection_s_bytes_do_not_depend_on_the_batch() -> None:
    """2 048 + 1 024 + 1 024 counts and 8 numbers, of 8 bytes each."""
    assert selection_payload() == 4096 * 8 + 64


def test_within_a_node_the_fast_links_decide() -> None:
    """Two GPUs: 1 GB at 10 GB/s, no message between nodes."""
    assert allreduce_seconds(1e9, 1, ROUND) == 0
    assert allreduce_seconds(1e9, 2, ROUND) == pytest.approx(0.1)


def test_between_nodes_the_network_and_its_latency_decide() -> None:
    """Four GPUs on two nodes: 1.5 GB at 1 GB/s; four buckets with 2 messages of 1 ms each."""
    assert allreduce_seconds(1e9, 4, ROUND) == pytest.approx(1.5 + 0.008)


def test_the_backward_pass_hides_what_fits_but_the_last_bucket() -> None:
    """1.508 s beside 0.5 s of backward leaves 1.008; beside 10 s only the last bucket, 0.375 s and 2 messages."""
    assert exposed_seconds(4, 1.0, ROUND) == pytest.approx(1.008)
    assert exposed_seconds(4, 20.0, ROUND) == pytest.approx(0.375 + 0.002)
    assert exposed_seconds(1, 1.0, ROUND) == 0


def test_small_collectives_cost_latency_up_and_down_a_tree() -> None:
    """Five of them; 8 nodes are a tree of depth 3."""
    assert collectives_seconds(1, ROUND) == 0
    assert collectives_seconds(2, ROUND) == pytest.approx(5 * 2 * 0.001)
    assert collectives_seconds(16, ROUND) == pytest.approx(5 * 2 * 3 * 0.001)


def test_a_whole_estimate_by_hand() -> None:
    """Four GPUs: a step of 1 + 1.008 + 0.010 s for 40 images."""
    found = estimate(4, ROUND)
    step = 1 + 1.008 + 0.010
    assert (found.nodes, found.global_batch, found.steps_an_epoch) == (2, 40, 25)
    assert found.efficiency == pytest.approx(1 / step)
    assert found.images_per_second == pytest.approx(40 / step)
    assert found.loader_cores_a_gpu == pytest.approx(10 / step * 0.005)
    assert found.shard_bytes_per_second_a_node == pytest.approx(20 / step * 100)
    assert found.checkpoint_bytes == 3_000_000_000
    assert found.checkpoint_bytes_per_second == pytest.approx(3e9 / (10 * step))
    assert found.hours_an_epoch == pytest.approx(1000 / (40 / step) / 3600)
    assert found.cost_an_epoch == pytest.approx(found.hours_an_epoch * 4 * 3.6)


def test_one_gpu_is_perfectly_efficient_but_for_checkpoints() -> None:
    assert estimate(1, ROUND).efficiency == 1
    assert estimate(1, replace(ROUND, checkpoint_stall_seconds=1.0)).efficiency == pytest.approx(1 / 1.1)


def test_the_constant_is_the_model_s_number_of_parameters() -> None:
    from trainer.model.classifier import ModelConfig, build_model

    model = build_model(ModelConfig(backbone="resnet101", weights="none"), 5000, 0)
    assert sum(p.numel() for p in model.parameters()) == Constants().parameters


def test_the_table_has_every_row_for_every_number() -> None:
    rows = table((8, 64, 512))
    assert rows[0] == ["GPUs", "8", "64", "512"]
    assert [row[0] for row in rows[1:]] == [title for title, _, _ in ROWS]
    assert all(len(row) == 4 for row in rows)


def test_the_documented_table_is_the_printed_one() -> None:
    from pathlib import Path

    documented = (Path(__file__).resolve().parents[2] / "docs" / "SCALING.md").read_text()
    for row in table():
        assert "| " + " | ".join(row) + " |" in documented

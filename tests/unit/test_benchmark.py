"""`combo-hf benchmark`: counters, clocks and the table; the baselines must compute what the package computes."""

import json
import math
import re

import numpy as np
import pytest
import torch

from combo_hf import benchmarking, cli
from combo_hf.benchmarking import reference_parts
from combo_hf.benchmarking.cases import Settings, label_maps, make_inputs, make_model
from combo_hf.benchmarking.machine import Machine, count_work
from combo_hf.benchmarking.network import cached_maskiges, checkpointed
from combo_hf.benchmarking.reference_network import ReferenceCombo
from combo_hf.benchmarking.report import Result, as_table, seconds
from combo_hf.benchmarking.ties import ties_remark
from combo_hf.benchmarking.timing import Samples, Variant, compare, peak_bytes, ratio


MACHINE = Machine(1e9, 2e9, 1e8, 1, 0.0, 2, "a processor", "2")


def test_products_and_bytes_are_counted():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    flops, moved, out = count_work(lambda: a @ b)
    assert flops == 2 * 3 * 4 * 5 and moved == 4 * (12 + 20 + 15) and out.shape == (3, 5)


def test_views_cost_nothing_and_backward_is_counted():
    a = torch.ones(3, 4, requires_grad=True)
    assert count_work(lambda: a.detach().view(4, 3).T)[:2] == (0, 0)
    forward = count_work(lambda: a @ torch.ones(4, 5))[0]
    both = count_work(lambda: (a @ torch.ones(4, 5)).sum().backward())[0]
    assert both == 2 * forward  # one factor wants a gradient


def test_attention_of_the_cpu_is_counted():
    query, key = torch.ones(2, 3, 7, 8), torch.ones(2, 3, 5, 8)
    flops = count_work(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))[0]
    assert flops == 2 * 2 * 3 * 7 * 5 * (8 + 8)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_convolutions_of_groups_are_counted(groups, kind):
    layer, pictures = kind(6, 12, 3, stride=2, groups=groups, bias=False), torch.ones(2, 6, 9, 9, requires_grad=True)
    forward, _, out = count_work(lambda: layer(pictures))
    pixels = (pictures if layer.transposed else out).numel()
    assert forward == 2 * pixels * layer.weight[0].numel()
    assert count_work(lambda: layer(pictures).sum().backward())[0] == 3 * forward
    pictures.requires_grad_(False)
    assert count_work(lambda: layer(pictures).sum().backward())[0] == 2 * forward


def test_share_of_the_limit():
    assert MACHINE.share(2.0, 1e9, 1e8, "float32") == (0.5, 0.5)
    assert MACHINE.share(2.0, 1e9, 1e8, "bfloat16") == (0.25, 0.5)


def test_variants_run_in_alternation():
    order = []
    variants = [Variant(name, lambda name=name: (order.append(name), __import__("time").sleep(0.02))) for name in "ab"]
    samples = compare(variants, 3)
    assert "".join(order[2:]) == "ababab"  # the first of each finds the number of repeats
    assert len(samples["a"].wall) == len(samples["b"].cpu) == 3 and samples["a"].median("wall") >= 0.02


@pytest.mark.parametrize(("names", "rounds"), [("ab", 0), ("aa", 1)])
def test_compare_refuses(names, rounds):
    with pytest.raises(ValueError, match="at least one round"):
        compare([Variant(name, lambda: None) for name in names], rounds)


def test_ratio_is_a_median_of_rounds():
    plain, other = Samples([1.0, 4.0, 9.0]), Samples([1.0, 2.0, 3.0])
    assert ratio(plain, other, "wall") == 2.0


def test_peak_sees_what_is_let_go_again():
    size = 1 << 26
    peak = peak_bytes(lambda: np.ones(size, np.uint8).sum())
    if peak is None:
        pytest.skip("this system does not tell the peak")
    assert size * 0.9 < peak < size * 2


@pytest.mark.parametrize(("value", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4e-6, "4 us")])
def test_seconds(value, text):
    assert seconds(value) == text


def test_table_and_json(tmp_path):
    line = Result("a case", "plain", 1.0, 2.0, 1.0, 1.0, flops=1e9, flop_share=0.5, peak=2**30, note="text")
    table = as_table([line], MACHINE)
    assert "| a case | plain   | 1 s  | 2 s |" in table and "products" in table and "1.00 GB" in table
    benchmarking.write_json([line], MACHINE, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["machine"]["copy"] == 1e8 and found["results"][0]["bound"] == "products"
    with pytest.raises(OSError, match="absent"):
        benchmarking.write_json([line], MACHINE, tmp_path / "absent" / "out.json")


@pytest.fixture(scope="module")
def model():
    return make_model("r50", Settings(quick=True))


def test_the_plain_network_is_the_network(model):
    inputs = make_inputs(model.config, [3, 2]).network
    with torch.no_grad():
        plain, ours = ReferenceCombo(model)(**inputs), model(**inputs, output_auxiliary_logits=True)
    assert len(plain) == 1 + model.config.decoder_layers
    for (classes, _), wanted in zip(plain, [*ours.auxiliary_logits, (ours.class_queries_logits, None)],
                                        strict=True):  # fmt: skip
        torch.testing.assert_close(classes, wanted[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain[-1][1], ours.masks_queries_logits, atol=1e-3, rtol=1e-4)


def test_thresholds_that_fall_apart_are_told(model):
    inputs = make_inputs(model.config, [2]).network
    with torch.no_grad():
        out = model(**inputs, output_auxiliary_logits=True)
        layers = [*out.auxiliary_logits, (out.class_queries_logits, out.masks_queries_logits)]

        def last():
            out = model(**inputs)
            return out.class_queries_logits, out.masks_queries_logits

        assert ties_remark(lambda: layers, last) == ""
        layers[0][1][0, 0] *= -1
        remark = ties_remark(lambda: layers, last)
    cells = (model.config.image_size // 32) ** 2
    count, farthest = re.search(r"with (\d+) threshold\(s\) (\S+) from zero", remark).groups()
    assert int(count) >= cells and float(farthest) > 0.01  # what follows differs too; no one can take it for rounding


def test_cached_maskiges_and_checkpointing_leave_the_model_alone(model):
    inputs = make_inputs(model.config, [2]).network
    with torch.no_grad():
        wanted = model(**inputs).masks_queries_logits
        other = cached_maskiges(model, inputs)
        assert torch.equal(other(**{**inputs, "maskige_values": inputs["pixel_values"]}).masks_queries_logits, wanted)
        with checkpointed(model):
            pass
        assert torch.equal(model(**inputs).masks_queries_logits, wanted)


def test_backbones_in_bfloat16(model):
    inputs = make_inputs(model.config, [2]).network
    half = make_model("r50", Settings(quick=True)).set_backbone_dtype(torch.bfloat16)
    with torch.no_grad():
        wanted, got = model(**inputs), half(**inputs)
    assert got.masks_queries_logits.dtype == torch.float32
    assert (
        0
        < (got.masks_queries_logits - wanted.masks_queries_logits).abs().max()
        < 0.1 * math.fabs(wanted.masks_queries_logits.abs().max())
    )
    maps = [label_maps(out.class_queries_logits, out.masks_queries_logits) for out in (wanted, got)]
    assert (maps[0] == maps[1]).float().mean() > 0.99
    with pytest.raises(TypeError, match="floating point"):
        half.set_backbone_dtype(torch.int8)


def test_the_plain_spectrum_and_resampling_are_those_of_the_package():
    sound = np.sin(np.arange(44100) * 0.05)[:, None] * [0.2, 0.4]
    from combo_hf import ComboFeatureExtractor

    wanted = ComboFeatureExtractor()(sound, sampling_rate=44100, num_frames=1)["input_features"][:, 0]
    np.testing.assert_allclose(reference_parts.log_mel(sound, 44100, 1), wanted, atol=2e-3)


def test_the_command(tmp_path, capsys):
    assert cli.main(["benchmark", "--list"]) == 0
    names = capsys.readouterr().out.split("\n")
    assert "eval/pvtv2-b5/10 frames" in names and "video/memory, 60 s and 600 s" in names
    only = ["--only", "eval/r50/shared", "loss/", "maskige/30", "scores/M_F", "batches/r50", "--threads", "1"]
    assert cli.main(["benchmark", "--quick", *only, "--json", str(tmp_path / "speed.json")]) == 0
    out, err = capsys.readouterr()
    assert "GFLOP/s" in out and "labels 100.00 %" in out and "maskige/30 masks" in err
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    batches = [line["variant"] for line in results if line["case"] == "batches/r50"]
    assert batches == ["1 clips, float32", "2 clips, float32", "1 clips, bfloat16", "2 clips, bfloat16"]
    results = [line for line in results if line["case"] != "batches/r50"]
    assert [line["variant"] for line in results] == ["plain", "default"] * 5
    assert all(line["note"] for line in results if line["variant"] == "default" and line["case"] != "loss/matching")
    assert all(line["wall"] > 0 and line["cpu"] > 0 for line in results)
    assert all(line["flops"] > 0 for line in results if line["case"].startswith("eval"))


def test_the_command_refuses(capsys):
    assert cli.main(["benchmark", "--only", "nothing like this"]) == 2
    assert "no case has nothing like this in its name; known: eval/r50" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="2"):
            cli.main(["benchmark", "--device", "cuda"])
        assert "not usable here" in capsys.readouterr().err
        with pytest.raises(ValueError, match="no CUDA device here"):
            benchmarking.run_benchmark(benchmarking.BenchmarkOptions(device="cuda"))


@pytest.mark.slow
def test_every_case_runs(capsys):
    names = benchmarking.case_names()
    chosen = [name for name in names if "pvtv2-b5" not in name]  # `quick` has one tiny network for both backbones
    assert {name.replace("pvtv2-b5", "r50") for name in names} == set(chosen)
    options = benchmarking.BenchmarkOptions(chosen, quick=True, rounds=1, threads=1)
    results, _ = benchmarking.run_benchmark(options)
    assert {line.case for line in results} == set(chosen)
    whole, *stages = (line for line in results if line.case == "video/predict 60 s, 720p, r50")
    assert whole.variant == "whole" and sum(line.wall for line in stages[:-1]) == pytest.approx(whole.wall)

# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of attention maps in a browser: sizes of the window, overview, means, colours, and what leaves the page."""

import csv
import io
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from test_visualization_page import (  # noqa: F401
    FINE,
    boxes,
    browser,
    choose_part,
    directory,
    long_maps,
    opened,
    pair_maps,
    pixels,
    point_at,
)

import ea_hf
from ea_hf.visualization import Chain, ExampleMaps, record_maps
from ea_hf.visualization.packing import shown_maps
from ea_hf.visualization.parts import PROBABILITY_COLORS


# ruff: noqa: F811 (fixtures that come from another file)


SIZES = {"laptop": (1366, 700), "desktop": (1920, 1080), "phone": (390, 844)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.slow_but("phone")
def test_nothing_is_cut_off_and_a_chosen_cell_is_in_sight(browser, long_maps, tmp_path, size):
    width, height = SIZES[size]
    with opened(browser, long_maps, tmp_path / "maps.html", viewport={"width": width, "height": height}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ((_, _, _, bottom),) = boxes(page, "#shown .scroll")
        if size != "phone":  # map and numbers are seen together
            assert bottom <= height and boxes(page, "#chosen")[0][3] <= height
        page.locator("#shown canvas").focus()
        for key, count in (("ArrowDown", 60), ("ArrowRight", 70), ("ArrowUp", 55), ("ArrowLeft", 68)):
            for _ in range(count):
                page.keyboard.press(key)
            cell, frame = boxes(page, "#shown .cell")[0], boxes(page, "#shown .scroll")[0]
            names = boxes(page, "#shown .rows.labels")[0][2], boxes(page, "#shown .columns.labels")[0][3]
            assert max(names[0], 0) <= cell[0] + 1 and cell[2] <= min(frame[2], width) + 1
            assert max(names[1], 0) <= cell[1] + 1 and cell[3] <= min(frame[3], height) + 1


def test_facts_stand_beside_their_names_and_keys_reach_those_that_scroll(browser, long_maps, tmp_path):
    with opened(browser, long_maps, tmp_path / "maps.html", viewport={"width": 390, "height": 844}) as page:
        names, facts = boxes(page, "#about dt"), boxes(page, "#about dd")
        assert names and [box[1] for box in names] == pytest.approx([box[1] for box in facts], abs=4)
        scrolls = "[...document.querySelectorAll('#about dd')].map(fact => [fact.scrollHeight > fact.clientHeight + 1, fact.tabIndex])"
        found = page.evaluate(scrolls)
        assert any(scrolling for scrolling, _ in found)
        assert all(index == 0 for scrolling, index in found if scrolling)


def test_a_large_window_gets_large_cells(browser, pair_maps, tmp_path):
    zooms = []
    for width, height in (SIZES["laptop"], SIZES["desktop"]):
        with opened(browser, pair_maps, tmp_path / "maps.html", viewport={"width": width, "height": height}) as page:
            zooms.append(int(page.locator("#zoom").input_value()))
            assert boxes(page, "#maps figure")[-1][3] <= height
    assert zooms[0] <= 28 < zooms[1]


def values_in_page(page, layer, name, head):
    found = page.evaluate(f"Array.from(mapOf(0, {layer}, {name!r}, {head}))")
    return np.array(found).reshape(page.evaluate("[data.chains[0].queries.length, data.chains[0].keys.length]"))


def test_means_and_differences_are_those_of_the_model(browser, pair_maps, tmp_path):
    layer = pair_maps.chains[0].layers[2]
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        for name, maps in (
            ("attention", layer.attention),
            ("previous", layer.from_previous),
            ("attention difference", layer.attention_change),
            ("difference", layer.evolved - layer.vanilla.evolved),
        ):
            for head, values in ((1, maps[1]), (4, maps.mean(0))):
                error = np.abs(values_in_page(page, 2, name, head) - values.numpy()).max()
                assert error <= 3 * FINE * layer.vanilla.evolved.abs().max().item(), (name, head)
        page.locator("#head").press("End")
        assert "mean of the heads" in page.locator("#shown figcaption").text_content()
        page.locator("#beside").select_option("difference")
        assert "minus vanilla" in page.locator("#vanilla figcaption").text_content().lower()


def test_colours_of_probabilities_and_hidden_special_tokens(browser, pair_maps, tmp_path):
    (chain,) = pair_maps.chains
    attention = chain.layers[1].attention[0].numpy()
    stops = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in PROBABILITY_COLORS])
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        choose_part(page, "attention")
        page.locator("#scale").select_option("map")
        page.locator("#special").check()
        kept = [place for place in range(len(chain.keys)) if place not in chain.special_keys]
        shown = attention[np.ix_(kept, kept)]
        shares = shown / shown.max()
        for curve, places in (("root", shares**0.5), ("linear", shares), ("log", 1 + np.log10(shares) / 4)):
            page.locator("#curve").select_option(curve)
            places = places.clip(0, 1) * (len(stops) - 1)
            expected = np.stack([np.interp(places, range(len(stops)), stops[:, i]) for i in range(3)], axis=-1)
            assert np.abs(pixels(page)[..., :3] - expected).max() < 4, curve
        assert page.locator("#shown .columns.labels span").all_text_contents() == [chain.keys[i] for i in kept]
        point_at(page, 2, 1, shown.shape)
        assert page.locator("#pair-places").text_content() == f"(row {kept[2] + 1}, column {kept[1] + 1})"


def test_overview_and_heads_lead_to_one_head(browser, pair_maps, tmp_path):
    layer = pair_maps.chains[0].layers[2]
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        page.locator("#quantity").select_option("distance")
        button = page.locator("#grid tbody tr").nth(2).locator("button").nth(3)
        distance = (layer.attention_change.abs().sum(-1) / 2).mean(-1)[3].item()
        assert float(button.get_attribute("title").split(": ")[1].removesuffix(" %")) == pytest.approx(
            100 * distance, rel=6e-3
        )
        button.click()
        assert "layer 3, head 4" in page.locator("#shown figcaption").text_content()
        page.locator("#mode").select_option("heads")
        assert page.locator("#maps figure").count() == 4
        page.locator("#maps figure button").nth(1).click()
        assert "layer 3, head 2" in page.locator("#shown figcaption").text_content()


def test_what_is_shown_can_be_saved_and_linked(browser, pair_maps, tmp_path):
    layer = pair_maps.chains[0].layers[2]
    view = "#chain=0&layer=2&head=1&part=attention&query=3&key=4&curve=log&special=true"
    with opened(browser, pair_maps, tmp_path / "maps.html", view=view) as page:
        caption = page.locator("#shown figcaption").text_content()
        assert "Attention" in caption and "layer 3, head 2" in caption
        assert page.locator("#pair-places").text_content() == "(row 4, column 5)"
        assert page.locator("#special").is_checked() and page.locator("#curve").input_value() == "log"
        saved = {}
        for name in ("csv", "svg", "png"):
            with page.expect_download() as download:
                page.locator(f"#{name}").click()
            saved[name] = tmp_path / download.value.suggested_filename
            download.value.save_as(saved[name])
        lines = list(csv.DictReader(io.StringIO(saved["csv"].read_text(encoding="utf-8"))))
        kept = len(pair_maps.chains[0].keys) - 3
        assert len(lines) == 2 * kept**2
        for line in lines:
            maps = {"attention": layer.attention, "vanilla attention": layer.vanilla.attention}[line["map"]]
            value = maps[1, int(line["row"]) - 1, int(line["column"]) - 1].item()
            assert float(line["value"]) == pytest.approx(value, abs=FINE)
        picture = ElementTree.parse(saved["svg"]).getroot()
        assert picture.tag.endswith("svg") and "heart" in "".join(picture.itertext())
        drawn = np.asarray(Image.open(saved["png"]).convert("RGB"))[::9, ::9].reshape(-1, 3)
        assert len(np.unique(drawn, axis=0)) > 20
        page.locator("#layer").press("Home")
        page.wait_for_timeout(500)  # the address follows a moment later
        assert "layer=0" in page.locator("#link").get_attribute("href")


@pytest.mark.slow
def test_a_large_page_is_small_fast_and_right(browser, tmp_path):
    """All heads of 12 layers, 12 heads and 256 tokens; the scores are as spread as those of trained models."""
    config = ea_hf.EABertConfig(vocab_size=1000, ea_residual_weight=0.3, ea_conv_weight=0.3)
    model = ea_hf.EABertModel(config).eval()
    for name, parameter in model.named_parameters():
        if "query.weight" in name or "key.weight" in name:
            parameter.data.normal_(0, 0.06)
        if ".conv." in name:
            parameter.data.normal_(0, 0.1)
    layers = record_maps(model, {"input_ids": torch.randint(0, 1000, (1, 256))}, vanilla=True)["self"]
    tokens = [f"token{i}" for i in range(256)]
    chain = Chain("self", "self-attention", "query: token", "key: token", tokens, tokens, layers)
    maps = ExampleMaps("large", list(range(1, 13)), "ReLU", [chain])
    with opened(browser, maps, tmp_path / "maps.html") as page:
        assert (tmp_path / "maps.html").stat().st_size <= 25_000_000
        page.wait_for_timeout(8000)  # what the page prepares while it is idle
        times = []
        for layer in (11, 3, 7):
            times.append(
                page.evaluate(
                    f"(() => {{ const start = performance.now(); show({{ layer: {layer} }}); return performance.now() - start; }})()"
                )
            )
        for place, head in ((0, 0), (1, 5), (6, 11), (11, 7)):
            for name, values in shown_maps(layers[place]).items():
                found = values_in_page(page, place, name, head)
                scale = values[head].abs().max().item()
                assert np.abs(found - values[head].numpy()).max() <= 1e-3 * scale, (place, head, name)
    # A layer is drawn in 100 ms on a machine that has nothing else to do.
    assert min(times) < 200, times

# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of attention maps in a browser: what it shows is what the model computes, and no text can do harm."""

import base64
import io
import itertools
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tiny_evolving
from PIL import Image
from tiny_images import digits
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

import ea_hf
from ea_hf.visualization import image_maps, text_maps, write_page
from ea_hf.visualization.packing import FINE
from ea_hf.visualization.parts import LOGIT_COLORS, PARTS


sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium on the PATH", allow_module_level=True)

SENTENCE = "A small film with a very big heart."
# Seven texts that a page must not take for anything but text.
HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 2'>",
    "<!--<script>",
    "\"'`${window.harmed = 3}\\",
    "/* DATA */ SCRIPT_HASH",
    "שלום مرحبا \u202eabc",
    "👩\u200d👧 \ud83d",
]


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def pair_maps(directory):
    checkpoint = tiny_evolving.write_bert(directory)
    model, tokenizer = AutoModel.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    return text_maps(model, tokenizer, SENTENCE, "Avoid.", vanilla=True)


@pytest.fixture(scope="module")
def long_maps(directory, pair_maps):
    model = AutoModel.from_pretrained(directory / "ea_bert")
    tokenizer = AutoTokenizer.from_pretrained(directory / "ea_bert")
    return text_maps(model, tokenizer, "A dull copy of a better film; " * 15, heads=[1])


@pytest.fixture(scope="module")
def translation_maps(directory):
    checkpoint = tiny_evolving.write_t5(directory)
    model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(checkpoint)
    return text_maps(model, AutoTokenizer.from_pretrained(checkpoint), "Open the file.", target="Das Menü.")


@pytest.fixture(scope="module")
def digit_maps(directory):
    checkpoint = tiny_evolving.write_vit(directory)
    model, processor = AutoModel.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
    return image_maps(model, processor, Image.fromarray(digits(2)[3]), vanilla=True)


@contextmanager
def opened(browser, maps, path, view="", **options):
    """The page of some maps; at the end, nothing may have gone wrong in it and nothing been asked of the network."""
    write_page(maps, path)
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 1600}, **options})
    page = context.new_page()
    faults, requests = [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri() + view)
    page.wait_for_selector("html[data-ready]")
    yield page
    page.wait_for_timeout(50)
    context.close()
    assert faults == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


def shown_values(page):
    """The values of the chosen pair by the map's name."""
    cells = page.locator("#chosen .value").all()
    return {cell.get_attribute("data-map"): cell.text_content() for cell in cells}


def expected_values(layer, head, query, key):
    maps = {part.name: part.values(layer) for part in PARTS}
    if layer.vanilla is not None:
        maps |= {"vanilla": layer.vanilla.evolved, "vanilla attention": layer.vanilla.attention}
    # Rounded to a share of the map's largest value, then to 4 digits.
    return {
        name: pytest.approx(
            values[head, query, key].item(),
            rel=0,
            abs=FINE * values[head].abs().max().item() + 5.1e-4 * abs(values[head, query, key].item()),
        )
        for name, values in maps.items()
    }


def point_at(page, query, key, shape, figure="#shown"):
    box = page.locator(f"{figure} canvas").bounding_box()
    page.mouse.move(
        box["x"] + (key + 0.5) * box["width"] / shape[1], box["y"] + (query + 0.5) * box["height"] / shape[0]
    )


def pixels(page, selector="#shown canvas"):
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def choose_part(page, name):
    page.locator(f'#parts input[value="{name}"]').check(force=True)


def test_pointing_at_a_cell_shows_the_model_s_values(browser, pair_maps, tmp_path):
    (chain,) = pair_maps.chains
    shape = (len(chain.queries), len(chain.keys))
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        assert page.locator("#layer-shown").text_content() == "2"
        for query, key, figure in ((0, 0, "#shown"), (3, 7, "#shown"), (12, 1, "#vanilla"), (8, 8, "#vanilla")):
            point_at(page, query, key, shape, figure)
            assert page.locator("#pair-query").text_content() == chain.queries[query]
            assert page.locator("#pair-key").text_content() == chain.keys[key]
            values = {name: float(text) for name, text in shown_values(page).items()}
            assert values == expected_values(chain.layers[1], 0, query, key)
            tip = page.locator("#tip b").text_content()
            assert tip == shown_values(page)["vanilla" if figure == "#vanilla" else "evolved"]
        page.mouse.move(5, 5)
        assert page.locator("#tip").is_hidden()


def test_sliders_move_the_map(browser, pair_maps, tmp_path):
    (chain,) = pair_maps.chains
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        seen = []
        for keys, layer, head in (
            ([], 2, 1),
            (["#layer ArrowRight"], 3, 1),
            (["#head End", "#head ArrowLeft"], 3, 4),
            (["#layer Home"], 1, 4),
        ):
            for pressed in keys:
                page.locator(pressed.split()[0]).press(pressed.split()[1])
            assert page.locator("#layer-shown").text_content() == str(layer)
            assert page.locator("#head-shown").text_content() == str(head)
            caption = page.locator("#shown figcaption").text_content()
            assert f"layer {layer}, head {head}" in caption
            values = {name: float(text) for name, text in shown_values(page).items()}
            assert values == expected_values(chain.layers[layer - 1], head - 1, 0, 0)
            picture = pixels(page)
            assert picture.shape == (len(chain.queries), len(chain.keys), 4)
            assert not any(np.array_equal(picture, other) for other in seen)
            seen.append(picture)


def test_colours_are_those_of_the_scale_and_its_numbers(browser, pair_maps, tmp_path):
    layer = pair_maps.chains[0].layers[1]
    stops = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in LOGIT_COLORS])
    logits = [part.values(layer)[0] for part in PARTS[:4]] + [layer.vanilla.evolved[0]]
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        choose_part(page, "convolution")
        for scale, maps in (("layer", logits), ("map", [layer.from_convolution[0]])):
            page.locator("#scale").select_option(scale)
            numbers = page.locator("#shown .numbers span").all_text_contents()
            limit = max(values.abs().max().item() for values in maps)
            assert [float(number) for number in numbers] == pytest.approx(
                [-limit, -limit / 2, 0, limit / 2, limit], rel=5e-3
            )
            assert page.locator("#shown .unit").text_content() == "logit before mask and softmax, no unit"
            places = (layer.from_convolution[0].numpy() / limit + 1) / 2 * (len(stops) - 1)
            expected = np.stack([np.interp(places, range(len(stops)), stops[:, i]) for i in range(3)], axis=-1)
            assert np.abs(pixels(page)[..., :3] - expected).max() < 3
        choose_part(page, "attention")
        numbers = page.locator("#shown .numbers span").all_text_contents()
        assert float(numbers[0]) == 0 and float(numbers[-1]) <= 1
        assert page.locator("#shown .unit").text_content() == "probability, square-root colours"


def test_parts_are_chosen_with_the_keyboard_and_named(browser, pair_maps, tmp_path):
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        page.locator('#parts input[value="evolved"]').focus()
        for key, part, title in (
            ("ArrowLeft", 2, "From the convolution"),
            ("ArrowLeft", 1, "From the previous layer"),
        ):
            page.keyboard.press(key)
            assert page.locator("#shown figcaption b").text_content() == title
            formula = ("0.42 × S₂", "0.18 × A₁", "0.4 × ReLU(Conv2d(M₂))")[part]
            assert formula in page.locator("#shown figcaption").text_content()
        for text in ("rows: query: token", "columns: key: token"):
            assert page.locator("#shown").get_by_text(text).is_visible()


def test_arrow_keys_choose_the_pair(browser, pair_maps, tmp_path):
    (chain,) = pair_maps.chains
    with opened(browser, pair_maps, tmp_path / "maps.html") as page:
        page.locator("#shown canvas").focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowRight"):
            page.keyboard.press(key)
        assert page.locator("#pair-places").text_content() == "(row 2, column 3)"
        assert page.locator("#pair-key").text_content() == chain.keys[2]
        values = {name: float(text) for name, text in shown_values(page).items()}
        assert values == expected_values(chain.layers[1], 0, 1, 2)
        for _ in range(50):
            page.keyboard.press("ArrowUp")
        assert page.locator("#pair-places").text_content() == "(row 1, column 3)"


def test_every_control_is_reached_with_the_tab_key(browser, translation_maps, tmp_path):
    with opened(browser, translation_maps, tmp_path / "maps.html") as page:
        reached = set()
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.className || document.activeElement.name"
                )
            )
        assert {"chain", "layer", "head", "scale", "zoom", "part", "map"} <= reached


def test_a_translation_has_a_choice_of_chains(browser, translation_maps, tmp_path):
    with opened(browser, translation_maps, tmp_path / "maps.html") as page:
        titles = page.locator("#chain option").all_text_contents()
        assert titles == [chain.title for chain in translation_maps.chains]
        for index, chain in enumerate(translation_maps.chains):
            page.locator("#chain").select_option(str(index))
            assert page.locator("#shown .rows.labels span").all_text_contents() == chain.queries
            assert page.locator("#shown .columns.labels span").all_text_contents() == chain.keys
            assert f"columns: {chain.key_axis}" in page.locator("#shown").text_content()
            point_at(page, 2, 1, (len(chain.queries), len(chain.keys)))
            values = {name: float(text) for name, text in shown_values(page).items()}
            assert values == expected_values(chain.layers[1], 0, 2, 1)
        # The decoder's future is masked: transparent, so that the hatching shows.
        page.locator("#chain").select_option("1")
        decoder = translation_maps.chains[1]
        size = len(decoder.queries)
        assert np.array_equal(pixels(page)[..., 3] == 0, np.triu(np.ones((size, size), bool), 1))
        point_at(page, 1, 3, (size, size))
        assert set(shown_values(page).values()) == {"masked"}


def boxes(page, selector):
    return page.locator(selector).evaluate_all(
        "all => all.map(one => { const box = one.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })"
    )


@pytest.mark.parametrize("zoom", [None, 11, 30], ids=str)
def test_names_of_a_long_sentence_do_not_overlap(browser, long_maps, tmp_path, zoom):
    (chain,) = long_maps.chains
    assert len(chain.keys) > 100
    with opened(browser, long_maps, tmp_path / "maps.html") as page:
        if zoom is not None:
            page.locator("#zoom").fill(str(zoom))
        for selector, axis in (("#shown .rows.labels span", 1), ("#shown .columns.labels span", 0)):
            places = boxes(page, selector)
            assert len(places) == len(chain.keys)
            for place, following in itertools.pairwise(places):
                assert following[axis] >= place[axis + 2] - 0.01
            font = page.locator(selector).first.evaluate("label => parseFloat(getComputedStyle(label).fontSize)")
            assert 10 <= font <= places[0][axis + 2] - places[0][axis]
        # It scrolls within its frame, and the names stay in sight.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("#shown .scroll").evaluate("frame => frame.scrollTo(500, 400)")
        (frame,), (names,) = boxes(page, "#shown .scroll"), boxes(page, "#shown .columns.labels")
        assert names[1] == pytest.approx(frame[1], abs=2)
        page.locator("#zoom").fill("4")  # too small for names: they go, and the values stay
        assert page.locator("#shown .rows.labels").is_hidden()
        point_at(page, 50, 60, (len(chain.keys),) * 2)
        assert page.locator("#pair-key").text_content() == chain.keys[60]


def test_an_image_is_shown_with_its_patches(browser, digit_maps, tmp_path):
    (chain,) = digit_maps.chains
    with opened(browser, digit_maps, tmp_path / "maps.html") as page:
        page.wait_for_function("picture.complete")
        # The picture is what the model saw, each pixel enlarged.
        seen = pixels(page, "#seen canvas")
        top = seen.shape[0] - seen.shape[1]
        side = seen.shape[1] // 8
        centers = seen[top + side // 2 :: side, side // 2 :: side][:8, :8, 0]
        assert np.abs(centers.astype(int) - digits(2)[3]).max() <= 1
        assert page.locator("#query option").all_text_contents() == chain.queries
        # The class token looks at the second patch of the third row.
        box = page.locator("#shown canvas").bounding_box()
        patch = box["width"] / 4
        page.mouse.move(box["x"] + 1.5 * patch, box["y"] + box["height"] - 1.5 * patch)
        assert page.locator("#pair-query").text_content() == "class token"
        assert page.locator("#pair-key").text_content() == "row 3, column 2"
        values = {name: float(text) for name, text in shown_values(page).items()}
        assert values == expected_values(chain.layers[1], 0, 0, 10)
        # A click on the picture chooses another query.
        page.locator("#seen canvas").click(position={"x": 3.5 * patch, "y": box["height"] - 0.5 * patch})
        assert page.locator("#pair-query").text_content() == "row 4, column 4"
        values = {name: float(text) for name, text in shown_values(page).items()}
        assert values == expected_values(chain.layers[1], 0, 16, 10)
        page.locator("#view").select_option("matrix")
        assert pixels(page).shape[:2] == (17, 17)
        point_at(page, 5, 3, (17, 17))
        values = {name: float(text) for name, text in shown_values(page).items()}
        assert values == expected_values(chain.layers[1], 0, 5, 3)


def test_texts_are_text_and_nothing_else(browser, pair_maps, tmp_path):
    (chain,) = pair_maps.chains
    names = [HOSTILE[i % len(HOSTILE)] for i in range(len(chain.keys))]
    hostile = replace(
        pair_maps,
        model_name=HOSTILE[0],
        texts={HOSTILE[1]: HOSTILE[0], "sentence": HOSTILE[5]},
        chains=[replace(chain, queries=names, keys=names, title=HOSTILE[0], key_axis=HOSTILE[1])],
    )
    with opened(browser, hostile, tmp_path / "maps.html") as page:
        for index in range(len(HOSTILE)):
            point_at(page, index, index, (len(names), len(names)))
            # A half of a surrogate pair becomes the replacement character in a message of the browser.
            assert page.locator("#pair-key").text_content().replace("\ufffd", "\ud83d") == HOSTILE[index]
        assert page.evaluate("window.harmed") is None
        assert page.locator("img").count() == 0 and page.locator("script").count() == 2  # values are read and gone
        assert page.locator("#about dd").first.text_content() == HOSTILE[0]
        # A right-to-left name leaves its neighbours alone.
        label = page.locator("#shown .rows.labels span").nth(5)
        assert label.evaluate("label => getComputedStyle(label).direction") == "rtl"
        assert "isolate" in label.evaluate("label => getComputedStyle(label).unicodeBidi")


def test_no_other_script_could_run_and_nothing_be_loaded(browser, pair_maps, tmp_path):
    write_page(pair_maps, tmp_path / "maps.html")
    page = browser.new_page()
    page.goto((tmp_path / "maps.html").as_uri())
    refused = page.evaluate("""async () => {
        const refused = [];
        document.addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.harmed = 1';
        const image = document.createElement('img');
        image.src = 'http://127.0.0.1:9/picture.png';
        document.body.append(script, image);
        await new Promise((resolve) => setTimeout(resolve, 100));
        return refused;
    }""")
    assert sorted(refused) == ["img-src", "script-src-elem"] and page.evaluate("window.harmed") is None
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser, pair_maps, tmp_path, scheme):
    with opened(browser, pair_maps, tmp_path / "maps.html", color_scheme=scheme) as page:
        color_of = "(one, name) => getComputedStyle(one)[name].match(/[\\d.]+/g).slice(0, 3).map(Number)"
        background = page.locator("body").evaluate(color_of, "backgroundColor")
        assert (sum(background) > 600) == (scheme == "light")
        for selector in (
            "body",
            "#shown figcaption span",
            ".axis >> nth=0",
            ".unit >> nth=0",
            "#controls label >> nth=1",
        ):
            color = page.locator(selector).first.evaluate(color_of, "color")
            assert contrast(color, background) >= 4.5, selector


def contrast(color, background):
    """Of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(channels):
        shares = [value / 255 for value in channels]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(color), luminance(background)))
    return (lighter + 0.05) / (darker + 0.05)

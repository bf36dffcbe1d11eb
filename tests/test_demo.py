# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo in a browser: text, prediction and maps, weights that slide; and nothing asked of another machine."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_evolving
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ea_hf.map_recording import evolutions_of
from ea_hf.training.command_line import Mistake


ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SENTENCE = "Loud, long and empty."


@pytest.fixture(scope="module")
def app():
    specification = importlib.util.spec_from_file_location("demo_app", ROOT / "demo" / "app.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_evolving.write_bert(tmp_path_factory.mktemp("demo"))


def prediction(checkpoint, residual, convolution):
    """Of a model whose weights are set by hand."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    for evolution in evolutions_of(model):
        evolution.residual_weight, evolution.conv_weight = residual, convolution
    with torch.no_grad():
        logits = model.eval()(**AutoTokenizer.from_pretrained(checkpoint)(SENTENCE, return_tensors="pt")).logits
    return pytest.approx(logits.softmax(dim=-1)[0].tolist(), abs=1e-4)


def test_the_prediction_is_the_models_with_the_weights_that_were_chosen(app, checkpoint):
    demo = app.Demo(checkpoint)
    found, figure = demo.answer(SENTENCE, 0.9, 0.8, 2)
    assert list(found.values()) == prediction(checkpoint, 0.9, 0.8)
    assert len(figure.axes) >= 3 * 8
    # They come back: a request leaves nothing behind.
    assert {(one.residual_weight, one.conv_weight) for one in demo.evolutions} == {(0.3, 0.4)}
    assert list(found.values()) != prediction(checkpoint, 0.3, 0.4)


def test_what_cannot_be_shown_is_told_with_what_to_do(app, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake, match=r"output/film_sentiment, which `make glue` makes"):
        app.Demo(app.DEFAULT)
    with pytest.raises(Mistake, match="no checkpoint"):
        app.Demo(str(tmp_path / "nothing"))
    with pytest.raises(Mistake, match="no attention maps that evolve"):
        app.Demo(str(Path(checkpoint).parent / "vanilla"))
    with pytest.raises(Mistake, match=r"EAT5.*sequence classification"):
        app.Demo(tiny_evolving.write_t5(tmp_path))
    with pytest.raises(ValueError, match=r"[0-9]+ tokens.*up to 64"):
        app.Demo(checkpoint).answer("A dull copy. " * 40, 0.1, 0.1, 1)
    with pytest.raises(ValueError, match="empty"):
        app.Demo(checkpoint).answer(" ", 0.1, 0.1, 1)


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory):
    pytest.importorskip("gradio", reason="Gradio, of the extra demo, is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "demo" / "app.py"), checkpoint, "--port", str(port)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_visitor_types_a_text_and_slides_the_weights(served, checkpoint):
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH")
    requests, faults = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1366, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(served)

        def shown():
            """The probabilities on the page, by label."""
            text = page.get_by_test_id("label-output-value").first.locator("xpath=../..").inner_text()
            return dict(re.findall(r"(LABEL_\d)\n(\d+)%", text))

        def wait_for(values):
            wanted = {f"LABEL_{index}": f"{100 * value:.0f}" for index, value in enumerate(values.expected)}
            deadline = time.monotonic() + 60
            while (found := shown()) != wanted:
                assert time.monotonic() < deadline, (found, wanted)
                page.wait_for_timeout(200)

        page.get_by_test_id("label-output-value").wait_for(timeout=60_000)
        box = page.get_by_label("Text")
        box.fill(SENTENCE)
        box.press("Enter")
        wait_for(prediction(checkpoint, 0.3, 0.4))
        picture = page.locator("[data-testid='matplotlib'] img")
        before = picture.get_attribute("src")
        slider = page.get_by_label("range slider for Residual weight")
        slider.focus()
        slider.press("End")
        slider.dispatch_event("pointerup")
        wait_for(prediction(checkpoint, 1.0, 0.4))
        page.wait_for_function(
            "before => document.querySelector(\"[data-testid='matplotlib'] img\").src !== before", arg=before
        )
        if directory := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{directory}/demo.png", full_page=True)
        browser.close()
    assert faults == []
    assert [url for url in requests if not url.startswith((served, "data:", "blob:"))] == []

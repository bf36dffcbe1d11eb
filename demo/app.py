# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A page on which you type a text, see what a model says and its attention maps, and slide the two weights of its evolution.

    make glue                                     # makes output/film_sentiment
    python demo/app.py
    python demo/app.py output/mrpc --port 7861    # another model that classifies texts

The page is served to this machine alone, and asks nothing of another one.
"""

import argparse
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import PreTrainedModel

from ea_hf.map_recording import evolutions_of
from ea_hf.training.command_line import ArgumentParser, Mistake, run_main
from ea_hf.visualization import draw_layers, text_maps
from ea_hf.visualization.__main__ import load, load_model


DEFAULT = "output/film_sentiment"
EXAMPLE = "A film that never quite finds its feet."
FONTS = ["system-ui", "sans-serif"]
# A picture of more tokens is too wide for a page; `ea-hf maps` shows any number.
MOST_TOKENS = 64


class Demo:
    """A model with what the page asks of it.

    Args:
        checkpoint: a directory of an evolving model that classifies texts, or its name on the Hub.

    Raises:
        Mistake: there is none; with what to do.
    """

    def __init__(self, checkpoint: str):
        from transformers import AutoTokenizer

        if checkpoint == DEFAULT and not Path(checkpoint).exists():
            raise Mistake(f"There is no {DEFAULT}, which `make glue` makes; run it, or name another directory.")
        self.model: PreTrainedModel = load_model(checkpoint).eval()
        if not type(self.model).__name__.endswith("ForSequenceClassification"):
            raise Mistake(
                f"{checkpoint} is an {type(self.model).__name__}; the demo takes a model for sequence classification."
            )
        self.tokenizer: Any = load(AutoTokenizer, checkpoint, "tokenizer")
        self.evolutions = evolutions_of(self.model)
        self.is_learned = any(evolution.mixing == "learned" for evolution in self.evolutions)
        self.has_convolution = any(evolution.conv is not None for evolution in self.evolutions)
        self.heads = self.evolutions[0].num_heads
        self.weights = (self.evolutions[0].residual_weight, self.evolutions[0].conv_weight)
        self.lock = threading.Lock()  # requests share the model, whose weights they change for a while

    @contextmanager
    def weighted(self, residual: float, convolution: float) -> Iterator[None]:
        """The model with other weights, for the time being."""
        with self.lock:
            before = [(one, one.residual_weight, one.conv_weight) for one in self.evolutions]
            try:
                for evolution in self.evolutions:
                    evolution.residual_weight, evolution.conv_weight = residual, convolution
                yield
            finally:
                for evolution, *weights in before:
                    evolution.residual_weight, evolution.conv_weight = weights

    def answer(self, text: str, residual: float, convolution: float, head: int) -> tuple[dict[str, float], Figure]:
        """The prediction, by label, and a picture of the maps of one head.

        Raises:
            ValueError: no text, or too many tokens.
        """
        length = len(self.tokenizer(text, verbose=False)["input_ids"])
        if length > MOST_TOKENS:
            raise ValueError(f"The text has {length} tokens; the page draws up to {MOST_TOKENS}.")
        if self.is_learned:
            residual, convolution = self.weights
        with self.weighted(residual, convolution):
            maps = text_maps(self.model, self.tokenizer, text, heads=[int(head)], vanilla=True)
        return maps.prediction, draw_layers(maps)


def page_of(demo: Demo, name: str) -> Any:
    """The page, as Gradio's blocks."""
    import gradio

    def answer(text: str, residual: float, convolution: float, head: int) -> tuple[dict[str, float], Figure]:
        try:
            return demo.answer(text, residual, convolution, head)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    slider = {"minimum": 0, "maximum": 1, "step": 0.05}
    learned = "This model has learned its own, one for each head." if demo.is_learned else None
    none = None if demo.has_convolution else "This model has no convolution."
    with gradio.Blocks(title="Evolving attention", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# Evolving attention\n{type(demo.model).__name__}, `{name}`. Each layer's map takes the residual weight's share from "
            "the layer before, and the convolution's from a convolution over the maps; both 0 is plain attention."
        )
        text = gradio.Textbox(EXAMPLE, label="Text", submit_btn="Run")
        with gradio.Row():
            residual = gradio.Slider(
                value=demo.weights[0], label="Residual weight", info=learned, interactive=learned is None, **slider
            )
            convolution = gradio.Slider(
                value=demo.weights[1],
                label="Convolution weight",
                info=learned or none,
                interactive=not (learned or none),
                **slider,
            )
            head = gradio.Dropdown(list(range(1, demo.heads + 1)), value=1, label="Head")
        prediction = gradio.Label(label="Prediction")
        maps = gradio.Plot(label="Maps, a row for each layer", format="png")
        inputs = [text, residual, convolution, head]
        events = [page.load, text.submit, residual.release, convolution.release, head.change]
        gradio.on(events, answer, inputs, [prediction, maps], show_progress="minimal", trigger_mode="always_last")
    return page


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT, help="A directory, or a name on the Hub.")
    parser.add_argument("--port", type=int, help="Default: the first free one from 7860.")
    args: argparse.Namespace = parser.parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import
    try:
        import gradio
    except ImportError as error:
        raise Mistake('The demo needs Gradio: pip install -c demo/constraints.txt -e ".[demo]"') from error
    page = page_of(Demo(args.checkpoint), Path(args.checkpoint).name)
    theme = gradio.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"])
    page.launch(server_name="127.0.0.1", server_port=args.port, share=False, theme=theme, footer_links=[])


if __name__ == "__main__":
    run_main(main)
